"""What was typed after a command, checked against what exists: run folders, flags of Hydra's, and settings."""

import glob
import os
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from omegaconf import OmegaConf

from rl_lab.core import conf_dir, files
from rl_lab.core.errors import UserError, nearest, pasted
from rl_lab.core.launching.composition import base, groups, is_group, names, own_folder, parsed, quoted
from rl_lab.core.launching.own import check_own
from rl_lab.core.launching.patches import lazy_help

LONGEST_KEY, MOST_JOBS = 200, 10_000  # characters
OPTIONAL = {"planner", "protocol", "experiment", "study"}
OF_SEVERAL = r"hydra[/.](launcher|sweeper)\b"
REFUSED = "config_path", "config_name", "package", "experimental_rerun"
HYDRAS_OWN = {
    "hydra.output_subdir": "a run's folder holds its settings in config.yaml",
    "hydra.job.chdir": "paths are those of the folder in which the command is typed",
}
WITH_VALUE = (
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--config-dir",
    "-cd",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--package",
    "-p",
)


def split(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Run folders (`run=X`, `run=X,Y`, a bare path or glob) and the rest, which are overrides. Raises UserError.

    `run=wandb:<entity>/<project>/<run>` is fetched first; `~key` takes a setting away, `~/x` is a path, and so is the
    value in `key=~/x`, which shells leave as it is.
    """
    folders, rest = [], []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        key, equals, value = argument.partition("=")
        if (
            argument.startswith("-")
            or (argument.startswith("~") and not argument.startswith("~/"))
            or before in WITH_VALUE
            or (equals and key != "run" and not _exists(argument))
        ):
            alone = value.startswith("~/") and "," not in value and not argument.startswith("-")
            rest.append(f"{key}={quoted(str(files.home(value)))}" if alone else argument)
            continue
        pattern = value if equals and key == "run" else argument
        several = pattern.split(",") if equals and key == "run" and not _found(pattern) else [pattern]
        for one in map(os.path.expanduser, several):
            if one.startswith("wandb:"):
                from rl_lab.core import registry

                folders.append(registry.fetch(one.removeprefix("wandb:")))
                continue
            found = _found(one)
            if not found and before.startswith("--"):  # as it may be the value of a flag that does not exist
                rest.append(argument)
            elif not found and is_group(one):
                raise UserError(f"no run folder {one}; a setting is written {one}=<name>, without spaces")
            elif not found:
                shown = one if len(one) <= 120 else f"{one[:120]}..."
                raise UserError(f"no run folder {shown or '(run= is empty)'}{_nearest_folder(one)}")
            folders += found
    if len(folders) == 1 and folders[0].is_file() and (folders[0].parent / "config.yaml").is_file():
        run = pasted(f"run={folders[0].parent}")
        raise UserError(f"{folders[0]} is a file of a run; name the run's folder: {run}")
    return folders, rest


def _found(pattern: str) -> list[Path]:
    return [Path(pattern)] if _exists(pattern) else sorted(Path(path) for path in glob.glob(pattern))


def _nearest_folder(pattern: str) -> str:
    if re.fullmatch(r"\w+", pattern) and (conf_dir() / "experiment" / f"{pattern}.yaml").exists():
        return f"; did you mean experiment={pattern}?"
    parent = Path(pattern).parent
    there = parent.iterdir() if _exists(str(parent)) and parent.is_dir() else ()
    names = [p.name for p in there if p.is_dir() and p.name not in ("compare", "studies", "gallery")]  # hold no run
    return nearest(Path(pattern).name, names, listing=False, before=pattern[: pattern.rfind("/") + 1])


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).exists()
    except (OSError, ValueError):  # longer than any name, or no name at all
        return False


def checked(overrides: list[str], root: str) -> list[str]:
    """What was typed for a new run, Hydra's flags first, as Hydra wants them. Raises UserError where Hydra does not
    know a flag, or a group is not chosen by a name.
    """
    with lazy_help():
        parser = get_args_parser()
    vars(parser)["error"] = _not_read  # argparse would print and exit
    parser.allow_abbrev = False  # --experiment is none of Hydra's flags
    settings = [
        o
        for before, o in zip(["", *overrides], overrides, strict=False)
        if not o.startswith("-") and before not in WITH_VALUE
    ]
    typed = [o for o in overrides if o not in settings] + settings
    flags = parser.parse_args(typed)
    for flag in REFUSED:
        if getattr(flags, flag):
            raise UserError(
                f"--{flag.replace('_', '-')} is not for this lab; --config-dir=<folder> adds YAML files of "
                "yours to conf/"
            )
    if flags.shell_completion:
        raise UserError(f'-sc comes right after {root}-lab: eval "$({root}-lab -sc install=bash)"')
    if len(modes := [name for name in ("run", "multirun", "cfg", "info") if getattr(flags, name)]) > 1:
        raise UserError(f"{' and '.join(f'--{name}' for name in modes)} say different things of what is to be done; "
                        "give one of them (--cfg and --info print, of one run, and start none)")  # fmt: skip
    if flags.resolve and not flags.cfg:
        raise UserError("--resolve is for --cfg=job, which prints the settings and runs nothing; leave it out")
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise UserError(
            f"--config-dir={flags.config_dir} is not a folder; give it one that holds agent/, env/ and so on"
        )
    if flags.multirun and not flags.overrides:
        raise UserError(f"-m runs every combination of values, and none are given: {root}-lab train -m seed=0,1,2 "
                        "experiment=<name>, or study=<name>, which holds them")  # fmt: skip
    check_own(own_folder(typed), settings)
    needed = {*map(str, base(root)), *groups(root)} - OPTIONAL
    check_settings(flags.overrides, {*groups(root), "study/env", "study/agent"}, needed)
    for study in (o.removeprefix("study=") for o in flags.overrides if o.startswith("study=")):
        if (conf_dir() / f"study/{study}.yaml").is_file() and study not in names(root, "study"):
            lab = "gen-lab" if root == "rl" else "rl-lab"
            raise UserError(f"study={study} is for {lab}: {lab} train study={study}")
    return typed


def forcing(typed: list[str], root: str) -> tuple[list[str], set[str]]:
    """`typed`, but with ++ before the settings of parts that each job chooses for itself; and which settings these are.

    Before the jobs Hydra composes what they share, with the default agent in place of those that are swept over, and
    would refuse a setting that the default lacks.
    """
    flags = {i for i, words in enumerate(typed) if words.startswith("-") or (i and typed[i - 1] in WITH_VALUE)}
    settings = {i: parsed(words) for i, words in enumerate(typed) if i not in flags}
    swept = {o.key_or_group for o in settings.values() if o.is_sweep_override()}
    for study in (o.value() for o in settings.values() if o.key_or_group == "study" and not o.is_delete()):
        path = conf_dir() / f"study/{study}.yaml"
        swept |= set(OmegaConf.select(OmegaConf.load(path), "hydra.sweeper.params") or {}) if path.is_file() else set()
    chosen = {re.split("[/@]", key)[0] for key in swept if is_group(re.split("@", key)[0])}
    chosen |= set(groups(root)) if "experiment" in chosen else set()
    forced = {
        i: key
        for i, key in ((i, o.key_or_group) for i, o in settings.items())
        if "." in key and key.partition(".")[0] in chosen and key not in swept and typed[i].startswith(f"{key}=")
    }
    return [f"++{words}" if i in forced else words for i, words in enumerate(typed)], {*forced.values()}


def idle(changes: Sequence[str]) -> str | None:
    """Of changes to a run's settings the first that speaks of its training alone; None where all count without it."""
    return next((o for o in changes if re.match(r"[+~]*loop\.(?!(eval_env|envs?|agent|data|model)\b)", o)), None)


def check_place(typed: Sequence[str], several: bool) -> None:
    """Where one run goes says nothing of several, and the other way round; nor does what launches several say anything
    of one. Raises UserError.
    """
    other, own = ("hydra.run.dir", "hydra.sweep.dir") if several else ("hydra.sweep.dir", "hydra.run.dir")
    for override in map(parsed, typed):
        if not several and re.match(OF_SEVERAL, override.key_or_group):
            raise UserError(f"{override.input_line} is for several runs, and would be ignored; add -m, or leave it out")
        if override.key_or_group == other:
            kind = "of several runs" if several else "of one run"
            raise UserError(f"{override.input_line} would be ignored: the place {kind} is {own}=...")


def check_settings(typed: Sequence[str], known: set[str], needed: Container[str] = ()) -> None:
    """Checks that each can be read, removes nothing that is `needed`, and chooses from the groups `known` by name."""
    if flags := [words for words in typed if words.startswith("-")]:
        raise UserError(f"no flag {flags[0].partition('=')[0]} here; settings are written setting=value")
    jobs = 1
    for override in map(parsed, typed):
        if not (key := override.key_or_group):
            raise UserError(f"{override.input_line} names no setting before the =; write setting=value")
        jobs *= number_of_values(override)
        if jobs > MOST_JOBS:
            raise UserError(
                f"{str(override.input_line)[:60]} makes more than {MOST_JOBS:,} jobs; sweep over fewer values"
            )
        if twice := repeated(override):
            raise UserError(f"{str(override.input_line)[:60]} has {twice[0]} twice; name each value once")
        if key in HYDRAS_OWN and override.value() not in (None, False):
            raise UserError(f"{override.input_line} is not for this lab: {HYDRAS_OWN[key]}; leave it out")
        if max(map(len, key.split("/"))) > LONGEST_KEY:
            raise UserError(f"no setting '{key[:40]}...'")
        if override.is_delete() and (key in needed or key.endswith("._target_")):
            another = f"choose another {key}=... instead" if is_group(key) else "leave it out"
            raise UserError(f"{override.input_line} takes away what every run needs; {another}")
        if key == "experiment" and isinstance(override.value(), list):
            raise UserError(
                f"{override.input_line} is several, and a run is of one; -m experiment=<a>,<b> makes a run of each"
            )
        if (key in known or is_group(key)) and not override.is_delete():
            _check_choice(override, key in OPTIONAL)


def number_of_values(override: Override) -> int:
    """How many values it sweeps over."""
    value = override._value
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep) and value.step:
        return max(1, int(abs((value.stop or 0) - (value.start or 0)) / abs(value.step)))
    return 1


