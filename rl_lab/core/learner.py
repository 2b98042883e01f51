"""What a loop drives: something that is updated, saved and loaded; and the one step every optimizer takes."""

import copy
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rl_lab.core import distributed, graphs
from rl_lab.core.errors import UserError, brief
from rl_lab.core.randomness import restore_generator

Metrics = dict[str, Tensor | float]
OptimizerFn = Callable[..., torch.optim.Optimizer]


class Learner:
    """`update` it on a batch; `saved` names the attributes that a checkpoint holds.

    An attribute is saved through its own `state_dict`, a generator through its state, anything else as it is.
    `memory` names the one among them (a replay) that a checkpoint may leave out because of its size.
    """

    saved: tuple[str, ...] = ()
    memory: str | None = None
    captures = False  # whether it has a use for compile=graphs
    parallel = False  # whether several ranks may learn it together: all of them descend at the same updates

    steps = 0  # taken so far, those of all ranks

    def count_steps(self, steps: int) -> None:
        """`steps` more were taken here, and as many in each of the other ranks of a run."""
        self.steps += steps * distributed.size()

    @property
    def settled(self) -> bool:
        """False while half a rollout is held: a checkpoint waits for the rest."""
        return True

    def announce(self, num_envs: int) -> str | None:
        """What there is to say before the first step."""

    def state_dict(self, without: str | None = None) -> dict[str, Any]:
        return {name: state_of(getattr(self, name)) for name in self.saved if name != without}

    def part_ways(self, seed: int) -> None:
        """From here on it draws by another seed, as each rank of a run does; its parameters stay as they are."""
        for i, part in enumerate(getattr(self, name) for name in self.saved):
            if isinstance(part, torch.Generator):
                part.manual_seed(seed + i)
            elif isinstance(part, Learner):
                part.part_ways(seed + i)

    def streams(self) -> Iterator[torch.Generator]:
        """All that it draws from and saves."""
        for part in (getattr(self, name) for name in self.saved):
            if isinstance(part, torch.Generator):
                yield part
            elif isinstance(part, Learner):
                yield from part.streams()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError, RuntimeError or ValueError where the state is of another learner."""
        for captured in (part for part in vars(self).values() if isinstance(part, graphs.Captured)):
            captured.forget()
        for name in self.saved:
            part = getattr(self, name)
            if name == self.memory and name not in state:
                continue
            if isinstance(part, torch.optim.Optimizer):
                _load_optimizer(part, state[name])
            elif hasattr(part, "load_state_dict"):
                part.load_state_dict(state[name])
                if isinstance(part, torch.nn.Module) and not all(x.isfinite().all() for x in part.parameters()):
                    raise ValueError(f"{name} holds weights that are not finite")
            elif isinstance(part, torch.Generator):
                restore_generator(part, state[name])
            else:
                setattr(self, name, state[name])


def state_of(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Its moments from the checkpoint, its hyperparameters from the config: a resumed run may change them."""
    wanted = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, hyperparameters in zip(optimizer.param_groups, wanted, strict=True):
        group.update(hyperparameters)
        for state in (optimizer.state[p] for p in group["params"] if "step" in optimizer.state.get(p, {})):
            counted = isinstance(state["step"], Tensor) and {"capturable", "fused"} & {*group}
            on_device = group.get("capturable") or group.get("fused")
            if counted:  # where this run's own steps want it
                state["step"] = state["step"].to(group["params"][0].device if on_device else "cpu")
    kept = {p.ndim: _kept(optimizer, p) for p in _parameters(optimizer)}
    if any(not kept[p.ndim] <= x.keys() for p in _parameters(optimizer) if (x := optimizer.state.get(p))):
        raise ValueError(f"it holds other moments than those of {type(optimizer).__name__} as it is set now")


def _kept(optimizer: torch.optim.Optimizer, parameter: Tensor) -> set[str]:
    """What the optimizer keeps of such a parameter: known from a step of a copy, along no gradient."""
    p = torch.nn.Parameter(parameter.new_zeros([2] * parameter.ndim))
    p.grad = torch.zeros_like(p)
    trial = copy.copy(optimizer)
    trial.param_groups = [{**optimizer.param_groups[0], "params": [p]}]
    trial.state = defaultdict(dict)
    take_step(trial)
    return {*trial.state[p]}


def descend(optimizer: torch.optim.Optimizer, loss: Tensor | Iterable[Tensor], max_norm: float = math.inf) -> Tensor:
    """One step down the gradient of `loss` []; returns the gradient's norm [] before clipping at `max_norm`.

    A loss that comes in parts is their sum; the graph of each is gone before the next is asked for. A loss [S] is that
    of S learners side by side, and so is the norm.
    """
    for p in _parameters(optimizer):  # what `zero_grad` does, without the time that it takes to say so to profilers
        p.grad = None
    if isinstance(loss, Tensor) and loss.ndim:
        loss.sum().backward()
        return step_each(optimizer, max_norm)
    for part in (loss,) if isinstance(loss, Tensor) else loss:
        part.backward()
    return step(optimizer, max_norm)


