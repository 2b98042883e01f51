"""From a command line to one call: compose the YAML, hold it against the signatures, open the run, call the loop."""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from rl_lab.core.composition import GROUPS, compose, conf_dir, groups, read_config, split
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.explain import plain_errors
from rl_lab.core.provenance import revision
from rl_lab.core.studies.jobs import Value, sit
from rl_lab.core.studies.launcher import recording
from rl_lab.core.studies.report import account
from rl_lab.core.studies.study import Study, runs_of


def train(prog: str, root: str, arguments: list[str], study: Study | None = None) -> int:
    """Runs the loop of the composed config in a new folder, or goes on in the one that `run=` names.

    Of several jobs it keeps a study, a new one or the `study` that goes on. Returns the exit code.
    """
    folders, overrides = split(arguments)
    if len(folders) > 1:
        raise UserError(f"{prog} train resumes one run at a time, not {len(folders)}")
    source, config_name = conf_dir(), root
    if folders:
        read_config(folders[0])
        source, config_name = folders[0].resolve(), "config"
        overrides += [f"hydra.run.dir={_quoted(str(folders[0]))}", "hydra.output_subdir=null",
                      "hydra/job_logging=none", "hydra/hydra_logging=none"]  # fmt: skip
    checked = partial(plain_errors, source, config_name, overrides)

    @hydra.main(version_base="1.3", config_path=str(source), config_name=config_name)
    def main(cfg: DictConfig) -> None:
        try:
            with checked():
                execute(cfg, prog, root, resuming=bool(folders))
        except (UserError, ConnectionError) as error:  # Hydra would announce it once more
            mistakes.append(error)

    mistakes: list[Exception] = []
    sys.argv = [f"{prog} train", *overrides]
    begin = lambda cfg: study or Study.begin(Path(cfg.hydra.sweep.dir), _study_name(cfg), prog, arguments, revision())
    with recording(begin, partial(job, prog=prog, root=root, source=source, ours=study is None)) as studies:
        code = _counted(prog, studies, checked, main)
    if mistakes:
        raise mistakes[0]
    return code


def train_together(prog: str, root: str, arguments: list[str]) -> int:
    """`train` in this process, or in each of those that torchrun started, in the folder that the first one opens."""
    if "RANK" not in os.environ:
        return train(prog, root, arguments)
    from rl_lab.core import distributed

    with distributed.joined():
        if {"-m", "--multirun"} & set(arguments) or any(a.startswith("study=") for a in arguments):
            raise UserError("torchrun is for one run in several processes, -m and study= are for several runs: "
                            "leave out one of them")  # fmt: skip
        if distributed.rank():
            arguments = [*arguments, f"hydra.run.dir={_quoted(distributed.told())}"]
        return train(prog, root, arguments)


def _counted(prog: str, studies: list[Study], checked: Callable, main: Callable) -> int:
    """The exit code of `main`, and what came of the jobs if it launched any."""
    try:
        with checked():
            main()
    except KeyboardInterrupt:
        for study in studies:
            print(account(study, prog)[0], file=sys.stderr)
        raise
    except Exception:
        for study in studies:
            if not study.about["jobs"]:
                study.forget()
        raise
    codes = []
    for study in studies:
        words, code = account(study, prog)
        print(words, file=sys.stderr)
        codes.append(code)
    return max(codes, default=0)


def resume(prog: str, root: str, arguments: list[str]) -> int:
    """`study resume <folder>`: launches what the study misses, by its own command line; hydra.* may be given anew."""
    folders, overrides = split(arguments)
    if len(folders) != 1:
        raise UserError(f"{prog} study resume goes on with one study: name its folder, runs/studies/<name>/<time>")
    study = Study(folders[0].resolve())
    if fixed := [o for o in overrides if not o.lstrip("~+").startswith(("hydra.", "hydra/", "-"))]:
        raise UserError(f"{fixed[0]} would make it another study; a study that goes on takes hydra.* settings alone")
    replayed = study.replayed(any(o.startswith("hydra/launcher=") for o in overrides))
    if left := [a for a in study.about["arguments"] if a not in study.replayed()]:
        print(f"not followed unasked, give it again if it is wanted: {' '.join(left)}", file=sys.stderr)
    if Path(study.about["directory"]).is_dir():
        os.chdir(study.about["directory"])
    study.stop(False)
    return train(prog, root, [*replayed, *overrides, f"hydra.sweep.dir={_quoted(str(study.root))}"], study)


