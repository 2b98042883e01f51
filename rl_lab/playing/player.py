"""Turns a run folder into something that plays: its environment, and its agent as the last checkpoint left it."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from rl_lab.agents.planned import Planned
from rl_lab.agents.random import Random
from rl_lab.agents.tabled import Tabled
from rl_lab.agents.vpn.planner import Level, Planning
from rl_lab.core import calls, checking, checkpoint, devices, reading, threads
from rl_lab.core.devices import is_whole
from rl_lab.core.errors import UserError, brief, counted, kind
from rl_lab.core.launching.changes import changed, typed
from rl_lab.core.launching.composition import key_of
from rl_lab.core.learner import Learner
from rl_lab.core.parts import Parts
from rl_lab.core.settings import Count, Natural, conform
from rl_lab.envs.abilities import Normalising, Tabular, has_camera
from rl_lab.parts import PARTS
from rl_lab.types import Spec, Step, VectorEnv, View, Viewed


class Player(NamedTuple):
    """Who plays, and where."""

    name: str
    group: str  # the run's name without its seed
    folder: Path
    env: VectorEnv
    agent: Viewed
    step: int  # of the checkpoint
    unit: str  # of that step; "" where nothing was learned here
    changes: Sequence[str] = ()  # of the run's settings, for this player only
    visited: Tensor | None = None  # [S] bool, the states of its world in which it has acted; None: not known
    scale: tuple[float, float] | None = None  # of its values' colours; None: its own

    @property
    def is_random(self) -> bool:
        """Whether it has learned nothing, so that there is nothing to draw."""
        return isinstance(self.agent, Random)

    @property
    def words(self) -> str:
        """How it plays."""
        if self.is_random:
            return "random actions"
        return ", ".join([*[f"greedy after {counted(self.step, self.unit)}"] * bool(self.unit), *self.changes])

    def act(self, obs: Tensor) -> Tensor:
        """Greedy actions [N] at obs [N, ...]. Raises UserError where those are none of its environment's."""
        return self.agent.act(self._seen(obs), greedy=True)

    @torch.no_grad()
    def view(self, obs: Tensor) -> View:
        """Raises UserError as `act` does."""
        found = self.agent.view(self._seen(obs))
        if not isinstance(found, View):
            name = f"{type(self.agent).__module__}.{type(self.agent).__name__}"
            raise UserError(f"{name}.view gives {kind(found)}, and must give rl_lab.types.View(bars, value, kind): "
                            "[N, A], [N] and what the bars are")  # fmt: skip
        return found

    def plan(self, obs: Tensor) -> tuple[Level, ...] | None:
        """What it imagines, if it looks ahead. Raises UserError as `act` does."""
        return self.agent.plan(self._seen(obs)) if isinstance(self.agent, Planning) else None

    def _seen(self, obs: Tensor) -> Tensor:
        """The observations, looked at from outside alone: their values would have to come from the device."""
        spec = self.env.spec
        if not isinstance(obs, Tensor) or (obs.dtype, obs.shape[1:]) != (spec.obs_dtype, spec.obs_shape):
            wanted = f"{spec.obs_dtype} [N, {', '.join(map(str, spec.obs_shape))}]".removeprefix("torch.")
            raise UserError(
                f"obs must be a tensor {wanted.replace(', ]', ']')}, as env.reset and env.step give it, "
                f"and is {kind(obs)}{_batched(obs, spec)}"
            )
        return obs


