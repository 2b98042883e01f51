"""What stands around a Gymnasium environment: the modules that register it, and wrappers by name and argument."""

import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium
from gymnasium import spaces
from omegaconf import DictConfig, ListConfig, OmegaConf

from rl_lab.core import imports
from rl_lab.core.calls import one_line
from rl_lab.core.errors import UserError, nearest, pasted

Wrap = Callable[[gymnasium.Env], gymnasium.Env]


class Package(NamedTuple):
    """A package of environments."""

    ids: str  # what they look like
    module: str  # registers them
    pip: str  # its name there
    call: str = ""  # a function of `<module>.<...>` that registers them, where importing does not


KNOWN = (
    Package(r"MiniGrid-|BabyAI-", "minigrid", "minigrid"),
    Package(r"MinAtar/", "minatar", "minatar", "gym.register_envs"),
    Package(r"(highway(-fast)?|merge|roundabout|parking|intersection|racetrack|exit|u-turn|lane-keeping|two-way)-",
            "highway_env", "highway-env"),
    Package(r"MiniWorld-", "miniworld", "miniworld"),
    Package(r"Vizdoom", "vizdoom.gymnasium_wrapper", "vizdoom"),
    Package(r"procgen", "procgen_gym", "procgen-gym"),
    Package(r"Crafter", "crafter", "crafter"),
    Package(r"PyFlyt/", "PyFlyt.gym_envs", "PyFlyt"),
    Package(r"FlappyBird-", "flappy_bird_gymnasium", "flappy-bird-gymnasium"),
)  # fmt: skip


