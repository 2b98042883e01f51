"""Anyone's agent in one of our worlds: a Python class, a model of Stable-Baselines3, or a table for a known world."""

import inspect
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_lab.agents import exploration
from rl_lab.agents.tabled import Tabled
from rl_lab.core import conf_dir, imports
from rl_lab.core.calls import one_line
from rl_lab.core.errors import UserError, brief, nearest
from rl_lab.envs.abilities import Tabular
from rl_lab.types import VectorEnv, View, Viewed

ALGORITHMS = "A2C", "DQN", "PPO"  # of Stable-Baselines3 for discrete actions
LARGEST = 2**30  # bytes of a table


class Unsteady(UserError):
    """It is not a function of the observation, so it has no exact value."""


class Guest:
    """Whoever has `act`: obs [N, ...] -> N actions, as a tensor, an array or a list; `greedy=True` where it takes that.

    What it answers is looked at every time, as a wrong number would be another state's action. `probabilities` and
    `view` are its own where it has them; else it is taken for a function of the observation, until it contradicts
    itself.
    """

    def __init__(self, agent: Any, env: VectorEnv, name: str):
        self.agent, self.spec, self.name = agent, env.spec, name
        self.how = {"greedy": True} if {"greedy", "kwargs"} & _parameters(agent.act) else {}
        self.states = env.states if isinstance(env, Tabular) else None
        size = len(env.mdp.start) if isinstance(env, Tabular) else 0
        self.seen = torch.full((size,), -1, device=env.device)  # the action in each state, -1 where it was not asked
        self.contradicts = False

    def act(self, obs: Tensor, greedy: bool = True) -> Tensor:
        action = actions(self._asked("act", obs, **self.how), len(obs), self.spec.num_actions, f"{self.name}.act")
        action = action.to(obs.device)
        if self.states:
            states = self.states(obs)
            before = self.seen[states]
            self.seen[states] = action
            self.contradicts |= bool((((before != action) & (before >= 0)) | (self.seen[states] != action)).any())
        return action

    def probabilities(self, obs: Tensor) -> Tensor:
        """[N, A]. Raises Unsteady."""
        if callable(getattr(self.agent, "probabilities", None)):
            found = self._asked("probabilities", obs)
            name = f"{self.name}.probabilities"
            return distributions(found, (len(obs), self.spec.num_actions), name).to(obs.device)
        try:
            action = self.act(obs)
        except UserError as error:
            raise Unsteady(f"it cannot be asked about all {len(obs)} states at once: {error}") from error
        if self.contradicts:
            raise Unsteady(f"{self.name}.act answers one observation in two ways; give it `probabilities`")
        return exploration.certain(action, self.spec.num_actions)

    def view(self, obs: Tensor) -> View:
        if callable(getattr(self.agent, "view", None)):
            return View(*self._asked("view", obs))
        certain = exploration.certain(self.act(obs), self.spec.num_actions)
        return View(certain, torch.full((len(obs),), torch.nan, device=obs.device), "probabilities")

    def _asked(self, method: str, obs: Tensor, **how: bool) -> Any:
        try:
            with torch.no_grad():
                return getattr(self.agent, method)(obs, **how)
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{self.name}.{method} failed ({imports.told(error)})") from error


class Table(Tabled):
    """A table that comes with no values."""

    def view(self, obs: Tensor) -> View:
        view = super().view(obs)
        return view._replace(value=torch.full_like(view.value, torch.nan))


class Known:
    """An actor of a known world, seen with the exact value [S] of its policy [S, A]."""

    def __init__(self, actor: Viewed, policy: Tensor, value: Tensor, env: Tabular):
        self.actor, self.states = actor, env.states
        self.act, self.probabilities = actor.act, actor.probabilities
        finite = value[value.isfinite()] if value.isfinite().any() else torch.zeros(1)
        value = value.nan_to_num(float(finite.min()), float(finite.max()), float(finite.min()))  # to be drawn at all
        self.policy, self.value = policy.to(env.device), value.to(env.device)

    def view(self, obs: Tensor) -> View:
        states = self.states(obs)
        return View(self.policy[states], self.value[states], "probabilities")


# -- where they come from


def of_class(name: str, env: VectorEnv, seed: int) -> Guest:
    """my_agent:Mine, built without arguments or with (spec, device, seed). Raises UserError."""
    return Guest(_built(class_named(name), name, env, seed), env, name.partition(":")[2])


