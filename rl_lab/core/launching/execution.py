"""One run of a composed config: checked against the signatures, opened in its folder, and carried out."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rl_lab.core import files, imports, metrics, outcome, ownership, permissions, reading
from rl_lab.core.errors import NoRoom, NothingLeft, UserError, brief, counted, pasted
from rl_lab.core.launching.changes import altered, changed, typed
from rl_lab.core.launching.composed import (
    check_graphs,
    check_heeded,
    check_root,
    check_values,
    precision_of,
    settle,
    written_out,
)
from rl_lab.core.launching.composition import as_dict, find_wanted, parts_of, world_key
from rl_lab.core.parts import Parts
from rl_lab.core.progress import duration
from rl_lab.core.studies.jobs import Value

if TYPE_CHECKING:
    from rl_lab.core.run import Run


def begin(cfg: DictConfig, prog: str, root: str, trusted: bool = True) -> Value:
    """A new run of what Hydra composed, in the folder that it chose; `trusted`: typed just now by the user."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with _held(folder) as lock:
        if trusted:
            find_wanted(cfg, parts_of(prog))
        if not _follows():
            _check_new(prog, folder)
        settle(cfg, prog, root, trusted)
        return _carry_out(written_out(cfg), folder, prog, None if trusted else parts_of(prog), lock, _beside())


def go_on(folder: Path, changes: Sequence[str], prog: str, root: str) -> Value:
    """Resumes a run folder with `changes` to its settings. Its config is data that a stranger may have written."""
    from rl_lab.core import checking

    if (folder / "config.yaml").exists() and not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written to, and a run goes on in its own folder; copy it to where you may "
                        f"write, then {prog} train run=<the copy>")  # fmt: skip
    with _held(folder, made=False) as lock:
        for name in "metrics.jsonl", "summary.json", "checkpoint.pt":
            files.inside(folder, name)
        cfg, parts = reading.config(folder, parts_of(prog), typed(changes, parts_of(prog)))
        before = as_dict(cfg)
        with checking.of_folder(folder):
            resolved = reading.resolved(before)
        reading.refuse(resolved, parts)
        cfg = changed(cfg, changes)
        found = altered(before, as_dict(cfg))
        with checking.of_folder(folder, found):
            check_root(cfg, root, "processes")
        check_heeded(cfg, changes, parts_of(prog))
        if "tracker" not in cfg:
            raise UserError(f"{folder}/config.yaml names no tracker; give one: tracker=none or tracker=wandb")
        others = " ".join(changes) if found else ""
        return _carry_out(cfg, folder.resolve(), prog, parts, lock, others=others, found=found)


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
    except BaseException:
        if made:
            files.remove_empty(folder, above=0)  # a mistake found before the first step leaves no litter behind
        raise
    finally:
        if lock is not None:
            locks.let_go(lock)


def _beside() -> int:
    """How many runs share this machine, this one included: the jobs of a study that are started together."""
    chosen = HydraConfig.get()
    return int(chosen.launcher.get("n_jobs") or 1) if chosen.mode == RunMode.MULTIRUN else 1


def _carry_out(
    cfg: DictConfig,
    folder: Path,
    prog: str,
    parts: Parts | None,
    lock: int | None,
    beside: int = 1,
    others: str = "",  # settings with which a run goes on other than before, as they were typed
    found: frozenset[str] = frozenset(),  # and those of the config that they change
) -> Value:
    """Builds exactly what was checked: after `refuse` nothing is resolved, set or composed."""
    from rl_lab.core import calls, checking, devices, distributed, room, settings

    exact = parts_of(prog).exact
    device = devices.chosen(
        settings.conform("device", cfg.get("device", "auto"), str), config=as_dict(cfg), exact=exact
    )
    if device == "cpu":
        room.bound_memory()
    if parts is not None:
        reading.refuse(reading.resolved(as_dict(cfg) | {"device": device}), parts)
    shown = Path(os.path.relpath(folder))
    with checking.of_folder(shown, found) if (folder / "config.yaml").exists() else nullcontext():
        checking.check(cfg.loop, "loop")
        checking.check(cfg.tracker, "tracker")
        check_values(cfg)
        written = as_dict(cfg)
        resolved = reading.resolved(written | {"device": device})
    if parts is not None:
        reading.refuse(resolved, parts)
    check_graphs(resolved, parts_of(prog))
    wanted = precision_of(resolved, parts_of(prog))
    if not distributed.rank():
        distributed.told(str(folder))
    wants = [want.module for want in permissions.of(resolved, parts_of(prog))]
    sealed = imports.placed(wants) if wants or reading.places(resolved.get("data")) else None
    run, words = _open_run(written, resolved, folder, lock, sealed, beside, wanted, found)
    try:
        with run:
            if wants and ownership.key(made=True) is None:
                run.say(f"this run imports {', '.join(dict.fromkeys(wants))}, and there is no place for a key that "
                        "marks its folder as yours; resuming and evaluating it will ask you to allow that")  # fmt: skip
            with run.at_once(), distributed.in_turn(), _fitting(folder, parts is not None):
                loop = hydra.utils.instantiate(resolved["loop"], _partial_=True)
            told = [f"from here on: {others}"] * bool(others)
            held = run.progress.opening  # what its parts said while they were built
            run.progress.opening = [*([] if run.folder.before else [_begun(resolved, shown)]), *told, *words, *held]
            loop(run=run)
    except KeyboardInterrupt:
        again = f" under torchrun, again {distributed.size()} times," if distributed.size() > 1 else ""
        resumed = f"stopped; {prog} train {pasted(f'run={shown}')}{again} resumes it"
        run.say(resumed if run.folder.begun else "stopped before it began")
        raise
    except NothingLeft as ended:
        if others:
            raise UserError(f"{shown} has finished, and {others} would change nothing: {ended}") from None
        run.progress.opening = [f"nothing left to do: {ended}"]
        run.final = dict(run.folder.before.get("final") or {})
    except NoRoom as full:
        again = f"{prog} train {pasted(f'run={shown}')} resumes it" if run.folder.begun else "start it again"
        raise UserError(f"{full}, then {again}") from full
    spent = run.seconds if run.state == "finished" else run.folder.before.get("seconds") or 0.0
    took, own = f"{counted(run.step, run.unit)} in {duration(spent)}", parts_of(prog)
    then = own.then.get(resolved["loop"]["_target_"], own.then[""])
    if own.films and not calls.locate(own.films)(loop.keywords.get("env")):
        then = tuple(command for command in then if " render " not in command)
    for line in outcome.lines(shown, run.final, took, then, run.seed):
        run.say(line)
    return objective(run.final)