def modules_of(value: Any, path: str) -> Any:
    """A list of modules, or a single one. Raises UserError."""
    found = [value] if isinstance(value, str) else plain(value)
    if not isinstance(found, list) or not all(re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", str(x)) for x in found):
        raise UserError(f"{path}={one_line(value)} must be a list of modules, such as [minigrid]")
    return value if found == plain(value) else found


def register(imported: Sequence[str] | str, id: str) -> str:
    """Imports what registers the environment; returns the id without its module. Raises UserError."""
    before, _, name = id.rpartition(":")
    typed = modules_of(imported, "env.imports")
    wanted = {module: f"env.imports=[{module}]" for module in typed} | ({before: f"env.id={id}"} if before else {})
    for module, setting in wanted.items():
        known = next((package for package in KNOWN if package.module == module), None)
        if known and importlib.util.find_spec(module.partition(".")[0]) is None:
            raise UserError(f"{setting} needs {module}; pip install {known.pip}")
        imports.named(module, setting)
        if known and known.call and not any(re.match(known.ids, there) for there in gymnasium.registry):
            home, _, function = f"{module}.{known.call}".rpartition(".")
            getattr(imports.named(home, setting), function)()
    return name


def unknown(id: str) -> str:
    """What to say about an id that no module has registered."""
    words = f"no Gymnasium environment '{id}'"
    if package := next((package for package in KNOWN if re.match(package.ids, id, re.IGNORECASE)), None):
        if any(re.match(package.ids, there) for there in gymnasium.registry):
            return words + nearest(id, (there for there in gymnasium.registry if re.match(package.ids, there)))
        missing = importlib.util.find_spec(package.module.partition(".")[0]) is None
        return (
            f"{words}; {package.module} registers it: "
            + f"pip install {package.pip}, then " * missing
            + (f"env.id={package.module}:{id}")
        )
    space, slash, _ = id.rpartition("/")
    is_foreign = slash and not any(there.startswith(f"{space}/") for there in gymnasium.registry)
    near = "" if is_foreign else nearest(id, gymnasium.registry)
    return words + (near or f"; env.id=<module>:{id} imports the package that registers it")


def limited(options: Mapping[str, Any] | None, steps: int | None) -> dict[str, Any]:
    """The options, with a time limit among them unless it is None. Raises UserError."""
    found = dict(options or {})
    if steps is None:
        return found
    if "max_episode_steps" in found:
        raise UserError("env.time_limit and env.options.max_episode_steps both set the time limit; give one of them")
    return found | {"max_episode_steps": steps}


# -- wrappers


def named(value: Any, path: str) -> Any:
    """A list of wrappers as it is written: a name, or {name: settings}. `_target_` is another way to say a name.

    Raises UserError where it is no list, nor a single name.
    """
    found = [value] if isinstance(value, str) and value else plain(value)
    if not isinstance(found, list | tuple):
        raise UserError(f"{path}={one_line(value)} must be a list of wrappers, such as [FlattenObservation]")
    entries = [_named(entry, f"{path}[{i}]") for i, entry in enumerate(found)]
    return value if entries == plain(value) else entries


def _named(entry: Any, path: str) -> Any:
    if isinstance(entry, dict) and "_target_" in entry:
        settings = {key: x for key, x in entry.items() if key not in ("_target_", "_partial_")}
        entry = {str(entry["_target_"]): settings} if settings else str(entry["_target_"])
    name, settings = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
    if not isinstance(name, str) or not isinstance(settings or {}, dict):
        raise UserError(f"{path}={one_line(entry)} is no wrapper; give its name, or {{TimeLimit: "
                        "{max_episode_steps: 200}}")  # fmt: skip
    short = name.removeprefix("gymnasium.wrappers.")
    return short if not settings else {short: settings}


def plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value


def built(entries: Sequence[Any]) -> list[tuple[str, Wrap]]:
    """How each is typed, and what wraps an environment in it. Raises UserError."""
    found: list[tuple[str, Wrap]] = []
    for i, entry in enumerate(named(plain(entries), "env.wrappers")):
        name, settings = next(iter(entry.items())) if isinstance(entry, dict) else (entry, {})
        shown = f"env.wrappers[{i}]={one_line(entry)}".replace("'", "")
        found.append((shown, partial(_call(name, settings, shown), **settings)))
    return found


KEPT = {"NormalizeObservation": "env.normalise_obs=true", "NormalizeReward": "env.normalise_reward=0.99"}


def _call(name: str, settings: Mapping[str, Any], shown: str) -> Wrap:
    home, _, last = name.rpartition(".")
    module = imports.named(home, shown) if home else gymnasium.wrappers
    call = getattr(module, last, None)
    of_home = getattr(call, "__module__", "").partition(".")[0] == module.__name__.partition(".")[0]
    if not (of_home and isinstance(call, type) and issubclass(call, gymnasium.Wrapper)):
        names = [key for key, x in vars(module).items() if isinstance(x, type) and issubclass(x, gymnasium.Wrapper)]
        raise UserError(f"{shown}: {module.__name__} has no wrapper {last}{nearest(last, names)}")
    if call is getattr(gymnasium.wrappers, last, None) and (ours := KEPT.get(last)):
        raise UserError(
            f"{shown}: its statistics would be lost with the run, and change what an evaluation measures; {ours} does "
            "the same, keeps them in the checkpoint, and freezes them in evaluations"
        )
    try:
        inspect.signature(call).bind(None, **settings)
    except TypeError as error:
        takes = [key for key in inspect.signature(call).parameters if key != "env"]
        raise UserError(f"{shown}: {error}; it takes {', '.join(takes) or 'nothing'}") from error
    wrap: Wrap = call
    return wrap


def tried(env: gymnasium.Env, wrappers: Sequence[tuple[str, Wrap]], id: str) -> int | None:
    """Wraps `env`, resets it, and closes it; returns the time limit that the wrappers set. Raises UserError.

    An error before the first wrapper is not the wrappers' fault.
    """
    limits = []
    try:
        env.reset(seed=0)
        for shown, wrap in wrappers:
            try:
                env = wrap(env)
                env.reset(seed=0)
            except Exception as error:
                words = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")[:200]
                seen = env.observation_space
                hint = "" if isinstance(seen, spaces.Box | spaces.Discrete) else _advice(env, seen)
                raise UserError(f"{shown} does not fit env.id={id} ({words}){hint}") from error
            if isinstance(env, gymnasium.wrappers.TimeLimit):
                limits.append(env._max_episode_steps)
    finally:
        env.close()
    return min(limits, default=None)


# -- what the agents here can take


def check(env: gymnasium.Env, id: str) -> None:
    """Raises UserError, with the wrapper that would help, where actions or observations are of another kind."""
    actions, seen = env.action_space, env.observation_space
    if not isinstance(actions, spaces.Discrete):
        can = isinstance(actions, spaces.Box) and hasattr(gymnasium.wrappers, "DiscretizeAction")
        hint = "; 'env.wrappers=[{DiscretizeAction: {bins: 5}}]' makes them so" if can else ""
        raise UserError(
            f"env.id={id} is refused: its actions are {one_line(actions)}, and the agents here need discrete ones{hint}"
        )
    if not isinstance(seen, spaces.Box | spaces.Discrete):
        hint = _advice(env, seen)
        raise UserError(f"env.id={id} is refused: observations {one_line(seen)} are neither a Box nor a Discrete{hint}")


def _advice(env: gymnasium.Env, seen: spaces.Space) -> str:
    """The wrapper that turns them into a Box, as one would type it."""
    if type(env.unwrapped).__module__.startswith("minigrid."):
        return "; choose 'env.wrappers=[{_target_: minigrid.wrappers.ImgObsWrapper}]'"
    if _is_flat(seen):
        return "; choose env.wrappers=[FlattenObservation]"
    if isinstance(seen, spaces.Dict) and (keys := [key for key, x in seen.items() if _is_flat(x)]):
        kept = f"{{FilterObservation: {{filter_keys: [{', '.join(keys)}]}}}}"
        return f"; choose {pasted(f'env.wrappers=[{kept}, FlattenObservation]')}"
    return "; a wrapper of yours, named in env.wrappers, can make them a Box"


def _is_flat(seen: spaces.Space) -> bool:
    """Whether FlattenObservation takes it: custom spaces may claim to be what they are not."""
    try:
        return seen.is_np_flattenable and isinstance(spaces.flatten_space(seen), spaces.Box)
    except (NotImplementedError, TypeError):
        return False
