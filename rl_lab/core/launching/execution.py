"""One run of a composed config: held against the signatures, opened in its folder, gone through."""

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rl_lab.core import conf_dir, files, metrics, reading
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.launching.changes import changed
from rl_lab.core.launching.composition import GROUPS, groups, loops, parts_of
from rl_lab.core.parts import Parts
from rl_lab.core.settings import folder_name
from rl_lab.core.studies.jobs import Value

if TYPE_CHECKING:
    from rl_lab.core.run import Run


def begin(cfg: DictConfig, prog: str, root: str, trusted: bool = True) -> Value:
    """A new run of what Hydra composed, in the folder that it chose; `trusted`: typed just now, by whoever runs it."""
    chosen = HydraConfig.get().runtime
    folder = Path(chosen.output_dir)
    with _held(folder) as lock:
        if not _follows():
            _check_new(prog, folder)
        _check_root(cfg, root)
        _check_loop(prog, chosen.choices)
        complete_eval_env(cfg, chosen.choices)
        _keep_what_runs(cfg, chosen.choices, HydraConfig.get().overrides.task)
        _check_protocol(cfg, chosen.choices)
        return _carry_out(_written_out(cfg), folder, prog, None if trusted else parts_of(prog), lock)


def go_on(folder: Path, changes: Sequence[str], prog: str, root: str) -> Value:
    """A run folder taken up again, `changes` made to its settings; whoever wrote it, its config is data."""
    with _held(folder, made=False) as lock:
        for name in "metrics.jsonl", "summary.json", "checkpoint.pt":
            files.inside(folder, name)
        cfg = reading.config(folder, parts_of(prog))
        reading.refuse(reading.resolved(_plain(cfg)), parts_of(prog))
        cfg = changed(cfg, changes)
        _check_root(cfg, root)
        if "tracker" not in cfg:
            raise UserError(f"{folder}/config.yaml names no tracker; give one: tracker=none or tracker=wandb")
        return _carry_out(cfg, folder.resolve(), prog, parts_of(prog), lock)


@contextmanager
def _held(folder: Path, made: bool = True) -> Iterator[int | None]:
    """The folder is locked before anything in it is checked. A process that gets no lock removes nothing."""
    from rl_lab.core import locks

    if _follows():
        yield None
        return
    if not made and not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    lock = locks.of_run(folder.absolute())
    try:
        yield lock
    except Exception:
        if made and not any(folder.iterdir()):
            folder.rmdir()  # a mistake found before the first step leaves no litter behind
        raise
    finally:
        if lock is not None:
            locks.let_go(lock)


def _carry_out(cfg: DictConfig, folder: Path, prog: str, parts: Parts | None, lock: int | None) -> Value:
    """What is looked through is what is built: after `refuse` nothing is resolved, set or composed."""
    from rl_lab.core import checking, devices, distributed, room, settings

    device = devices.chosen(settings.conform("device", cfg.get("device", "auto"), str))
    if device == "cpu":
        room.bound_memory()
    if parts is not None:
        reading.refuse(reading.resolved(_plain(cfg) | {"device": device}), parts)
    checking.check(cfg.loop, "loop")
    checking.check(cfg.tracker, "tracker")
    _check_values(cfg)
    written = _plain(cfg)
    resolved = reading.resolved(written | {"device": device})
    if parts is not None:
        reading.refuse(resolved, parts)
    if not distributed.rank():
        distributed.told(str(folder))
    run = _open_run(written, resolved, folder, lock)
    shown = Path(os.path.relpath(folder))
    try:
        with run:
            with distributed.in_turn(), _fitting(folder, parts is not None):
                loop = hydra.utils.instantiate(resolved["loop"], _partial_=True)
            loop(run=run)
    except KeyboardInterrupt:
        again = f" under torchrun, again {distributed.size()} times," if distributed.size() > 1 else ""
        run.say(f"stopped; {prog} train run={shown}{again} resumes it")
        raise
    run.say(f"finished: {shown}")
    return objective(run.final)


