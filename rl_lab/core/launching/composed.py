"""Completes what Hydra composed before it is run, drops what the loop does not take, and checks the rest."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rl_lab.core import calls, conf_dir, reading
from rl_lab.core.checking import NoSuchSetting
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.launching.composition import GROUPS, as_dict, base, groups, key_of, loops, parts_of, texts, world_key
from rl_lab.core.parts import Parts
from rl_lab.core.settings import folder_name


def settle(cfg: DictConfig, prog: str, root: str, trusted: bool = True) -> None:
    """Completes what Hydra composed just now, and checks its names; imports calls only of a `trusted` command. Raises
    UserError.
    """
    choices, typed = HydraConfig.get().runtime.choices, HydraConfig.get().overrides.task
    if trusted:
        drop_replaced(cfg, typed)
    check_root(cfg, root)
    check_loop(prog, choices)
    check_planner(choices, typed)
    if trusted:
        check_experiment(cfg, choices, typed)
    check_heeded(cfg, typed, parts_of(prog))
    complete_eval_env(cfg, choices)
    keep_what_runs(cfg, choices, typed)
    check_protocol(cfg, choices)


def drop_replaced(cfg: DictConfig, typed: Sequence[str]) -> None:
    """Where another `_target_` was typed, it takes the place of a call, and of the settings that only that one had."""
    keys = {*map(key_of, typed)}
    for path in sorted(key.removesuffix("._target_") for key in keys if key.endswith("._target_")):
        node = OmegaConf.select(cfg, path)
        if not isinstance(node, DictConfig):
            continue
        known = calls.parameters(calls.called(node, path), path)
        OmegaConf.set_struct(node, False)
        for key in [*map(str, node)]:
            own = f"{path}.{key}"
            if not (key.startswith("_") or key in known or any(k == own or k.startswith(f"{own}.") for k in keys)):
                del node[key]


def check_root(cfg: DictConfig, root: str, *noted: str) -> None:
    """Refuses a misspelt key at the top of a YAML, which nothing would read; `noted` are keys of run folders."""
    top = base(root)
    known = {str(k) for k in top if k not in ("defaults", "hydra")} | {"choices", *noted}
    known |= {*groups(root)} - {"experiment"}
    for key in "checkpoint", "loop", "tracker":
        if not isinstance(cfg.get(key), DictConfig):
            raise UserError(f"{key}={cfg.get(key)} must be a mapping of settings")
    for path, node, allowed in (("", cfg, known), ("checkpoint.", cfg.checkpoint, {*map(str, top.checkpoint)})):
        for key in map(str, node):
            if key not in allowed:
                raise NoSuchSetting(path + key, nearest(path + key, (path + k for k in allowed)))


def check_loop(prog: str, choices: dict[str, Any]) -> None:
    """Refuses a loop of the other lab: both labs' loops are in one folder."""
    chosen = choices.get("loop")
    if (conf_dir() / f"loop/{chosen}.yaml").is_file() and chosen not in (own := loops(parts_of(prog))):
        raise UserError(f"loop={chosen} is not for {prog}; leave it out, or choose from {', '.join(own)}")


def check_planner(choices: dict[str, Any], typed: Sequence[str]) -> None:
    """Refuses a planner in an experiment about learning, which sets what planning does not have."""
    experiment, planner = choices.get("experiment"), choices.get("planner")
    path = conf_dir() / f"experiment/{experiment}.yaml"
    chosen = {setting.lstrip("+").partition("=")[0] for setting in typed}
    plans = planner not in (None, "null") and "planner" in chosen
    if plans and path.is_file() and "override /planner" not in path.read_text():
        raise UserError(
            f"experiment={experiment} is about learning, and planner={planner} learns nothing; leave the "
            f"experiment out: planner={planner} env={choices.get('env')}"
        )


