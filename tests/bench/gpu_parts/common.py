"""What the parts share: building on a device, the same random numbers on both, and clocks that wait for the device."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import rl_lab
from rl_lab.core import graphs, randomness
from rl_lab.types import Transition

CPU = torch.device("cpu")
DRAWS = "uniform", "integers", "permutation"


def built(device: torch.device, *settings: str) -> tuple[Any, Any]:
    return rl_lab.build(f"device={device}", *settings)


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(call: Callable[[], int], device: torch.device, seconds: float, warm_up: int = 5) -> float:
    """What `call` says that it made, a second."""
    for _ in range(warm_up):
        call()
    made, start, spent, calls = 0, clock(device), 0.0, 1
    while spent < seconds:
        for _ in range(calls):  # the clock waits for the device, so that it is asked seldom
            made += call()
        spent = clock(device) - start
        calls = min(4 * calls, 1_000) if spent < seconds / 10 else calls
    return made / spent


def gap(one: Any, other: Any) -> float:
    """The largest difference between the numbers of two states, wherever they are."""
    if isinstance(one, Tensor):
        both = [x.detach().cpu() for x in (one, other)]
        return max((both[0].double() - both[1].double()).abs().max().item(), 0.0) if both[0].numel() else 0.0
    if isinstance(one, dict):
        return max((gap(one[k], other[k]) for k in one), default=0.0)
    if isinstance(one, list | tuple):
        return max((gap(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    return abs(one - other) if isinstance(one, float) else 0.0


def expect(name: str, value: float, most: float, note: Callable[..., None]) -> None:
    note(name, float(value), f"(at most {most:g})")
    if not value <= most:
        raise AssertionError(f"{name} is {value:.3g}, and must be at most {most:g}")


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """What learners draw by `core.randomness` is drawn on the CPU, and taken to their device."""
    twins: dict[int, tuple[Any, torch.Generator]] = {}

    def on_cpu(name: str) -> Callable[..., Tensor]:
        draw = getattr(randomness, name)

        def drawn(*given: Any) -> Tensor:
            *shape, rng = given
            twin = twins.setdefault(id(rng), (rng, torch.Generator().manual_seed(rng.initial_seed())))[1]
            return draw(*shape, twin).to(rng.device)

        return drawn

    with contextlib.ExitStack() as stack:
        for name in DRAWS:
            ours = getattr(randomness, name)
            homes = [m for n, m in [*sys.modules.items()] if n.startswith("rl_lab") and getattr(m, name, None) is ours]
            replaced = on_cpu(name)
            for home in homes:
                stack.enter_context(mock.patch.object(home, name, replaced))
        yield


@contextlib.contextmanager
def compiling(how: str, device: torch.device) -> Iterator[None]:
    graphs.choose(how, device)
    try:
        yield
    finally:
        graphs.choose("none", device)


def lived(agent: Any, env: Any, steps: int, on: torch.device, actions: list[Tensor] | None = None) -> list[Any]:
    """The metrics of an agent that acts in an env, which may be on another device."""
    found, obs = [], env.reset(0)
    for _ in range(steps):
        action = agent.act(obs.to(on))
        if actions is not None:
            actions.append(action.cpu())
        step = env.step(action.to(env.device))
        transition = Transition.of(obs, action.to(env.device), step)
        found.append(agent.update(Transition(*(x.to(on) for x in transition))))
        obs = step.obs
    return found


def network(agent: Any) -> torch.nn.Module:
    return getattr(agent, "online", None) or getattr(agent, "network", None) or agent.actor