def repeated(override: Override) -> list[str]:
    """The values of a sweep that it names more than once."""
    values = [*override.sweep_string_iterator()] if isinstance(override._value, ChoiceSweep) else []
    return [value for value in values if values.count(value) > 1]


def _check_choice(override: Override, optional: bool) -> None:
    """A name, or several in brackets or for as many jobs; of an optional group null too. Raises UserError."""
    key, value = override.key_or_group, override._value
    if override.is_sweep_override() and not isinstance(value, ChoiceSweep):
        return
    for choice in value.list if isinstance(value, ChoiceSweep) else [value]:
        names = [
            x.text if isinstance(x, QuotedString) else x for x in (choice if isinstance(choice, list) else [choice])
        ]
        is_name = [isinstance(name, str) and re.fullmatch(r"[^/$]+(/[^/$]+)*", name) for name in names]
        if not (names and all(is_name)) and not (optional and choice is None):
            known = sorted(path.stem for path in (conf_dir() / key).glob("*.yaml"))
            shown = str(override.input_line).partition("=")[2][:40]
            raise UserError(f"{key}={shown} is not a choice{nearest(shown, known) or '; --help lists them'}")


def _not_read(words: str) -> NoReturn:
    raise UserError(
        f"cannot read the command line: {words}; settings are written setting=value, and rl-lab --help "
        "lists what there is"
    )