@contextmanager
def _fitting(folder: Path, doubted: bool) -> Iterator[None]:
    """In what a stranger put together, parts that do not fit are the stranger's mistake."""
    try:
        yield
    except hydra.errors.InstantiationException as error:
        if not doubted or isinstance(error.__cause__, UserError):
            raise
        raise UserError(f"{folder}/config.yaml names parts that do not fit together "
                        f"({' '.join(str(error.__cause__ or error).split())[:160]})") from error  # fmt: skip


def _follows() -> bool:
    """Whether this process is a rank that another one leads."""
    from rl_lab.core import distributed

    return distributed.rank() > 0


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    return dict(plain)


def _written_out(cfg: DictConfig) -> DictConfig:
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


def _check_values(cfg: DictConfig) -> None:
    """The settings at the top, which belong to no call."""
    from rl_lab.core import settings

    cfg.name = folder_name(cfg.name)
    cfg.device = settings.conform("device", cfg.get("device", "auto"), str)
    hints: dict[str, Any] = {"seed": settings.Natural, "threads": settings.Threads}
    for key, hint in hints.items():
        cfg[key] = settings.conform(key, cfg.get(key, 1), hint)
    checkpoint = cfg.get("checkpoint")
    if not isinstance(checkpoint, DictConfig):
        raise UserError("checkpoint must be a mapping of its settings, such as checkpoint.every=60")
    hints = {"every": settings.NonNegative, "max_memory_gb": settings.NonNegative, "upload": bool}
    for key, hint in hints.items():
        checkpoint[key] = settings.conform(f"checkpoint.{key}", checkpoint.get(key), hint)


def objective(final: dict[str, float]) -> Value:
    """Of a run's last figures the one that a search optimises, by name."""
    name = metrics.objective(final)
    return None if name is None else (name, final[name])


def finished(folder: Path) -> Value:
    """What a run came to that had ended before its end was noted."""
    from rl_lab.core import folders

    summary = folders.summary(folder)
    return objective(summary.get("final", {})) if summary.get("state") == "finished" else None


def _check_new(prog: str, folder: Path) -> None:
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds a run already; {prog} train run={folder} resumes it, "
                        "or choose another hydra.run.dir")  # fmt: skip
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"hydra.run.dir={folder} is not empty; choose a new folder")


def _open_run(written: dict[str, Any], resolved: dict[str, Any], folder: Path, lock: int | None) -> "Run":
    import torch

    from rl_lab.core import distributed, run

    order = ["name", "seed", "choices"]
    written = {k: written[k] for k in order if k in written} | {k: v for k, v in written.items() if k not in order}
    processes = {"processes": distributed.size()} if distributed.size() > 1 else {}
    torch.set_num_threads(resolved["threads"])
    names = {"name": resolved["name"], **(resolved.get("choices") or {}), "seed": resolved["seed"]}
    references = [
        key
        for key, value in written["loop"].items()
        if str(value[0] if isinstance(value, list) and value else value).startswith("${")
    ]
    shown = resolved | {"loop": {k: v for k, v in resolved["loop"].items() if k not in references}}
    checkpoint, text = resolved["checkpoint"], OmegaConf.to_yaml(OmegaConf.create(written | processes))
    if len(text) > reading.LARGEST:
        raise UserError(f"the settings come to {len(text):,} characters, and a run folder's config.yaml holds at most "
                        f"{reading.LARGEST:,}; keep a large map in a file: env.mdp.map=my.txt")  # fmt: skip
    return run.Run(
        folder, resolved["seed"], resolved["device"], names=names, config=shown | processes,
        written=text,
        tracker=hydra.utils.instantiate(resolved["tracker"]), job_type=resolved["loop"]["_target_"].rsplit(".", 1)[-1],
        checkpoint_every=checkpoint["every"], max_memory_gb=checkpoint["max_memory_gb"], upload=checkpoint["upload"],
        lock=lock,
    )  # fmt: skip


