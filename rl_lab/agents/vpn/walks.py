"""Random play, kept for the whole run: besides the agent's own play, a model learns rewards and durations from it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_lab.core.errors import UserError
from rl_lab.core.randomness import integers
from rl_lab.types import Spec, Transition


class Walks:
    """`decisions` uniformly random ones of N walkers, in their order, on the device.

    Float planes are kept as one number and a mask of bits each, uint8 frames as they are: a million decisions on
    Collect take 75 MB.
    """

    def __init__(self, decisions: int, spec: Spec, device: torch.device):
        """Raises UserError where observations are neither frames nor planes."""
        if decisions and len(spec.obs_shape) != 3:
            raise UserError(
                f"agent.random_steps={decisions} keeps frames or planes, and this world shows numbers "
                f"{tuple(spec.obs_shape)}; set agent.random_steps=0"
            )
        self.decisions, self.obs_shape, self.device = decisions, spec.obs_shape, device
        self.rows = 0
        self.columns: dict[str, Tensor] = {}
        self._starts: Tensor | None = None  # flat places from which a walk may be read, once all are there

    @property
    def full(self) -> bool:
        return self.rows * self._walkers >= self.decisions

    @property
    def nbytes(self) -> int:
        return sum(x[: self.rows].nbytes for x in self.columns.values())

    @property
    def _walkers(self) -> int:
        return self.columns["end"].shape[1] if self.columns else 1

    def add(self, transition: Transition) -> None:
        """One decision of each walker [N]."""
        row = {
            **packed(transition.obs),
            "option": transition.action.to(torch.uint8),
            "reward": transition.reward,
            "duration": transition.duration.to(torch.uint8),
            "end": ended(transition),
        }
        if not self.columns:
            self._make_room(row)
        for name, x in row.items():
            self.columns[name][self.rows] = x
        self.rows += 1

    def sample(self, count: int, length: int, rng: torch.Generator, cross_ends: bool = False) -> dict[str, Tensor]:
        """`count` walks [length, count, ...] that begin anywhere but on the last step of an episode.

        Also `start`, which ends where the first episode does unless they `cross_ends`, and next_obs, true where there
        is no `end`. Raises UserError where there is no such step.
        """
        if self._starts is None:
            self._starts = (~self.columns["end"][: self.rows - length]).flatten().nonzero().squeeze(1)
            if not len(self._starts):
                raise UserError(f"agent.random_steps={self.decisions}: every step of these walks ends an episode, and "
                                "no walk begins there; raise it, or set it to 0")  # fmt: skip
        draw = integers(len(self._starts), (count,), rng)
        place = self._starts[draw] + self._walkers * torch.arange(length + 1, device=self.device).unsqueeze(1)
        read = {name: x.flatten(0, 1)[place] for name, x in self.columns.items()}
        obs, end = unpacked(read, self.obs_shape), read["end"]
        before = torch.cat([torch.zeros_like(end[:1]), end[:-2]])
        start = torch.ones_like(before) if cross_ends else before.cumsum(0) == 0
        return {
            "obs": obs[:-1],
            "option": read["option"][:-1].long(),
            "reward": read["reward"][:-1],
            "duration": read["duration"][:-1].float(),
            "end": end[:-1],
            "start": start,
            "next_obs": obs[1:],
        }

    def _make_room(self, row: dict[str, Tensor]) -> None:
        rows = -(-self.decisions // len(row["end"]))
        self.columns = {k: torch.empty(rows, *x.shape, dtype=x.dtype, device=self.device) for k, x in row.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: x[: self.rows].clone() for name, x in self.columns.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rows, self._starts, self.columns = 0, None, {}
        if state:
            self._make_room({name: x[0] for name, x in state.items()})
            self.rows = len(state["end"])
        for name, x in state.items():
            self.columns[name][: self.rows] = x


def ended(transition: Transition) -> Tensor:
    """Bool: what comes next does not belong to what was before."""
    return transition.last | (transition.discount == 0)


def packed(obs: Tensor) -> dict[str, Tensor]:
    """Planes [N, P, H, W] as one number each and a mask, eight cells a byte. Raises UserError where that loses any."""
    if obs.dtype == torch.uint8:
        return {"frames": obs}
    cells = obs.flatten(2)
    eights = F.pad((cells != 0).to(torch.uint8), (0, -cells.shape[-1] % 8)).unflatten(-1, (-1, 8))
    bits = (eights << torch.arange(8, dtype=torch.uint8, device=obs.device)).sum(-1, dtype=torch.uint8)
    parts = {"number": cells.amax(-1), "bits": bits}
    if not torch.equal(unpacked(parts, obs.shape[1:]), obs):
        raise UserError(
            "agent.random_steps keeps planes of one number each, and this world's hold several; "
            "set agent.random_steps=0"
        )
    return parts


def unpacked(parts: dict[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """The observations [..., P, H, W] again."""
    if "frames" in parts:
        return parts["frames"]
    bits = parts["bits"].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=parts["bits"].device) & 1
    cells = bits.flatten(-2)[..., : shape[-2] * shape[-1]]
    return torch.unflatten(cells * parts["number"].unsqueeze(-1), -1, shape[-2:])