def job(
    cfg: DictConfig,
    prog: str,
    root: str,
    source: Path,
    ours: bool,  # whether the settings were typed just now, or read from a study.yaml that may be a stranger's
    study: Study,
    launcher: int,
) -> float | None:
    """One job of a study, in whatever process; returns what a search goes by."""
    chosen = HydraConfig.get()
    if Path(study.about["directory"]).is_dir():
        os.chdir(study.about["directory"])  # a worker may have begun elsewhere
    folder, overrides = Path(chosen.runtime.output_dir), list(chosen.overrides.task)
    sys.argv = [f"{prog} train", *overrides]  # what would do this job alone

    def work(begun: bool) -> Value:
        with plain_errors(source, root, overrides):
            if begun and (folder / "config.yaml").exists():
                return _finished(folder) or execute(read_config(folder), prog, root, resuming=True)
            return execute(cfg, prog, root, resuming=False, trusted=ours or "_target_" not in " ".join(overrides))

    number = int(chosen.job.name.rpartition("-")[2])
    value = sit(study, number, folder, prog, work, launcher)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    return value and value[1]


def execute(cfg: DictConfig, prog: str, root: str, resuming: bool, trusted: bool = True) -> Value:
    """One run: checked, recorded in its folder, gone through."""
    from rl_lab.core import distributed, settings

    chosen = HydraConfig.get().runtime
    folder = Path(chosen.output_dir)
    try:
        if not resuming:
            if not distributed.rank():
                _check_new(prog, folder)
            _check_root(cfg, root)
            _keep_what_runs(cfg, chosen.choices)
        settings.check(cfg.loop, "loop", trusted=trusted and not resuming)
        settings.check(cfg.tracker, "tracker", trusted=trusted and not resuming)
        for key, hint in {"seed": settings.Natural, "threads": settings.Count}.items():
            cfg[key] = settings.conform(key, cfg[key], hint)
        for key, hint in {"every": settings.NonNegative, "max_memory_gb": settings.NonNegative, "upload": bool}.items():
            cfg.checkpoint[key] = settings.conform(f"checkpoint.{key}", cfg.checkpoint[key], hint)
        if not distributed.rank():
            distributed.told(str(folder))
        run = _open_run(cfg, folder)
        shown = Path(os.path.relpath(folder))
        try:
            with run:
                with distributed.in_turn():
                    loop = hydra.utils.instantiate(cfg.loop, _partial_=True)
                loop(run=run)
        except KeyboardInterrupt:
            again = f" under torchrun, again {distributed.size()} times," if distributed.size() > 1 else ""
            run.say(f"stopped; {prog} train run={shown}{again} goes on")
            raise
        run.say(f"finished: {shown}")
        return objective(run.final)
    except Exception:
        if not distributed.rank() and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # a mistake found before the first step leaves no litter behind
        raise


def objective(final: dict[str, float]) -> Value:
    """Of a run's last figures the one that a search goes by: the return, or else a likelihood."""
    from rl_lab.core.progress import SHOWN

    names = sorted(final, key=lambda name: (not name.startswith("eval/"), name))
    wanted = [name for name in names if name.split("[")[0] in SHOWN]
    return (wanted[0], final[wanted[0]]) if wanted else None


def _finished(folder: Path) -> Value:
    """What a run came to that had ended before its end was noted."""
    summary = json.loads((folder / "summary.json").read_text())
    return objective(summary["final"]) if summary["state"] == "finished" else None


