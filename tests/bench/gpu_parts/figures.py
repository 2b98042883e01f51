"""What the labs do in a second of a GPU: worlds, plans, samples, many seeds."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu_parts.common import built, clock, rate
from rl_lab.core.graphs import WARM_UP, chosen
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.types import Transition

Note = Callable[..., None]
LEARNED = 15e6  # decisions of VPN in the paper's table of Collect
SEEDS, WORLDS_OF_TABLE = 3, 2  # deterministic and stochastic


def stepping(device: torch.device, seconds: float, note: Note, small: bool, *worlds: str) -> None:
    sizes = [64] if small else [16_384, 262_144, 1_048_576]
    share = seconds / (2 * len(sizes) * len(worlds))
    for world in worlds:
        for size in sizes:
            env, _ = built(device, *world.split(), f"env.num_envs={size}", "agent=random")
            env.reset(0)
            actions = torch.randint(env.spec.num_actions, (8, size), device=device)

            def plain(env: Any = env, actions: Tensor = actions) -> int:
                for action in actions:
                    env.walkers = env.advance(env.walkers, action, *env.draw()).walkers
                return actions.numel()

            note(f"{world}, {size:,}: state only", rate(plain, device, share), "steps/s")
            note(f"{world}, {size:,}: a graph of 8", rate(recorded(env, actions), device, share), "steps/s")


def recorded(env: Any, actions: Tensor) -> Callable[[], int]:
    """Eight steps of all walkers as one CUDA graph."""
    walkers = type(env.walkers)(*(x.clone() for x in env.walkers))

    def steps() -> None:
        now = walkers
        for action in actions:
            now = env.advance(now, action, *env.draw()).walkers
        for kept, new in zip(walkers, now, strict=True):
            kept.copy_(new)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        steps()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(env.rng)
    with torch.cuda.graph(graph):
        steps()

    def replay() -> int:
        graph.replay()
        return actions.numel()

    return replay


def grid(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Steps of four rooms a second, eager and as a CUDA graph."""
    stepping(device, seconds, note, small, "env=four_rooms env.obs=index")