def check_experiment(cfg: DictConfig, choices: dict[str, Any], typed: Sequence[str]) -> None:
    """Refuses an agent, model or world beside an experiment that sets for its own what that one does not have."""
    path = conf_dir() / f"experiment/{choices.get('experiment')}.yaml"
    chosen = {setting.lstrip("+").partition("=")[0] for setting in typed}
    for text in texts(path) if path.is_file() else []:
        settings: Any = OmegaConf.create(text)
        for group in chosen & {*GROUPS[1:]} & {*map(str, settings)}:
            node = cfg.get(group)
            if not isinstance(node, DictConfig) or "_target_" not in node:
                continue
            known = calls.parameters(calls.called(node, group), group)
            if any(p.kind is p.VAR_KEYWORD for p in known.values()):
                continue
            if other := [k for k in map(str, settings[group]) if k not in known and f"{group}.{k}" not in chosen]:
                raise UserError(
                    f"experiment={path.stem} sets {group}.{other[0]}, which {group}={choices[group]} does not have; "
                    f"leave the experiment out: {_parts(cfg, choices)}"
                )


def _parts(cfg: DictConfig, choices: dict[str, Any]) -> str:
    """Who learns, plans or models, and what, as it may be typed."""
    chosen = {group: choices.get(group) for group in ("agent", "planner", "model", "env", "data")}
    words = [f"{group}={name}" for group, name in chosen.items() if name not in (None, "null") and group in cfg]
    if "env" in cfg and (key := world_key(str(choices["env"]), cfg.env)):
        words.append(f"env.{key}={cfg.env[key]}")
    return " ".join(words)


def complete_eval_env(cfg: DictConfig, choices: dict[str, Any]) -> None:
    """An eval_env without _target_ is `env` but for the settings it has: any other becomes a reference, ${env.size}.

    It begins as {}, and not as ${env}: a mapping that is merged into a reference takes the place of all that it refers
    to, as it stood then. Raises UserError where `env` has no such setting.
    """
    OmegaConf.set_struct(cfg, False)
    changes, env = cfg.loop._get_node("eval_env"), cfg.get("env")
    if isinstance(changes, DictConfig) and changes == {}:
        cfg.loop.eval_env = "${env}"
        return
    if not isinstance(changes, DictConfig) or "_target_" in changes or not isinstance(env, DictConfig):
        return
    known = inspect.signature(calls.called(env, "env")).parameters
    for key in map(str, changes):
        if key not in known:
            raise UserError(
                f"no setting 'loop.eval_env.{key}': env={choices.get('env')} has no {key}; choose another env or loop, "
                "or leave it out"
            )
    cfg.loop.eval_env = {key: f"${{env.{key}}}" for key in map(str, env)} | as_dict(changes)


def keep_what_runs(cfg: DictConfig, choices: dict[str, Any], typed: Sequence[str]) -> None:
    """Drops the groups that the chosen loop does not name (a planner's run has no agent) and notes the choices.

    Raises UserError where a setting of such a group was typed: it would be ignored.
    """
    OmegaConf.set_struct(cfg, False)
    named = {*re.findall(r"\$\{(\w+)\}", str(as_dict(cfg.loop)))}
    for group in GROUPS[1:]:
        if group in named or group not in cfg:
            continue
        cfg.pop(group)
        for override in typed:
            key, _, value = override.lstrip("+~").partition("=")
            if re.split(r"[./@]", key)[0] == group and value != "null":
                raise UserError(f"{override} would be ignored: {who(group, choices)} takes no {group}; leave it out")
    cfg.choices = {g: choices[g] for g in GROUPS if choices.get(g) and (g in cfg or g == "experiment")}


def who(group: str, choices: dict[str, Any]) -> str:
    """Whoever was chosen that takes no such group: a loop, or the planner that a loop is of."""
    planner = choices.get("planner")
    return f"loop={choices.get('loop')}" if group == "planner" or planner in (None, "null") else f"planner={planner}"


def check_graphs(resolved: dict[str, Any], parts: Parts) -> None:
    """Raises UserError where the loop cannot use CUDA graphs."""
    from rl_lab.core import distributed

    if resolved.get("compile", "none") == "graphs":
        if resolved["loop"]["_target_"] not in parts.captures:
            theirs = any(target.startswith("stable_baselines3.") for target in calls.targets(resolved["loop"]))
            raise UserError("compile=graphs is for loop=train; leave it out" + ", or choose that loop" * (not theirs))
        if distributed.size() > 1:
            raise UserError("compile=graphs is for one process, and torchrun started more; leave it out")