def load(
    folder: Path, *, max_envs: Count, device: str, seed: int = 0, camera: bool = False, changes: Sequence[str] = ()
) -> Player:
    """The run's own evaluation environment, but at most `max_envs` of it; `camera` where it has one.

    `seed` is that of an agent which draws its actions. `changes` are overrides of the run's settings, such as
    agent.eval_depth=5. Nothing in the config is called before all of it is checked. Of the checkpoint only the agent is
    used, without its memory. Raises UserError.
    """
    cfg, parts = reading.config(folder, PARTS, typed(changes, PARTS))
    path = folder / "checkpoint.pt"
    with checking.of_folder(folder):
        kind = str(_resolved(cfg)["loop"].get("_target_"))
    if kind == "rl_lab.loops.seeds.training.train":
        raise UserError(f"{folder} holds many seeds; name one of them, such as {folder}/seed{cfg.seed}")
    if kind not in BUILDERS:
        if kind == "rl_lab.commands.evaluate.evaluate":
            raise UserError(f"{folder} holds what was found of a guest, for rl-lab compare, and nothing that plays")
        raise UserError(f"{folder}/config.yaml is refused: loop._target_={kind} is not one of {', '.join(BUILDERS)}")
    device = devices.chosen(device, config=_resolved(cfg), exact=PARTS.exact)
    with checking.of_folder(folder, [key_of(change) for change in changes]):
        loop = _loop(cfg, parts, changes, device, max_envs, camera)
    state = checkpoint.read(path, mapped=True)
    torch.set_num_threads(min(threads.kept(cfg.get("threads", 1)), max_envs))
    asked = " ".join([f"{folder}/config.yaml", *(["with"] if changes else []), *changes])
    try:
        env = calls.built(loop.get("eval_env") or loop["env"])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the environment of {asked} cannot be built ({brief(error)})") from error
    try:
        if isinstance(env, Normalising):
            env.statistics.load_state_dict(state.get("statistics", {}))
            env.share(env.statistics)
        step, agent = int(state["step"]), BUILDERS[kind](loop, env, torch.device(device), seed, state["agent"])
        visited = state.get("env", {}).get("visited")
        if visited is not None and not (
            isinstance(env, Tabular) and visited.shape == env.mdp.start.shape and visited.any()
        ):
            visited = None  # a planner walks nowhere, and another world has other states
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        env.close()
        if isinstance(error, UserError):
            raise
        own = f"bring back the run's own checkpoint, {checkpoint.ANEW}"
        remedy = f"leave out {' '.join(changes)}" if changes else own
        raise UserError(f"{path} does not fit {asked} ({checkpoint.unfit(error)}); {remedy}") from error
    units = {"planning.plan": "sweeps", "fitting.fit_q": "iterations", "demonstrated.infer": "inferences",
             "reward_design.design": "designs"}  # fmt: skip
    unit = units.get(kind.removeprefix("rl_lab.loops."), "steps")
    return Player(titled(cfg), str(cfg.name), folder, env, agent, step, unit, changes, visited)


def guarded(env: VectorEnv) -> VectorEnv:
    """The same environment, which from here on refuses with a UserError a seed that is none, and what are not actions
    [N] of its own: for who types them. A loop would wait for the device at each step.
    """
    own, count, actions = type(env), env.num_envs, env.spec.actions

    def reset(self: VectorEnv, seed: int) -> Tensor:
        return own.reset(self, conform("seed", seed, Natural))

    def step(self: VectorEnv, action: Tensor) -> Step:
        wanted = f"action must be a tensor int64 [{count}] of 0 to {len(actions) - 1} ({', '.join(actions)})"
        if not isinstance(action, Tensor) or not is_whole(action) or action.shape != (count,):
            raise UserError(f"{wanted}, and is {kind(action)}")
        if ((action < 0) | (action >= len(actions))).any():
            raise UserError(f"{wanted}, and is {action.tolist()}")
        return own.step(self, action.long())

    env.__class__ = type(own.__name__, (own,), {"reset": reset, "step": step, "__module__": own.__module__})
    return env


def titled(cfg: DictConfig) -> str:
    """A run's name and seed; between them the agent and the environment, where the name does not say both."""
    choices, env = cfg.get("choices") or {}, cfg.get("env") or {}
    who = choices.get("planner") or choices.get("agent")
    where = env.get("id") or env.get("game") or choices.get("env")
    told = not (who and where) or (str(who) in str(cfg.name) and str(where).lower() in str(cfg.name))
    return " · ".join([str(cfg.name), *[f"{who} in {where}"] * (not told), f"seed {cfg.seed}"])


def _loop(
    cfg: DictConfig, parts: Parts | None, changes: Sequence[str], device: str, max_envs: int, camera: bool
) -> dict:
    """The loop's settings as they are built; everything is set before it is checked."""
    reading.refuse(_resolved(cfg), parts)
    cfg = changed(cfg, changes)
    _heeded(cfg, changes)
    cfg.device = device
    reading.refuse(_resolved(cfg), parts)
    node = cfg.loop.get("eval_env") or cfg.loop.get("env")
    if not isinstance(node, DictConfig):
        raise UserError(f"loop.env={node} must be a mapping with _target_")
    checking.check(cfg.loop, "loop")
    node.num_envs = min(node.num_envs, max_envs)
    if camera and has_camera(node._target_):
        node.camera = True
    if isinstance(cfg.loop.get("agent"), DictConfig) and "buffer_size" in cfg.loop.agent:
        cfg.loop.agent.buffer_size = 1  # SB3 allocates its replay at once
    resolved = _resolved(cfg)
    reading.refuse(resolved, parts)
    return resolved["loop"]


