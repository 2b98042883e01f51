"""From a command line to what it trains: a run, or a study of many."""

import math
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from rl_lab.core import conf_dir, locks
from rl_lab.core.errors import UserError, counted, pasted
from rl_lab.core.launching.arguments import (
    check_place,
    checked,
    forcing,
    number_of_values,
    split,
)
from rl_lab.core.launching.composition import parsed, quoted
from rl_lab.core.launching.execution import begin, finished, go_on
from rl_lab.core.launching.explain import plain_errors
from rl_lab.core.launching.named import runs_below
from rl_lab.core.launching.patches import composed_once, lazy_help
from rl_lab.core.launching.rehearsal import rehearsal
from rl_lab.core.provenance import revision
from rl_lab.core.studies.jobs import Value, run_job
from rl_lab.core.studies.launcher import recording
from rl_lab.core.studies.report import account
from rl_lab.core.studies.study import Study

MANY = 20  # jobs whose settings take so long to compose that one would wonder


def train(
    prog: str,
    root: str,
    arguments: list[str],
    study: Study | None = None,
    begun: Callable[[Path], object] = lambda folder: None,
) -> int:
    """Runs the loop of the composed config in a new folder, of which `begun` is told, or resumes the run that `run=`
    names.

    Of several jobs it keeps a study, a new one or the `study` that goes on. Returns the exit code.
    """
    folders, overrides = split(arguments)
    if len(folders) > 1:
        one = pasted(f"run={folders[0]}")
        raise UserError(f"{prog} train resumes one run at a time, not {len(folders)}; name one: {one}")
    sys.argv = [f"{prog} train", *arguments]
    if folders:
        return resume(prog, root, folders[0], overrides)
    overrides, forced = forcing(checked(overrides, root), root)
    source = conf_dir()
    ours = study is None or study.ours
    plain = partial(plain_errors, source, root, overrides, trusted=ours)

    @hydra.main(version_base="1.3", config_path=str(source), config_name=root)
    def main(cfg: DictConfig) -> None:
        try:
            with plain():
                check_place(HydraConfig.get().overrides.hydra, several=False)
                begun(Path(HydraConfig.get().runtime.output_dir))
                begin(cfg, prog, root)
        except (UserError, ConnectionError) as error:  # Hydra would announce it once more
            mistakes.append(error)
        finally:
            locks.remove_empty(Path(HydraConfig.get().runtime.output_dir))

    mistakes: list[Exception] = []
    sys.argv = [f"{prog} train", *overrides]

    def starting(cfg: DictConfig) -> Study:
        check_place(cfg.hydra.overrides.hydra, several=True)
        if cfg.hydra.launcher.get("n_jobs") == 0:
            raise UserError("hydra.launcher.n_jobs=0 must be at least 1, or -1 for as many jobs as there are cores")
        if (jobs := _number_of_jobs(cfg)) >= MANY:
            print(f"composing the settings of {jobs:,} jobs before the first begins", file=sys.stderr, flush=True)
        found = study or Study.begin(Path(cfg.hydra.sweep.dir), _study_name(cfg), prog, arguments, revision())
        launching.enter_context(found.launching())
        return found

    once = nullcontext() if {"-m", "--multirun"} & set(overrides) else composed_once()
    task, rehearsed = partial(job, prog=prog, root=root, ours=ours), partial(rehearsal, prog=prog, root=root)
    with ExitStack() as launching, recording(starting, task, rehearsed, forced) as studies, once:
        code = _counted(prog, studies, plain, main, kept=study is not None)
    if mistakes:
        raise mistakes[0]
    return code


def resume(prog: str, root: str, folder: Path, changes: list[str]) -> int:
    """Resumes the run in a folder. Returns the exit code, raises UserError."""
    if flags := [change for change in changes if change.startswith("-")]:
        raise UserError(f"{flags[0]} is for a new run; a resumed run takes settings such as loop.total_steps=100_000")
    with plain_errors(conf_dir(), root, changes):
        if not (folder / "config.yaml").exists() and (inside := runs_below(folder, f"{root}_lab")) != [folder]:
            if (folder / "study.yaml").is_file():
                command = f"{prog} study resume {pasted(str(folder))}"
                raise UserError(f"{folder} is a study, and no run; {command} runs what is missing")
            holds, one = counted(len(inside), "runs"), pasted(f"run={inside[0]}")
            raise UserError(f"{folder} is not a run folder: it holds {holds}; name one: {one}")
        go_on(folder, changes, prog, root)
    return 0


def train_together(prog: str, root: str, arguments: list[str]) -> int:
    """`train` in this process, or in each of those that torchrun started, in the folder that the first one opens."""
    if "RANK" not in os.environ:
        return train(prog, root, arguments)
    from rl_lab.core import distributed

    with distributed.joined():
        if {"-m", "--multirun"} & set(arguments) or any(a.startswith("study=") for a in arguments):
            raise UserError(
                "torchrun is for one run in several processes, -m and study= are for several runs: "
                "leave out one of them"
            )
        if distributed.rank():
            told = distributed.told()
            arguments = arguments if split(arguments)[0] else [*arguments, f"hydra.run.dir={quoted(told)}"]
        return train(prog, root, arguments)