def collect(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Steps of Collect a second, eager and as a CUDA graph."""
    stepping(device, seconds, note, small, "env=collect_small env.mazes=64" if small else "env=collect env.mazes=1024")


def vpn(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Decisions of VPN a second on Collect, planned and learned, and the hours that the paper's table would take."""
    count, hours = (4, 0.0) if small else (1_024, 0.0)
    depths = [3] if small else [1, 3, 5]
    world = ["env=collect_small", "env.mazes=64"] if small else ["env=collect", "env.mazes=1024"]
    for depth in depths:
        env, agent = built(device, *world, f"env.num_envs={count}", "agent=vpn", f"agent.depth={depth}",
                           f"agent.random_steps={20 * count}", "agent.epsilon.steps=1",
                           f"agent.roots_at_once={count}")  # fmt: skip
        obs = env.reset(0)
        torch.cuda.reset_peak_memory_stats()
        planned = rate(
            lambda obs=obs, agent=agent: len(agent.act(obs, greedy=True)), device, seconds / 3 / len(depths), 1
        )
        note(f"depth {depth}: planned, {count:,} envs", planned, "decisions/s")
        learned = learning(env, agent, obs, device, seconds * 2 / 3 / len(depths))
        note(f"depth {depth}: learned, {count:,} envs", learned, "decisions/s")
        note(f"depth {depth}: memory", torch.cuda.max_memory_allocated() / 1e9, "GB")
        note(f"depth {depth}: {LEARNED:.0f} decisions", LEARNED / learned / 3_600, "hours")
        hours += WORLDS_OF_TABLE * SEEDS * LEARNED / learned / 3_600
    note(f"the table: depths {depths}, {WORLDS_OF_TABLE} worlds, {SEEDS} seeds", hours, "hours, one after the other")


def learning(env: Any, agent: Any, obs: Tensor, device: torch.device, seconds: float) -> float:
    """Steps of all envs a second, whole rollouts, once updates are captured where graphs were chosen."""
    made, updates, start, left = 0, 0, 0.0, time.perf_counter() + 2 * seconds + 10
    while not start or not agent.settled or clock(device) - start < seconds:
        action = agent.act(obs)
        step = env.step(action)
        metrics = agent.update(Transition.of(obs, action, step))
        obs = step.obs
        updates += bool(metrics) and agent.settled
        if start:
            made += env.num_envs
        elif updates > (WARM_UP if chosen() else 0) or time.perf_counter() > left:
            start = clock(device)
    return made / (clock(device) - start)


def table(states: int, actions: int, successors: int) -> MDP:
    """Random, with a discount of .99."""
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(states, actions, successors, generator=rng, dtype=torch.float64)
    return MDP(
        torch.randint(states, p.shape, generator=rng), p / p.sum(-1, keepdim=True),
        torch.randn(p.shape, generator=rng, dtype=torch.float64), torch.zeros(states, dtype=torch.bool),
        torch.full((states,), 1 / states, dtype=torch.float64), tuple(map(str, range(actions))), 0.99,
    )  # fmt: skip


def sweeps(mdp: MDP, count: int) -> Tensor:
    """Values after so many synchronous sweeps."""
    from rl_lab.planning import value_iteration

    plans = value_iteration(mdp, gamma=0.99, epsilon=1e-9, stop="value", sweep="synchronous", initial="zero",
                            max_sweeps=100_000, check_every=1_000_000)  # fmt: skip
    for _, plan in zip(range(count), plans, strict=False):
        value = plan.value
    return value


def million_states(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Value iteration of 10^6 states: seconds for the sweeps that bring values within 1e-6 of the optimum."""
    mdp = table(1_000 if small else 1_000_000, 4, 4).to(device)
    sweeps(mdp, 2)
    start, count = clock(device), 20 if small else 100
    sweeps(mdp, count)
    spent = (clock(device) - start) / count
    note(f"{len(mdp.start):,} states, 4 actions, 4 successors: a sweep", 1e3 * spent, "ms")
    note("2,000 sweeps, .99^2,000 of the first error", 2_000 * spent, "s")


def pixelcnn(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Images of 28 x 28 drawn a second by PixelCNN, from caches, and its training steps."""
    from gpu_parts.checks import model_of

    side, count = (6, 2) if small else (28, 256)
    for name in ("pixelcnn",) if small else ("pixelcnn", "gated_pixelcnn"):
        model = model_of(name, device, (1, side, side), 2)
        rng = torch.Generator(device).manual_seed(0)
        drawn = rate(lambda model=model, rng=rng: len(model.sample(count, rng)), device, seconds / 4, 1)
        note(f"{name}: {side} x {side}, {count} at once", drawn, "images/s")
        x = torch.randint(2, (128, 1, side, side), dtype=torch.uint8, device=device)
        steps = rate(lambda model=model, x=x: len(model.update(x)) and 1, device, seconds / 4)
        note(f"{name}: learned, batches of 128", steps, "steps/s")


def seeds(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """64 seeds at once beside one alone, on four rooms: steps of all seeds a second."""
    from rl_lab.loops.seeds.stacking import stacked
    from rl_lab.loops.seeds.training import Worlds

    count = 3 if small else 64
    for agent in ("agent=a2c_mlp",) if small else ("agent=a2c_mlp", "agent=ppo_mlp"):
        words = "env=four_rooms", agent, "env.num_envs=32"
        learners = [built(device, *words, f"seed={seed}")[1] for seed in range(count)]
        env, alone = built(device, *words)
        note(f"{agent}: one seed", learning(env, alone, env.reset(0), device, seconds / 4), "steps/s")
        worlds = Worlds(built(device, *words)[0], count)
        worlds.num_envs = count * 32
        together = learning(worlds, stacked(learners), worlds.reset([*range(count)]), device, seconds / 4)
        note(f"{agent}: {count} seeds at once", together, "steps/s")