def _keep_what_runs(cfg: DictConfig, choices: dict[str, Any], typed: Sequence[str]) -> None:
    """Drops the groups that the chosen loop does not name (a planner's run has no agent) and notes the choices.

    Raises UserError where a setting of such a group was typed: it would be ignored.
    """
    OmegaConf.set_struct(cfg, False)
    named = {str(v)[2:-1] for v in _plain(cfg.loop).values() if str(v).startswith("${")}
    for group in GROUPS[1:]:
        if group in named or group not in cfg:
            continue
        cfg.pop(group)
        for override in typed:
            key, _, value = override.lstrip("+~").partition("=")
            if re.split(r"[./@]", key)[0] == group and value != "null":
                raise UserError(f"{override} would be ignored: {_who(group, choices)} takes no {group}; leave it out")
    cfg.choices = {g: choices[g] for g in GROUPS if choices.get(g) and (g in cfg or g == "experiment")}


def _who(group: str, choices: dict[str, Any]) -> str:
    planner = choices.get("planner")
    return f"loop={choices.get('loop')}" if group == "planner" or planner in (None, "null") else f"planner={planner}"


def _check_loop(prog: str, choices: dict[str, Any]) -> None:
    """Both labs' loops are in one folder."""
    chosen = choices.get("loop")
    if (conf_dir() / f"loop/{chosen}.yaml").is_file() and chosen not in (own := loops(parts_of(prog))):
        raise UserError(f"loop={chosen} is not for {prog}; leave it out, or choose from {', '.join(own)}")


def complete_eval_env(cfg: DictConfig, choices: dict[str, Any]) -> None:
    """An eval_env without _target_ is `env` but for the settings it has: any other becomes a reference, ${env.size}.

    Raises UserError where `env` has no such setting.
    """
    OmegaConf.set_struct(cfg, False)
    changes, env = cfg.loop._get_node("eval_env"), cfg.get("env")
    if not isinstance(changes, DictConfig) or "_target_" in changes or not isinstance(env, DictConfig):
        return
    from rl_lab.core import calls

    known = inspect.signature(calls.called(env, "env")).parameters
    for key in map(str, changes):
        if key not in known:
            raise UserError(
                f"loop.eval_env.{key} would change env.{key}, and env={choices.get('env')} has no such setting; choose "
                "another env or loop, or leave it out"
            )
    cfg.loop.eval_env = {key: f"${{env.{key}}}" for key in map(str, env)} | _plain(changes)


def _check_protocol(cfg: DictConfig, choices: dict[str, Any]) -> None:
    """A protocol sets what only some worlds have."""
    protocol, env = choices.get("protocol"), cfg.get("env")
    if protocol in (None, "null") or not isinstance(env, DictConfig) or "_target_" not in env:
        return
    from rl_lab.core import calls

    known = inspect.signature(calls.called(env, "env")).parameters
    path = conf_dir() / f"protocol/{protocol}.yaml"
    protocol_file: Any = OmegaConf.load(path) if path.is_file() else {}
    wanted = protocol_file.get("env", {})
    if unknown := [key for key in wanted if key not in known]:
        raise UserError(f"protocol={protocol} sets env.{unknown[0]}, and env={choices.get('env')} has no such setting; "
                        "leave the protocol out, or choose env=atari")  # fmt: skip


def _check_root(cfg: DictConfig, root: str) -> None:
    """A misspelt key at the top of a YAML would otherwise be added and never read."""
    base: Any = OmegaConf.load(conf_dir() / f"{root}.yaml")
    known = {str(k) for k in base if k not in ("defaults", "hydra")} | {"choices"}
    known |= {*groups(root)} - {"experiment"}
    for key in "checkpoint", "loop", "tracker":
        if not isinstance(cfg.get(key), DictConfig):
            raise UserError(f"{key}={cfg.get(key)}: it must be a mapping of settings")
    for path, node, allowed in (("", cfg, known), ("checkpoint.", cfg.checkpoint, {*map(str, base.checkpoint)})):
        for key in map(str, node):
            if key not in allowed:
                raise UserError(f"no setting '{path}{key}'{nearest(path + key, (path + k for k in allowed))}")