def _heeded(cfg: DictConfig, changes: Sequence[str]) -> None:
    """Raises UserError where a setting of `env` was typed, and evaluations have one of their own in its place."""
    own = cfg.loop._get_node("eval_env") if "eval_env" in cfg.loop else None
    if not isinstance(own, DictConfig):
        return
    for key in (change.lstrip("+~").partition("=")[0] for change in changes):
        group, _, setting = key.partition(".")
        first = setting.partition(".")[0]
        if group == "env" and first in own and str(own._get_node(first)) != f"${{env.{first}}}":
            raise UserError(f"{key} would be ignored, as loop.eval_env.{first}={own[first]} stands in its place; type "
                            f"loop.eval_env.{setting}=... instead")  # fmt: skip


def _resolved(cfg: DictConfig) -> dict:
    written: Any = OmegaConf.to_container(cfg, resolve=False)
    return reading.resolved(written)


def settings_of(folder: Path, changes: Sequence[str] = ()) -> dict:
    """The settings of a run's environment as they were composed, with `changes` made to them. Raises UserError."""
    cfg, parts = reading.config(folder, PARTS, typed(changes, PARTS))
    reading.refuse(_resolved(cfg), parts)
    cfg = changed(cfg, changes)
    _heeded(cfg, changes)
    loop = _resolved(cfg)["loop"]
    return loop.get("eval_env") or loop.get("env")


def _learner(loop: dict, env: VectorEnv, device: torch.device, seed: int, state: dict) -> Learner:
    agent = hydra.utils.instantiate(loop["agent"])(env.spec, device=device, seed=seed)
    state = {name: part for name, part in state.items() if name != agent.memory}
    for name in agent.saved:  # the streams of another device would not fit, and a greedy agent draws from none
        if isinstance(stream := getattr(agent, name), torch.Generator):
            state[name] = stream.get_state()
    agent.load_state_dict(state)
    return agent


def _planned(loop: dict, env: VectorEnv, device: torch.device, seed: int, state: dict) -> Planned:
    if not isinstance(env, Tabular):
        raise ValueError("a plan needs a world of known states")
    states, actions = env.mdp.next_state.shape[:2]
    if state["q"].shape != (states, actions) or state["policy"].shape != (states,):
        raise ValueError(f"a plan of {tuple(state['q'].shape)} states and actions, not {(states, actions)}")
    return Planned(state["q"].to(device), state["policy"].to(device), env.states)


def _inferred(loop: dict, env: VectorEnv, device: torch.device, seed: int, state: dict) -> Planned | Tabled:
    if not isinstance(env, Tabular):
        raise ValueError("a table needs a world of known states")
    if "q" in state:
        return _planned(loop, env, device, seed, state)
    if state["policy"].shape != (shape := env.mdp.next_state.shape[:2]):
        raise ValueError(f"a policy of {tuple(state['policy'].shape)} states and actions, not {tuple(shape)}")
    return Tabled(state["policy"].to(device), env.states, device, seed)


def _baseline(loop: dict, env: VectorEnv, device: torch.device, seed: int, state: dict):
    from rl_lab.agents.sb3 import AsVecEnv, SB3Agent

    agent = SB3Agent(hydra.utils.instantiate(loop["agent"])(env=AsVecEnv(env), seed=seed, device=device))
    agent.load_state_dict(state)
    return agent


BUILDERS = {
    "rl_lab.loops.training.train": _learner,
    "rl_lab.loops.crew.train": _learner,
    "rl_lab.loops.planning.plan": _planned,
    "rl_lab.loops.overlapped.train": _learner,
    "rl_lab.loops.fitting.fit_q": _learner,
    "rl_lab.loops.preferences.train": _learner,
    "rl_lab.loops.sb3.train_sb3": _baseline,
    "rl_lab.loops.demonstrated.infer": _inferred,
    "rl_lab.loops.reward_design.design": _inferred,
}


def _batched(obs: Any, spec: Spec) -> str:
    """`; torch.as_tensor(obs)[None] is one` of a single observation as Gymnasium gives it."""
    words = ""
    with suppress(TypeError, ValueError, RuntimeError):
        x = torch.as_tensor(obs)
        shown = ["torch.as_tensor(obs)"] + [f".to({spec.obs_dtype})"] * (x.dtype != spec.obs_dtype)
        if x.shape == spec.obs_shape:
            words = "".join([*shown, "[None]"])
        elif x.shape[1:] == spec.obs_shape:
            words = "".join(shown)
    return f"; {words} is one" if words else ""
