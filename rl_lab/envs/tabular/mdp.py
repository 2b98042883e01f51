"""A finite Markov decision process as tables of successors: planners read it, steppers sample it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl_lab.core.errors import UserError, counted


class Layout(NamedTuple):
    """Where the states of a gridworld lie, for drawing."""

    rows: tuple[str, ...]  # the map as text: '#' wall
    cells: tuple[tuple[int, int], ...]  # (y, x) of state s; states beyond the last cell have no place
    cell_reward: dict[tuple[int, int], float]  # of the cells with a reward of their own
    ends: frozenset[tuple[int, int]] = frozenset()  # cells where an episode ends
    jumps: dict[tuple[int, int], tuple[int, int]] = {}  # from a cell to the one any action leads to

    def __hash__(self) -> int:
        return hash((self.rows, self.ends))  # dictionaries have none; equality still compares them

    def cell(self, state: int) -> tuple[int, int] | None:
        """Where a state lies; None where it has no place."""
        return self.cells[state] if state < len(self.cells) else None


class MDP(NamedTuple):
    """The whole model. K successors a state and action, some of probability 0.

    The tensors of a batch of MDPs, as `stack` makes it, have one leading dimension B, and `gamma` is [B].
    """

    next_state: Tensor  # [S, A, K] int64
    probability: Tensor  # [S, A, K] float64, sums to 1 over K; may be an expanded view
    reward: Tensor  # [S, A, K] float64
    terminal: Tensor  # [S] bool: no future beyond here; such a state stays where it is and pays 0
    start: Tensor  # [S] float64, distribution of first states
    actions: tuple[str, ...]
    gamma: float | Tensor = 0.99  # the discount by which policies are compared in this world
    layout: Layout | None = None

    def to(self, device: torch.device | str) -> "MDP":
        next_state, probability, reward, terminal, start = (x.to(device) for x in self[:5])
        gamma = self.gamma.to(device) if isinstance(self.gamma, Tensor) else self.gamma
        return self._replace(
            next_state=next_state, probability=probability, reward=reward, terminal=terminal, start=start, gamma=gamma
        )


def checked(mdp: MDP, name: str) -> MDP:
    """The same MDP, if it is one. Raises UserError that names the state and the action at fault."""
    shape = tuple(mdp.next_state.shape)
    if len(shape) != 3 or 0 in shape:
        raise UserError(f"{name}: next_state must be [states, actions, successors], not {list(shape)}")
    states, actions, _ = shape
    wanted = {
        "next_state": (torch.int64, shape),
        "probability": (torch.float64, shape),
        "reward": (torch.float64, shape),
        "terminal": (torch.bool, (states,)),
        "start": (torch.float64, (states,)),
    }
    for field, (dtype, size) in wanted.items():
        x = getattr(mdp, field)
        if x.dtype != dtype or tuple(x.shape) != size:
            raise UserError(
                f"{name}: {field} must be {_named(dtype)} {list(size)}, not {_named(x.dtype)} {list(x.shape)}"
            )
    if len(mdp.actions) != actions:
        raise UserError(f"{name}: {counted(len(mdp.actions), 'names')} for {counted(actions, 'actions')}")

    def refuse(wrong: Tensor, words: str) -> None:
        """`wrong` is [S, A] or [S, A, K]; `words` may use the first of its places, as s, a and k."""
        if wrong.any():
            s, a, k = (*wrong.nonzero()[0].tolist(), 0)[:3]
            at = {
                "s": s,
                "a": a,
                "to": int(mdp.next_state[s, a, k]),
                "p": float(mdp.probability[s, a, k]),
                "r": float(mdp.reward[s, a, k]),
                "sum": float(mdp.probability[s, a].sum()),
            }
            raise UserError(f"{name}: state {s}, action {a} ({mdp.actions[a]}): {words.format(**at)}")

    inside = (mdp.next_state >= 0) & (mdp.next_state < states)
    refuse(~inside, f"leads to state {{to}}, but there are states 0 to {states - 1}")
    refuse(~(mdp.probability >= 0), "a probability of {p:g}")
    refuse(
        (mdp.probability.sum(-1) - 1).abs() > 1e-9,
        "probabilities sum to {sum:.10g}, not 1; where an episode "
        "ends, lead to a terminal state that stays where it is",
    )
    refuse(~mdp.reward.isfinite(), "a reward of {r:g}")
    leaves = mdp.next_state != torch.arange(states)[:, None, None]
    absorbing = mdp.terminal[:, None, None] & (mdp.probability > 0)
    refuse(absorbing & leaves, "leads on to state {to}, though the state is terminal: let it stay where it is")
    refuse(absorbing & (mdp.reward != 0), "pays {r:g}, though the state is terminal: pay on entering it instead")
    if (wrong := ~(mdp.start >= 0)).any():
        s = int(wrong.nonzero()[0])
        raise UserError(f"{name}: start gives state {s} a probability of {float(mdp.start[s]):g}")
    if not abs(float(mdp.start.sum()) - 1) <= 1e-9:
        raise UserError(f"{name}: start must be a distribution, but sums to {float(mdp.start.sum()):.10g}")
    if (wrong := mdp.terminal & (mdp.start > 0)).any():
        raise UserError(f"{name}: an episode would start in state {int(wrong.nonzero()[0])}, which is terminal")
    if not 0 <= mdp.gamma <= 1:
        raise UserError(f"{name}: gamma must be between 0 and 1, not {mdp.gamma:g}")
    return mdp


def stack(mdps: Sequence[MDP]) -> MDP:
    """A batch [B, S, A, K] to be solved in one call; smaller worlds are filled up with terminal states.

    The number of actions must be the same. Raises ValueError.
    """
    if len({len(m.actions) for m in mdps}) != 1:
        raise ValueError("a batch of MDPs needs the same number of actions in each")
    states, successors = (max(m.next_state.shape[i] for m in mdps) for i in (0, 2))

    def table(x: Tensor, fill: float = 0.0) -> Tensor:
        return pad(x, (0, successors - x.shape[2], 0, 0, 0, states - x.shape[0]), value=fill)

    def vector(x: Tensor, fill: float = 0.0) -> Tensor:
        return pad(x, (0, states - len(x)), value=fill)

    next_state = torch.stack([table(m.next_state) for m in mdps])
    probability = torch.stack([table(m.probability) for m in mdps])
    for b, m in enumerate(mdps):
        extra = torch.arange(m.next_state.shape[0], states, device=next_state.device)
        next_state[b, extra] = extra[:, None, None]
        probability[b, extra, :, 0] = 1.0
    gamma = torch.stack([torch.as_tensor(m.gamma, dtype=torch.float64, device=next_state.device) for m in mdps])
    return MDP(
        next_state,
        probability,
        torch.stack([table(m.reward) for m in mdps]),
        torch.stack([vector(m.terminal, True) for m in mdps]),
        torch.stack([vector(m.start) for m in mdps]),
        mdps[0].actions,
        gamma,
        mdps[0].layout,
    )


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