def step(optimizer: torch.optim.Optimizer, max_norm: float = math.inf) -> Tensor:
    """One step along the gradients that lie ready; returns their norm [] before clipping at `max_norm`.

    With several ranks all take the same step, along the mean of their gradients.

    On a CPU a step whose norm is not finite is not taken, so the parameters stay good; on a GPU looking would stop
    the queue, and the loop finds out when it next reads its metrics.
    """
    gradients = [p.grad for p in _parameters(optimizer) if p.grad is not None]
    distributed.average(gradients)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    share = max_norm / (norm + 1e-6)
    if not norm.is_cpu or share < 1:  # on a CPU looking costs less than to multiply by 1
        torch._foreach_mul_(gradients, share.clamp(max=1))
    if not norm.is_cpu or math.isfinite(norm):
        take_step(optimizer)
    return norm


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()` without what torch wraps around it for its profiler and its compiler.

    That takes a third of the time of a small network's step, and to import the compiler as long as to import torch.
    """
    heard = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if heard or "step" in vars(optimizer):  # which a scheduler of torch's puts there
        optimizer.step()
        return
    with torch.set_grad_enabled(optimizer.defaults.get("differentiable", False)):
        _unwrapped(type(optimizer).step)(optimizer)


_unwrapped: Callable[[Callable[..., Any]], Callable[..., Any]] = cache(inspect.unwrap)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.nn.Parameter]:
    return (p for group in optimizer.param_groups for p in group["params"])


def step_each(optimizer: torch.optim.Optimizer, max_norm: float = math.inf) -> Tensor:
    """As `step`, of S learners whose parameters are [S, ...]: each has a norm [S] of its own, and is clipped by it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    rows = [p.grad.view(len(p), -1) for p in parameters]
    norm: Tensor = torch.stack([x.norm(dim=1) for x in rows]).norm(dim=0)
    if max_norm < math.inf:
        torch._foreach_mul_(rows, [(max_norm / (norm + 1e-6)).clamp(max=1).unsqueeze(1)] * len(rows))
    if not norm.is_cpu or (good := norm.isfinite()).all():
        take_step(optimizer)
        return norm
    stay = [p.detach()[~good] for p in parameters]
    for x in rows:
        x[~good] = 0
    take_step(optimizer)
    with torch.no_grad():
        for p, x in zip(parameters, stay, strict=True):
            p[~good] = x
    return norm


class Decay:
    """Takes an optimizer's learning rates linearly to 0 over `steps`, but no further than to the share `floor`.

    Over 0 steps they stay as they are.

    torch's schedulers count their own calls and keep a state of their own. Here a learner's steps are the one clock,
    so a checkpoint needs nothing more, and a resumed run may change the rates and the steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int = 0, floor: float = 0.0):
        self.optimizer, self.steps, self.floor = optimizer, steps, floor
        self.rates = [float(group["lr"]) for group in optimizer.param_groups]

    def to(self, step: int) -> float:
        """Sets the rates of `step`; returns the share of the first ones that they are."""
        return self.scale(self.share(step))

    def share(self, step: int) -> float:
        """Of the first rates, at `step`."""
        return max(self.floor, 1 - step / self.steps) if self.steps else 1.0

    def scale(self, share: float) -> float:
        """Sets the rates to this share of the first ones, and returns it."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):  # of a step that a graph holds
                group["lr"].fill_(rate * share)
            else:
                group["lr"] = rate * share
        return share


def keep_compiler_out() -> None:
    """Lets optimizers be built without torch's compiler, which takes as long to import as torch itself.

    torch imports it where these methods are first called, to have it trace none of them. What the labs compile are
    forward passes, in which no optimizer is.
    """
    for name in "add_param_group", "state_dict", "load_state_dict", "zero_grad":
        if method := getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None):
            vars(method).setdefault("__dynamo_disable", method)


def build_optimizer(optimizer: OptimizerFn, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Raises UserError where torch refuses a hyperparameter, a learning rate is infinite, or a step cannot be taken by
    gradients alone.
    """
    keep_compiler_out()
    try:
        built = optimizer(parameters)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {error}") from error
    closure = inspect.signature(type(built).step).parameters.get("closure")
    if (closure and closure.default is closure.empty) or isinstance(built, torch.optim.SparseAdam):
        raise UserError(f"optimizer: {type(built).__name__} cannot learn here, from one dense gradient a step; choose "
                        "torch.optim.Adam or another")  # fmt: skip
    if not all(math.isfinite(group["lr"]) for group in built.param_groups):
        raise UserError("optimizer: the learning rate lr=inf must be a finite number")
    graphs.suit(built)
    try:
        _kept(built, next(_parameters(built)))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"optimizer: {type(built).__name__} as it is set cannot take a step here: {brief(error)}"
        ) from error
    return built