def _counted(prog: str, studies: list[Study], plain: Callable[..., Any], main: Callable[..., Any], kept: bool) -> int:
    """The exit code of `main`, and what came of the jobs if it launched any; a study of mistakes alone, before any run
    began, leaves no folder behind unless it is to be `kept`.
    """
    try:
        with plain(), lazy_help():
            main()
    except KeyboardInterrupt:
        for study in studies:
            if not study.about["jobs"] and not kept:  # their settings were still being composed
                study.forget()
                continue
            for found in study.jobs():
                locks.remove_empty((study.folder / (found.folder or "")).resolve())
            print(account(study, prog)[0], file=sys.stderr)
        raise
    except Exception as error:
        for study in studies:
            refused = isinstance(error, UserError) and study.is_all("waiting", "mistake")
            if not kept and (refused or not study.about["jobs"]):
                study.forget()
        raise
    codes = []
    for study in studies:
        for found in study.jobs():  # now that no other job makes a folder beside
            locks.remove_empty((study.folder / (found.folder or "")).resolve())
        forgotten = not kept and study.came_to_nothing
        words, code = account(study, prog, forgotten)
        print(words, file=sys.stderr)
        if forgotten:
            study.forget()
        codes.append(code)
    return max(codes, default=0)


def resume_study(prog: str, root: str, arguments: list[str]) -> int:
    """`study resume <folder>`: launches what the study misses, by its own command line; hydra.* may be given anew."""
    folders, overrides = split(arguments)
    if len(folders) != 1:
        raise UserError(f"{prog} study resume resumes one study: name its folder, runs/studies/<name>/<time>")
    study = Study(folders[0].resolve())
    if study.prog != prog and study.prog.endswith("-lab"):
        raise UserError(f"{folders[0]} is a study of {study.prog}: {study.prog} study resume {pasted(str(folders[0]))}")
    overrides = [o for o in overrides if o != "tracker=none" or o not in study.about["arguments"]]
    if fixed := [o for o in overrides if not o.lstrip("~+").startswith(("hydra.", "hydra/", "-"))]:
        raise UserError(f"{fixed[0]} would make it another study; a resumed study takes hydra.* settings alone")
    replayed = study.replayed(any(o.startswith("hydra/launcher=") for o in overrides))
    if left := [a for a in study.about["arguments"] if a not in study.replayed()]:
        print(f"not repeated from study.yaml: {' '.join(left)}; type it again to use it", file=sys.stderr)
    for path in () if study.ours else (*study.root.glob("*"), *study.root.glob("*/*")):
        if path.is_symlink() and path.parent != study.root / "wandb":  # in there W&B makes links of its own
            raise UserError(
                f"{path} is a link, and jobs of this study might write through it; put the folder itself there"
            )
    if study.directory:
        os.chdir(study.directory)
    study.stop(False)
    return train(prog, root, [*replayed, *overrides, f"hydra.sweep.dir={quoted(str(study.root))}"], study)


def job(
    cfg: DictConfig,
    prog: str,
    root: str,
    ours: bool,  # whether this user typed the settings, or a study.yaml that may be a stranger's names them
    study: Study,
    launcher: int,
) -> float | None:
    """One job of a study, in any process; returns the value that a search optimises."""
    chosen = HydraConfig.get()
    where = Path(study.about["directory"]) if ours else study.directory
    if where and where.is_dir():
        os.chdir(where)  # a worker may have begun elsewhere
    folder, overrides = Path(chosen.runtime.output_dir), list(chosen.overrides.task)
    sys.argv = [f"{prog} train", *overrides]  # what would do this job alone

    def work(begun: bool) -> Value:
        with plain_errors(conf_dir(), root, overrides, trusted=ours):
            if begun and (folder / "config.yaml").exists():
                return finished(folder) or go_on(folder, [], prog, root)
            return begin(cfg, prog, root, trusted=ours)

    number = int(chosen.job.name.rpartition("-")[2])
    value = run_job(study, number, folder, prog, work, launcher)
    locks.remove_empty(folder, above=0)
    return value and value[1]


def _number_of_jobs(cfg: DictConfig) -> int:
    """What a sweep over given values comes to; 0 for a search, which finds its values one after another."""
    if not str(cfg.hydra.sweeper._target_).endswith(".BasicSweeper"):
        return 0
    stated = [f"{key}={values}" for key, values in (cfg.hydra.sweeper.params or {}).items()]
    chosen = {setting.key_or_group: setting for setting in map(parsed, [*stated, *cfg.hydra.overrides.task])}
    return math.prod(map(number_of_values, chosen.values()))


def _study_name(cfg: DictConfig) -> str:
    """The ready study, or the experiment if it is one for all jobs."""
    choices = cfg.hydra.runtime.choices
    return choices.get("study") or choices.get("experiment") or "sweep"


def complete(prog: str, root: str, arguments: list[str]) -> None:
    """Hydra's own tab completion over conf/."""
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(lambda cfg: None)
    sys.argv = [prog, *arguments]
    with lazy_help():
        main()
