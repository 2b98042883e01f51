"""Whether a GPU computes what the CPU does, waits where it should not, and can do what only a GPU can."""

import contextlib
import copy
import io
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import hydra
import torch
from torch import Tensor

from gen_lab.types import Spec as Images
from gpu_parts.common import CPU, built, compiling, expect, gap, lived, network, same_draws
from rl_lab.core import precision
from rl_lab.core.launching.composition import compose, conf_dir
from rl_lab.types import Transition

Note = Callable[..., None]
FEW = ("agent.learning_starts=32", "agent.replay_ratio=2", "agent.batch_size=16")
AGENTS = {
    "a2c_mlp": ("agent.rollout_length=5",), "ppo_mlp": ("agent.rollout_length=8",), "dqn_mlp": FEW,
    "pqn_mlp": ("agent.rollout_length=8",), "actor_critic": (), "q_learning": (), "reinforce": (),
    "vpn3": ("env=collect_small", "agent.random_steps=104"),
}  # fmt: skip
CAPTURED = "a2c_mlp", "ppo_mlp", "dqn_mlp", "pqn_mlp"
EIGHT = "env.num_envs=8", "env.time_limit=12"


def few_words(device: torch.device, agent: str, *more: str) -> tuple[Any, Any]:
    return built(device, "env=four_rooms", *AGENTS[agent], f"agent={agent}", *EIGHT, *more)