def precision_of(resolved: dict[str, Any], parts: Parts) -> str:
    """fp32 where no network of the run computes in anything else; of one that is not ours nothing is known.

    Raises UserError where bf16 was chosen all the same.
    """
    precision, called = str(resolved.get("precision", "fp32")), set(calls.targets(resolved["loop"]))
    if precision == "fp32" or called & {*parts.reduced} or called - {*parts.allowed}:
        return precision
    if precision == "bf16":
        raise UserError("precision=bf16 would be ignored, as no network of this run computes in bfloat16: those of "
                        "agent/network=cnn and nature_cnn do; leave it out")  # fmt: skip
    return "fp32"


ABSENT = "???"


def check_heeded(cfg: DictConfig, typed: Sequence[str], parts: Parts) -> None:
    """Raises UserError where a setting was typed in whose place another stands, or that needs another."""
    for override in typed:
        setting = key_of(override)
        other, value = parts.needs.get(setting, ("", None))
        if not other or not OmegaConf.select(cfg, setting):  # what is off is not missed
            continue
        found = OmegaConf.select(cfg, other, default=ABSENT)
        if found == ABSENT:
            raise UserError(f"{override} would be ignored: it needs {other}, and here there is none; leave it out")
        if (not value(found)) if callable(value) else (found != value):
            shown, wanted = "false" if found is False else found, "..." if callable(value) else value
            raise UserError(
                f"{override} would be ignored, as {other}={shown}; leave it out, or type {other}={wanted} too"
            )
    for setting, others in parts.instead.items():
        value = OmegaConf.select(cfg, setting)
        for override in typed:
            if value is not None and key_of(override) in others:
                raise UserError(f"{override} would be ignored, as {setting}={value} stands in its place; leave it out, "
                                f"or type {setting}=null too")  # fmt: skip


def check_protocol(cfg: DictConfig, choices: dict[str, Any]) -> None:
    """Refuses a protocol in a world that lacks the settings it sets."""
    protocol, env = choices.get("protocol"), cfg.get("env")
    if protocol in (None, "null") or not isinstance(env, DictConfig) or "_target_" not in env:
        return
    known = inspect.signature(calls.called(env, "env")).parameters
    path = conf_dir() / f"protocol/{protocol}.yaml"
    protocol_file: Any = OmegaConf.load(path) if path.is_file() else {}
    wanted = protocol_file.get("env", {})
    if unknown := [key for key in wanted if key not in known]:
        raise UserError(
            f"protocol={protocol} sets env.{unknown[0]}, and env={choices.get('env')} has no such setting; "
            "leave the protocol out, or choose env=atari"
        )


def check_values(cfg: DictConfig) -> None:
    """Checks the settings at the top, which belong to no call."""
    from rl_lab.core import settings, threads

    cfg.name = folder_name(cfg.name)
    cfg.device = settings.conform("device", cfg.get("device", "auto"), str)
    cfg.seed = settings.conform("seed", cfg.get("seed", 1), settings.Natural)
    cfg.threads = threads.setting(cfg.get("threads", 1))
    if "precision" in cfg:
        cfg.precision = settings.conform("precision", cfg.precision, settings.Precision)
    if "compile" in cfg:
        cfg.compile = settings.conform("compile", cfg.compile, settings.Compile)
    checkpoint = cfg.get("checkpoint")
    if not isinstance(checkpoint, DictConfig):
        raise UserError("checkpoint must be a mapping of its settings, such as checkpoint.every=60")
    hints: dict[str, Any] = {"every": settings.Size, "max_memory_gb": settings.Size, "upload": bool}
    for key, hint in hints.items():
        checkpoint[key] = settings.conform(f"checkpoint.{key}", checkpoint.get(key), hint)


def written_out(cfg: DictConfig) -> DictConfig:
    """References between settings stay, other interpolations (of a variable, of the time) become what they say now."""

    def of(node: Any) -> Any:
        keys: Any = node if isinstance(node, DictConfig) else range(len(node))
        values: dict[Any, Any] = {}
        for key in keys:
            raw = node._get_node(key)
            text = raw._value() if OmegaConf.is_interpolation(node, key) else None
            if text is not None:
                only_names = not reading.REFERENCE.sub("", text).count("${") and "\\$" not in text
                values[key] = text if only_names else node[key]
            elif OmegaConf.is_missing(node, key):
                values[key] = "???"
            else:
                values[key] = of(node[key]) if OmegaConf.is_config(node[key]) else node[key]
        return values if isinstance(node, DictConfig) else list(values.values())

    written: DictConfig = OmegaConf.create(of(cfg))
    return written