def check_name(name: str) -> None:
    """Raises UserError where it is not written like a class of a module."""
    if not all(map(str.isidentifier, name.replace(":", ".").split("."))):
        raise UserError(f"agent={name} is no agent; take agent=my_agent:Mine, a class of a module, or agent=sb3")
    if (conf_dir() / f"agent/{name}.yaml").is_file():
        raise UserError(
            f"agent={name} is one of the lab's own, and learns first: rl-lab train agent={name} env=..., then run=<its "
            "folder> here; one of yours is agent=<module>:<class>"
        )
    if name.count(":") != 1:
        raise UserError(f"agent={name} names no class; write agent=<module>:<class>, or agent=sb3; what was "
                        "trained here is evaluated by run=<folder>")  # fmt: skip


def class_named(name: str) -> type:
    """my_agent:Mine, also from the working directory. Raises UserError where it is no class that has `act`."""
    check_name(name)
    module, _, path = name.partition(":")
    imports.place(imports.local([module]))
    kind: Any = imports.named(module, f"agent={name}")
    for part in path.split("."):
        if not hasattr(kind, part):
            known = [x for x in dir(kind) if isinstance(getattr(kind, x), type)]
            raise UserError(f"agent={name}: {module} has no {path}{nearest(path, known)}")
        kind = getattr(kind, part)
    if not isinstance(kind, type):
        raise UserError(f"agent={name}: {path} is no class")
    if not callable(getattr(kind, "act", None)):
        raise UserError(f"agent={name}: {path} has no act(obs), which gives an action for each of N observations")
    return kind


def _built(kind: type, name: str, env: VectorEnv, seed: int) -> Any:
    whole: dict[str, Any] = {"spec": env.spec, "device": env.device, "seed": seed}
    for given in ((), tuple(whole.values())):
        try:
            inspect.signature(kind).bind(*given)
        except TypeError:
            continue
        except ValueError:  # a class of C has no signature
            pass
        try:
            return kind(*given)
        except Exception as error:
            raise UserError(f"agent={name}: {kind.__name__}() failed ({imports.told(error)})") from error
    raise UserError(f"agent={name}: {kind.__name__} must be built without arguments, or with (spec, device, seed)")


