"""Looking ahead in a learned model: b-best expansion to a fixed depth, all roots and branches as one batch.

    Q^d(s, o) = r + gamma^T V^d(s'),   V^1(s) = V(s),   V^d(s) = V(s) / d + (d - 1) / d  max_{o in B} Q^{d-1}(s, o)

where (r, T, s') is what the model expects of option o, and B are the b options that are best by Q^1: every depth
along the best path has equal weight. See Oh, Singh and Lee (2017), section 3.2.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class Imagined(NamedTuple):
    """What a model expects of options: [B, A] of each of them in B states, or [B] of the one that is named."""

    state: Tensor  # [..., C, H, W] where it leads
    reward: Tensor
    duration: Tensor  # primitive steps
    value: Tensor  # of `state`


class Model(Protocol):
    def encode(self, obs: Tensor) -> Tensor: ...  # [B, ...] -> [B, C, H, W], an abstract state
    def imagine(self, state: Tensor, option: Tensor | None = None) -> Imagined: ...  # None: every option


class Level(NamedTuple):
    """One depth of a plan: of K nodes the b options looked into, each [E, K, b]; each is a node of the next depth.

    The child of node k by its j-th option is node k b + j.
    """

    option: Tensor  # int64
    reward: Tensor
    duration: Tensor
    value: Tensor  # V of the state reached
    q: Tensor  # Q^d, backed up from below


@runtime_checkable
class Planning(Protocol):
    """An agent that looks ahead, and can show what it imagines."""

    def plan(self, obs: Tensor) -> tuple[Level, ...] | None: ...  # of E observations; None where it looks nowhere


def look_ahead(model: Model, state: Tensor, branches: Sequence[int], gamma: float) -> tuple[Level, ...]:
    """Plans from E states [E, C, H, W], with branches[i] options at depth i; nothing waits for the device."""
    roots, levels = len(state), []
    for depth, b in enumerate(branches, 1):
        seen = model.imagine(state)
        q = seen.reward + gamma**seen.duration * seen.value
        option = best(q, b)
        level = Level(option, *(x.gather(1, option) for x in (seen.reward, seen.duration, seen.value, q)))
        levels.append(Level(*(x.view(roots, -1, option.shape[1]) for x in level)))
        if depth < len(branches):
            state = chosen(seen.state, option)
    return backed_up(levels, gamma)


def best(q: Tensor, b: int) -> Tensor:
    """q [B, A] -> its b best options [B, b]; all of them in their order where b is enough."""
    if b >= q.shape[1]:
        return torch.arange(q.shape[1], device=q.device).expand_as(q)
    return q.topk(b).indices


def chosen(state: Tensor, option: Tensor) -> Tensor:
    """state [B, A, C, H, W] by the options [B, b] -> [B b, C, H, W]."""
    if option.shape[1] == state.shape[1]:
        return state.flatten(0, 1)
    rows = torch.arange(len(state), device=state.device).unsqueeze(1)
    return state[rows, option].flatten(0, 1)


def backed_up(levels: Sequence[Level], gamma: float) -> tuple[Level, ...]:
    """The same levels, each q now the deepest that stands below it."""
    deepest = levels[-1]
    plan = [deepest]
    for d, level in enumerate(reversed(levels[:-1]), 2):
        below = plan[-1].q.amax(-1).view_as(level.q)
        value = level.value / d + (d - 1) / d * below
        plan.append(level._replace(q=level.reward + gamma**level.duration * value))
    return tuple(reversed(plan))


def action_values(plan: Sequence[Level], num_actions: int) -> Tensor:
    """[E, A]: Q^d at the root, -inf of options that were not looked into."""
    option, q = plan[0].option[:, 0], plan[0].q[:, 0]
    return torch.full((len(q), num_actions), -math.inf, dtype=q.dtype, device=q.device).scatter(1, option, q)


def path(plan: Sequence[Level]) -> list[Tensor]:
    """At each depth which of the nodes there the best path goes through, [E] int64 counted among K b children."""
    nodes, node = [], torch.zeros(len(plan[0].q), dtype=torch.int64, device=plan[0].q.device)
    for level in plan:
        here = torch.arange(len(node), device=node.device)
        node = node * level.q.shape[2] + level.q[here, node].argmax(-1)
        nodes.append(node)
    return nodes


def widths(depth: int, branch: int, branch_depth: int) -> tuple[int, ...]:
    """`branch` options at each of the first `branch_depth` depths, below them the best one alone: [4, 4, 4, 1, 1]."""
    return tuple(branch if i < branch_depth else 1 for i in range(depth))