def _begun(resolved: dict[str, Any], folder: Path) -> str:
    """`agent=dqn env=four_rooms loop.total_steps=200_000: runs/dqn_four_rooms/<time>_seed0`, as it may be typed."""
    what = {group: name for group, name in (resolved.get("choices") or {}).items() if group != "experiment"}
    if "env" in what and (key := world_key(what["env"], resolved["env"])):
        what[f"env.{key}"] = resolved["env"][key]
    if (epochs := resolved["loop"].get("epochs")) is not None:
        what["loop.epochs"] = epochs
    elif total := resolved["loop"].get("total_steps"):
        what["loop.total_steps"] = f"{total:_}"
    return " ".join(f"{setting}={value}" for setting, value in what.items()) + f": {folder}"


@contextmanager
def _fitting(folder: Path, doubted: bool) -> Iterator[None]:
    """In a folder that a stranger may have written, parts that do not fit together are the stranger's mistake."""
    try:
        yield
    except hydra.errors.InstantiationException as error:
        if not doubted or isinstance(error.__cause__, UserError):
            raise
        raise UserError(
            f"{folder}/config.yaml names parts that do not fit together ({brief(error.__cause__ or error)})"
        ) from error


def _follows() -> bool:
    """Whether this process is a rank that another one leads."""
    from rl_lab.core import distributed

    return distributed.rank() > 0


def objective(final: dict[str, float]) -> Value:
    """The figure that a search optimises, with its name, of a run's last ones."""
    name = metrics.objective(final)
    return None if name is None else (name, final[name])


def finished(folder: Path) -> Value:
    """The result of a run that had ended before its end was noted."""
    from rl_lab.core import folders

    summary = folders.summary(folder)
    return objective(summary.get("final", {})) if summary.get("state") == "finished" else None


def _check_new(prog: str, folder: Path) -> None:
    named = "hydra.sweep.subdir" if HydraConfig.get().mode == RunMode.MULTIRUN else "hydra.run.dir"
    if (folder / "config.yaml").exists():
        raise UserError(
            f"{folder} holds a run already; {prog} train {pasted(f'run={folder}')} resumes it, or choose another "
            f"{named}"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{named}={folder} is not empty; choose a new folder")


def _open_run(
    written: dict[str, Any],
    resolved: dict[str, Any],
    folder: Path,
    lock: int | None,
    places: dict[str, str] | None,
    beside: int,
    wanted: str,  # precision
    found: frozenset[str],  # settings that are not those of before
) -> tuple["Run", list[str]]:
    """And what there is to say of how it computes, once its parts are built."""
    import torch

    from rl_lab.core import distributed, folders, graphs, precision, room, run, threads

    room.keep_freed_memory()
    order = ["name", "seed", "choices"]
    written = {k: written[k] for k in order if k in written} | {k: v for k, v in written.items() if k not in order}
    processes = {"processes": distributed.size()} if distributed.size() > 1 else {}
    torch.set_num_threads(threads.kept(resolved["threads"]))
    names = {"name": resolved["name"], **(resolved.get("choices") or {}), "seed": resolved["seed"]}
    references = [
        key
        for key, value in written["loop"].items()
        if str(value[0] if isinstance(value, list) and value else value).startswith("${")
    ]
    shown = resolved | {"loop": {k: v for k, v in resolved["loop"].items() if k not in references}}
    checkpoint, text = resolved["checkpoint"], OmegaConf.to_yaml(OmegaConf.create(written | processes))
    if len(text) > reading.LARGEST:
        raise UserError(
            f"the settings have {len(text):,} characters, and a run folder's config.yaml holds at most "
            f"{reading.LARGEST:,}; keep a large map in a file: env.mdp.map=my.txt"
        )
    reduced = precision.choose(wanted, torch.device(resolved["device"]))
    opened = run.Run(
        folder,
        resolved["seed"],
        resolved["device"],
        names=names,
        config=shown | processes,
        written=text,
        places=places,
        tracker=hydra.utils.instantiate(resolved["tracker"]),
        job_type=resolved["loop"]["_target_"].rsplit(".", 1)[-1],
        checkpoint_every=checkpoint["every"],
        max_memory_gb=checkpoint["max_memory_gb"],
        upload=checkpoint["upload"],
        lock=lock,
        beside=beside,
        altered=frozenset(key for key in found if key.partition(".")[0] not in folders.IGNORED),
    )
    captured = graphs.choose(resolved.get("compile", "none"), torch.device(resolved["device"]))
    words, env = list(filter(None, (reduced, captured))), resolved.get("env")
    if isinstance(env, dict) and env.get("num_threads") == "auto":
        words.append(f"env.num_threads=auto: {threads.of_emulators(env['num_envs'])}")
    return opened, words