def every(names: Iterable[str], note: Note, check: Callable[[str], None]) -> None:
    """One that fails leaves the others theirs."""
    failed = []
    for name in names:
        try:
            check(name)
        except Exception as error:
            traceback.print_exc(limit=-5)
            note(f"{name}: failed", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
            failed.append(name)
    if failed:
        raise AssertionError(f"of {', '.join(failed)}")


def agents(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Every agent acts and learns on the GPU as on the CPU, from equal draws."""
    torch.backends.cudnn.allow_tf32 = False

    def check(name: str) -> None:
        begun, learned, taken = few_words(CPU, name)[1].state_dict(), [], []
        for on in CPU, device:
            env, agent = few_words(CPU, name)[0], few_words(on, name)[1]
            agent.load_state_dict(copy.deepcopy(begun))
            actions: list[Tensor] = []
            with same_draws():
                lived(agent, env, 24 if small else 64, on, actions)
            learned.append(network_of(agent.state_dict()))
            taken.append(actions)
        note(f"{name}: steps with other actions", sum(not torch.equal(a, b) for a, b in zip(*taken, strict=True)))
        expect(f"{name}: parameters", gap(*learned), 1e-3, note)

    every(AGENTS, note, check)


def network_of(state: dict[str, Any]) -> dict[str, Any]:
    return {k: x for k, x in state.items() if k in ("network", "online", "actor", "critic")}


def worlds(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Worlds of tensors take the same steps from the same draws."""
    steps = 5 if small else 50

    def check(world: str) -> None:
        one, two = (built(on, *world.split(), "env.num_envs=64", "agent=random")[0] for on in (CPU, device))
        one.reset(0), two.reset(0)
        walkers = one.walkers
        for _ in range(steps):
            action, draws = torch.randint(one.spec.num_actions, (64,)), one.draw()
            ours = one.advance(walkers, action, *draws)
            moved = [None if x is None else x.to(device) for x in draws]
            theirs = two.advance(type(walkers)(*(x.to(device) for x in walkers)), action.to(device), *moved)
            for a, b in zip(ours[1:5], theirs[1:5], strict=True):
                assert not isinstance(a, Tensor) or torch.equal(a, b.cpu()), "another step"
            walkers = ours.walkers
        note(f"{world}: equal steps", steps)

    many = "env=four_rooms", "env=lavaland", "env=collect env.mazes=64", "env=collect_stochastic env.mazes=64"
    every(("env=four_rooms", "env=collect_small env.mazes=64") if small else many, note, check)


def waits(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Nothing in acting, stepping and learning waits for the GPU, but what is told here."""

    def check_world(world: str) -> None:
        env, _ = built(device, *world.split(), "env.num_envs=64", "agent=random")
        env.reset(0)
        action = torch.zeros(64, dtype=torch.int64, device=device)
        env.step(action)
        with waits_are("error"):
            for _ in range(10):
                env.step(action)
        note(f"{world}: a step waits", 0, "times")

    def check_agent(name: str) -> None:
        env, agent = few_words(device, name)
        lived(agent, env, 16, device)
        found: Counter[str] = Counter()
        obs = env.reset(0)
        for _ in range(16):
            with waits_are("error"):
                action = agent.act(obs)
                step = env.step(action)
            with warnings.catch_warnings(record=True) as caught, waits_are("warn"):
                warnings.simplefilter("always")
                agent.update(Transition.of(obs, action, step))
            found.update(f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in caught if "synchron" in str(w.message))
            obs = step.obs
        places = ", ".join(f"{place} {count}" for place, count in found.most_common(3))
        note(f"{name}: 16 updates wait", sum(found.values()), f"times {places}")

    names = ["env=four_rooms", *["env=collect env.mazes=64", "env=cartpole_tensor"][: 0 if small else None]]
    every(names + [*AGENTS], note,
          lambda name: check_world(name) if "=" in name else check_agent(name))  # fmt: skip


@contextlib.contextmanager
def waits_are(mode: str) -> Iterator[None]:
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def graphs(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Agents under compile=graphs learn what they learn without."""

    def check(name: str) -> None:
        learned, again = [], ("agent.forward_again=true",) if name == "a2c_mlp" else ()
        for how in "none", "graphs":
            with compiling(how, device):
                env, agent = few_words(device, name, *again)
                lived(agent, env, 48 if small else 200, device)
                learned.append(network(agent).state_dict())
        recorded = sum(len(part._graphs) for part in vars(agent).values() if hasattr(part, "_graphs"))
        note(f"{name}: graphs", recorded)
        assert recorded >= 2, "nothing was captured"
        expect(f"{name}: parameters", gap(*learned), 1e-3, note)

    every(CAPTURED, note, check)


def bf16(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Convolutions in bfloat16 are near those in float32, and learn."""
    env, agent = built(device, "experiment=pong_a2c", "env.num_envs=2", "env.num_threads=1",
                       "agent.network.standardise=false")  # fmt: skip
    obs = env.reset(0)
    whole = agent.network(obs)[0]
    precision.choose("bf16", device)
    try:
        with precision.training():
            expect("log-probabilities", gap(whole, agent.network(obs)[0]), 0.05, note)
            for _ in range(8):
                action = agent.act(obs)
                step = env.step(action)
                metrics = agent.update(Transition.of(obs, action, step))
                obs = step.obs
    finally:
        precision.choose("fp32", device)
        env.close()
    assert metrics and all(torch.isfinite(x) for x in metrics.values()), "a loss that is not finite"
    assert all(p.dtype == torch.float32 for p in agent.network.parameters())


def model_of(name: str, device: torch.device, shape: tuple[int, int, int], levels: int, *more: str) -> Any:
    made = compose(conf_dir(), "gen", [f"model={name}", *more]).model
    return hydra.utils.instantiate(made)(Images(shape, levels), device, 0)


MODELS = {"pixelcnn": 2, "gated_pixelcnn": 2, "pixelcnnpp": 256, "independent": 2, "bernoulli_mixture": 2}


def models(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Likelihoods of images are those of the CPU; every kind of model takes a step."""
    torch.backends.cudnn.allow_tf32 = False

    def likelihood(name: str) -> None:
        levels = MODELS[name]
        one, two = (model_of(name, on, (1, 8, 8), levels) for on in (CPU, device))
        two.load_state_dict(one.state_dict())
        x = torch.randint(levels, (8, 1, 8, 8), dtype=torch.uint8)
        ours = one.score(x, torch.Generator().manual_seed(0))["nll_nats"]
        theirs = two.score(x.to(device), torch.Generator(device).manual_seed(0))["nll_nats"]
        expect(f"{name}: nats an image, relative", gap(ours, theirs) / ours.abs().max().item(), 1e-4, note)
        two.update(x.to(device))

    def step(name: str) -> None:
        levels = 2 if name in ("vae", "vqvae") else 256
        x = torch.randint(levels, (16, 1, 32, 32), dtype=torch.uint8, device=device)
        model_of(name, device, (1, 32, 32), levels).update(x)
        note(f"{name}: a step", "taken")

    others = "vae", "vqvae", "autoencoder", "dcgan"
    every([*MODELS, *others], note,
          lambda name: likelihood(name) if name in MODELS else step(name))  # fmt: skip


def plans(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """Value iteration, sweep by sweep, gives the values of the CPU."""
    from gpu_parts.figures import sweeps, table

    mdp = table(100 if small else 10_000, 4, 3)
    ours, theirs = (sweeps(mdp.to(on), 50) for on in (CPU, device))
    expect("values after 50 sweeps", gap(ours, theirs), 1e-9, note)


def checkpoints(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """A checkpoint goes from the CPU to the GPU and back, through a file, and nothing of it changes."""

    def check(name: str) -> None:
        env, one = few_words(CPU, name)
        lived(one, env, 16, CPU)
        state = one.state_dict()
        for on in device, CPU:
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            world, back = few_words(on, name)
            back.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            state = copy.deepcopy(back.state_dict())
            expect(f"{name}: on {on.type}", gap(network_of(one.state_dict()), network_of(state)), 0.0, note)
            lived(back, world, 16, on)  # and it goes on

    every(CAPTURED, note, check)


def compiled(device: torch.device, seconds: float, note: Note, small: bool) -> None:
    """torch.compile of acting and of the gradient step of A2C, PPO, DQN and PQN gives what they give without."""
    on, backend = (CPU, "aot_eager") if small else (device, "inductor")

    def check(name: str) -> None:
        learned = []
        for how in "eager", backend:
            env, agent = few_words(on, name)
            if how == backend:
                network(agent).compile(backend=backend)
                if name == "a2c_mlp":  # which calls `improve` under graphs alone
                    agent.objective = torch.compile(agent.objective, backend=backend)
                else:
                    agent._improve.call = torch.compile(agent.improve, backend=backend)
            with same_draws():
                lived(agent, env, 24, on)
            learned.append(network(agent).state_dict())
        expect(f"{name}: parameters", gap(*learned), 1e-3, note)

    every(CAPTURED, note, check)