def _check_new(prog: str, folder: Path) -> None:
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} holds a run already; {prog} train run={folder} resumes it, "
                        "or choose another hydra.run.dir")  # fmt: skip
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"hydra.run.dir={folder} is not empty; choose a new folder")


def _study_name(cfg: DictConfig) -> str:
    """The ready study, or the experiment if it is one for all jobs."""
    choices = cfg.hydra.runtime.choices
    return choices.get("study") or choices.get("experiment") or "sweep"


def _open_run(cfg: DictConfig, folder: Path):
    import torch

    from rl_lab.core import distributed, run

    cfg.name = str(cfg.name)
    written = OmegaConf.to_container(cfg, resolve=False) | {"name": cfg.name}
    order = ["name", "seed", "choices"]
    written = {k: written[k] for k in order} | {k: v for k, v in written.items() if k not in order}
    processes = {"processes": distributed.size()} if distributed.size() > 1 else {}
    device = run.device(str(cfg.device))
    cfg.device = device
    torch.set_num_threads(cfg.threads)
    names = {"name": cfg.name, **OmegaConf.to_container(cfg.choices), "seed": cfg.seed}
    resolved = OmegaConf.to_container(cfg, resolve=True)
    references = [k for k, v in written["loop"].items() if str(v[0] if isinstance(v, list) else v).startswith("${")]
    resolved["loop"] = {k: v for k, v in resolved["loop"].items() if k not in references}
    return run.Run(
        folder, cfg.seed, device, names=names, config=resolved | processes,
        written=OmegaConf.to_yaml(OmegaConf.create(written | processes)), tracker=hydra.utils.instantiate(cfg.tracker),
        job_type=cfg.loop._target_.rsplit(".", 1)[-1], checkpoint_every=cfg.checkpoint.every,
        max_memory_gb=cfg.checkpoint.max_memory_gb, upload=cfg.checkpoint.upload,
    )  # fmt: skip


def _keep_what_runs(cfg: DictConfig, choices: dict) -> None:
    """Drops the groups that the chosen loop does not name (a planner's run has no agent) and notes the choices."""
    OmegaConf.set_struct(cfg, False)
    named = {str(v)[2:-1] for v in OmegaConf.to_container(cfg.loop, resolve=False).values() if str(v).startswith("${")}
    for group in GROUPS[1:]:
        if group not in named:
            cfg.pop(group, None)
    cfg.choices = {g: choices[g] for g in GROUPS if choices.get(g) and (g in cfg or g == "experiment")}


def _check_root(cfg: DictConfig, root: str) -> None:
    """A misspelt key at the top of a YAML would otherwise be added and never read."""
    base = OmegaConf.load(conf_dir() / f"{root}.yaml")
    known = {k for k in base if k not in ("defaults", "hydra")} | {"choices"}
    known |= {*groups(root)} - {"experiment"}
    for path, node, allowed in (("", cfg, known), ("checkpoint.", cfg.checkpoint, set(base.checkpoint))):
        for key in node:
            if key not in allowed:
                raise UserError(f"no setting '{path}{key}'{nearest(path + key, (path + k for k in allowed))}")


# -- commands that read run folders


def command(root: str, name: str, arguments: list[str]) -> None:
    """Calls what conf/command/<root>/<name>.yaml says, with the folders named on the command line as `runs`.

    A study's folder stands for its runs.
    """
    from rl_lab.core import settings

    folders, overrides = split(arguments)
    config_name = f"command/{root}/{name}"
    with plain_errors(conf_dir(), config_name, overrides):
        cfg = compose(conf_dir(), config_name, overrides)
        settings.check(cfg)
        hydra.utils.call(cfg, runs=folders if name == "study" else runs_of(folders))


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def complete(prog: str, root: str, arguments: list[str]) -> None:
    """Hydra's own tab completion over conf/."""
    main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(lambda cfg: None)
    sys.argv = [prog, *arguments]
    main()