def of_sb3(path: str | None, algorithm: str | None, env: VectorEnv) -> tuple[Guest, int]:
    """A model that Stable-Baselines3 saved, and the number of steps it was trained for. Raises UserError."""
    if not path or not algorithm:
        raise UserError("agent=sb3 needs agent.path=model.zip and agent.algorithm=PPO")
    if algorithm.upper() not in ALGORITHMS:
        raise UserError(f"agent.algorithm={algorithm} is not a choice{nearest(algorithm, ALGORITHMS)}")
    if not Path(path).is_file():
        raise UserError(f"agent.path={path} is no file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"agent.path={path} is no zip of Stable-Baselines3")
    import stable_baselines3

    from rl_lab.agents.sb3 import SB3Agent

    print(f"{path} is loaded because you named it: such a zip can run code of whoever made it", file=sys.stderr)
    try:
        model = getattr(stable_baselines3, algorithm.upper()).load(path, device=env.device)
    except Exception as error:
        raise UserError(
            f"agent.path={path} is no model of agent.algorithm={algorithm} ({imports.told(error)})"
        ) from error
    if words := _misfit(model, env):
        raise UserError(f"agent.path={path} is a model of another environment: {words}")
    return Guest(SB3Agent(model), env, algorithm.upper()), int(model.num_timesteps)


def _misfit(model: Any, env: VectorEnv) -> str:
    """How a model's spaces differ from the world's; "" where they fit."""
    theirs, spec = model.observation_space, env.spec
    shown = one_line(theirs)
    if (count := getattr(model.action_space, "n", None)) != spec.num_actions or getattr(model.action_space, "start", 0):
        ours = spec.num_actions if count else "discrete"
        return f"it chooses from {model.action_space}, and this world has {ours} actions"
    if not spec.obs_shape and hasattr(theirs, "n"):
        states = len(env.mdp.start) if isinstance(env, Tabular) else 0
        return "" if theirs.n == states else f"it observes {shown}, and this world has {states} states"
    kind = np.uint8 if spec.obs_dtype == torch.uint8 else np.float32
    if hasattr(theirs, "n"):
        return (
            f"it observes {shown}, and this world has {spec.obs_shape} numbers; env.obs=index gives the state's number"
        )
    if theirs.shape != spec.obs_shape or (theirs.dtype == np.uint8) != (kind == np.uint8):
        return f"it observes {shown}, and this world has {spec.obs_shape} of {np.dtype(kind)}"
    return ""


def of_table(path: str, env: VectorEnv, seed: int) -> Table:
    """An npz of actions [S] or of probabilities [S, A], called policy where it holds more. Raises UserError."""
    if not isinstance(env, Tabular):
        raise UserError(f"policy={path} needs a world of known states, such as env=four_rooms, and this one has none")
    states, count = env.mdp.next_state.shape[:2]
    found, name = _array(path), f"policy={path}"
    if found.shape == (states,):
        table = exploration.certain(actions(found, states, count, name), count)
    elif found.shape == (states, count):
        table = distributions(found, (states, count), name)
    else:
        raise UserError(f"{name} is {list(found.shape)}, and this world's {states} states and {count} actions want "
                        f"[{states}] or [{states}, {count}]")  # fmt: skip
    return Table(table.to(env.device), env.states, env.device, seed)


def _array(path: str) -> np.ndarray:
    if not Path(path).is_file():
        raise UserError(f"policy={path} is no file")
    if not zipfile.is_zipfile(path):
        raise UserError(f"policy={path} is no npz, as numpy.savez writes it")
    if Path(path).stat().st_size > LARGEST:
        raise UserError(f"policy={path} is larger than any table of this lab")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = list(file.keys())
            name = names[0] if len(names) == 1 else "policy"
            if name not in names:
                raise UserError(f"policy={path} holds {', '.join(names) or 'nothing'}; call the array to use policy")
            found: np.ndarray = file[name]
            return found
    except UserError:
        raise
    except Exception as error:  # of NumPy, of zipfile or of zlib
        words = brief(error)
        raise UserError(f"policy={path} cannot be read as an npz of numbers ({words})") from error


# -- what they say, looked at


def actions(answer: Any, count: int, num_actions: int, name: str) -> Tensor:
    """int64 [count], each of them an action. Raises UserError."""
    try:
        found = torch.as_tensor(answer)
    except Exception as error:
        raise UserError(f"{name} gives {type(answer).__name__}, not {count} actions") from error
    if found.ndim == 0 and count == 1:
        found = found.reshape(1)
    if tuple(found.shape) != (count,):
        raise UserError(f"{name} is given {count} observations at once and must return {count} actions, of the shape "
                        f"[{count}]; it returned {list(found.shape)}")  # fmt: skip
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise UserError(f"{name} gives {str(found.dtype).removeprefix('torch.')}, and actions are whole numbers")
    if (wrong := (found < 0) | (found >= num_actions)).any():
        raise UserError(f"{name} gives action {int(found[wrong][0])}, and there are actions 0 to {num_actions - 1}")
    return found.long()


def distributions(answer: Any, shape: tuple[int, int], name: str) -> Tensor:
    """float64 [S, A] whose rows sum to 1. Raises UserError that names the first row at fault."""
    try:
        found = torch.as_tensor(answer).detach().double()
    except Exception as error:
        raise UserError(f"{name} gives {type(answer).__name__}, not probabilities {list(shape)}") from error
    if tuple(found.shape) != shape:
        raise UserError(f"{name} gives {list(found.shape)}, not probabilities {list(shape)}")
    total = found.sum(-1)
    faults = {"NaN": found.isnan().any(-1), "a probability below 0": (found < 0).any(-1)}
    for words, wrong in faults.items():
        if wrong.any():
            raise UserError(f"{name}: row {int(wrong.nonzero()[0])} holds {words}")
    if (wrong := ~((total - 1).abs() <= 1e-5)).any():
        row = int(wrong.nonzero()[0])
        raise UserError(f"{name}: row {row} sums to {float(total[row]):.6g}, and probabilities sum to 1")
    return found / total.unsqueeze(-1)


def _parameters(call: Any) -> set[str]:
    try:
        return {*inspect.signature(call).parameters}
    except ValueError:
        return set()
