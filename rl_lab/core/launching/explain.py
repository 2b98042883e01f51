"""Turns what Hydra, OmegaConf and the system raise over a user's mistake into one plain line."""

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from rl_lab.core import conf_dir, files
from rl_lab.core.errors import FULL, UserError, nearest
from rl_lab.core.launching.composition import (
    compose,
    find_wanted,
    flatten,
    groups,
    is_group,
    names,
    own_folder,
    parts_of,
    searched,
)
from rl_lab.core.launching.meant import MOST, any_world, refuse_through_reference, unknown

LISTED = {"env": "envs", "agent": "agents", "experiment": "experiments", "data": "data", "model": "models"}
EXTRAS = {"ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm", "optuna": "optuna"}  # of Hydra's plugins
TOO_LARGE = "|".join(
    [
        r"tried to allocate [\d.]+ \w+",
        "bad_alloc",
        "Storage size calculation overflowed",
        "integer multiplication overflow",
        "out of memory",
    ]
)
ALIKE = 0.85  # that a reference is taken for a misspelt one
SIZES = "batch_size", "num_envs", "capacity"  # the names of settings that memory goes by
HYDRA = "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode"


class plain_errors:
    """Turns what Hydra and OmegaConf raise over a user's mistake into a UserError of one line."""

    def __init__(self, source: Path, config_name: str, overrides: list[str], trusted: bool = True):
        """`trusted`: the user typed the overrides, and calls that they name may be imported to explain them."""
        self.source, self.config_name, self.overrides, self.trusted = source, config_name, overrides, trusted

    def __enter__(self) -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print and exit

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        for link in _chain(error):
            if isinstance(link, UserError):
                if typed := self._leading_to(str(link)):
                    raise UserError(f"{typed}: {link}") from None
                raise link from None
            if isinstance(link, yaml.MarkedYAMLError) and (mark := link.problem_mark):
                raise UserError(f"{mark.name} is no YAML: line {mark.line + 1}: {link.problem}; correct it") from None
        for link in _chain(error):
            if isinstance(link, OSError) and link.errno == errno.ELOOP:
                raise UserError(f"cannot read {link.filename}: {link.strerror}; remove the link") from None
            if isinstance(link, PermissionError) and files.is_closed(link.filename):
                raise files.unread(link) from None
            if isinstance(link, OSError) and link.filename is not None:
                elsewhere = "out=..." if self._is_command() else "hydra.run.dir=..."
                raise files.unwritten(str(link.filename), link, elsewhere) from error
            if words := _too_large(link):
                raise UserError(f"this needs more memory than there is ({words}); {self._smaller()}") from error
            if isinstance(link, OSError) and link.errno in FULL:
                what, then = (" the run", "resume it")
                if self._is_command():
                    what, then = " to standard output" * _is_output_full(), "type it again"
                raise UserError(f"cannot write{what}: {link.strerror or link}; make room, then {then}") from None
        if isinstance(error, HydraException | OmegaConfBaseException):
            if type(error).__name__ == "InstantiationException":
                if error.__cause__:
                    raise error.__cause__
                return
            raise UserError(self._explain(error)) from None

    def _explain(self, error: Exception) -> str:
        if isinstance(error, MissingMandatoryValue):
            return f"{error.full_key} has no default; give it a value: {error.full_key}=..."
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if found := re.match("UserError raised while resolving interpolation: (.*)", lines[0]):
            return found[1]
        if isinstance(error, MissingConfigException) and error.options:
            group, _, choice = str(error.missing_cfg_file).rpartition("/")
            if group.startswith("hydra/") and (extra := EXTRAS.get(choice)):
                return f"{group}={choice} needs a plugin of Hydra; pip install 'rl-lab[{extra}]'"
            near = nearest(choice, self._ours(group, error.options), before=f"{group}=")
            if group.partition("/")[0] == "env" and "did you mean" not in near:
                near = any_world(f"{group}/{choice}".removeprefix("env/")) or near
            if (own := Path(group, f"{choice}.yaml")).is_file():
                near = f"; --config-dir=. takes {own} of this folder"
            listing = f"{self._lab()} {LISTED[group]} lists them" if group in LISTED else "--help lists them all"
            return f"no choice '{choice}' for {group}{near or f'; {listing}'}"
        if found := re.search(r"Environment variable '([^']+)' not found", lines[0]):
            return f"{self._typed(error, found[1])} refers to the environment variable {found[1]}, which is not set"
        if found := re.match(r"Unsupported interpolation type (\S+)", lines[0]):
            return (
                f"{self._typed(error, found[1])} refers to nothing: ${{env.size}} is the value of the setting env.size"
            )
        if lines[0].startswith("Recursive interpolation"):
            return f"{self._typed(error, '')} refers to itself; give it a value"
        if isinstance(error, InterpolationResolutionError) and not isinstance(error, InterpolationKeyError):
            return f"{self._typed(error, '')} refers to nothing: ${{env.size}} is the value of the setting env.size"
        if found := re.match(r"In '([\w/]+)': \w+ raised while composing config", lines[0]):
            return f"{found[1]}.yaml does not fit the settings that it changes: {' '.join(lines[1:2])}"
        if isinstance(error, InterpolationKeyError) and (found := re.search(r"key '([\w.]+)' not found", lines[0])):
            if typed := self._typed(error, found[1], or_key=False):
                known = flatten(self._composed())
                return f"{typed} refers to a setting that is not there{nearest(found[1], known, listing=False)}"
            if self._is_command():
                return f"{error.full_key or 'a setting'} refers to {found[1]}, and there is no such setting"
            group, _, setting = found[1].partition(".")
            beside = [key for key in flatten(self._composed()) if key.startswith(f"{group}.")]
            if close := get_close_matches(found[1], beside, n=1, cutoff=ALIKE):
                return f"{error.full_key} refers to {found[1]}, and there is no such setting; did you mean {close[0]}?"
            if setting and group in self._choices():
                return (
                    f"{error.full_key} needs {found[1]}, which the chosen {group} does not have; choose another {group}"
                )
            names = sorted(path.stem for path in (conf_dir() / found[1]).glob("*.yaml")) if is_group(found[1]) else []
            which = ", ".join(f"{found[1]}={name}" for name in names) or f"{found[1]}=..."
            return f"{error.full_key} needs {found[1]}, and there is none; choose {which}"
        if lines[0].startswith("Error merging override"):
            return f"cannot set {lines[0].removeprefix('Error merging override ')}: it takes no such value"
        if found := re.match(
            r"(?:Sweep parameters|Ambiguous value for argument) '(.*?=(.*?))'(?:$| requires)", lines[0]
        ):
            there = OmegaConf.select(self._composed(), found[1].partition("=")[0])
            as_list = f", or [{found[2]}] for a list" if OmegaConf.is_list(there) else ""
            return f"{found[1]} is several values; give one{as_list}, or add -m for a run of each"
        if found := re.match(
            r"Could not delete from config\. (?:'(.*)' does not exist|The value of '(.*)' is)", lines[0]
        ):
            return f"~{found[1] or found[2]} takes away nothing: there is no such value; leave it out"
        if found := re.match(r"Could not append to config. An item is already at '(.*)'", lines[0]):
            refuse_through_reference(self._composed(), found[1])
            return f"'{found[1]}' is in the YAML; write {found[1]}=... without the +"
        if lines[0].startswith("force-add of config groups") and (found := re.search(r"'\+\+([\w/]+)=", lines[0])):
            return f"'{found[1]}' is a choice; write {found[1]}=... without the +"
        if found := re.match(r"You must specify '([\w/]+)'", lines[0]):
            return f"{found[1]} has no choice; make one: {found[1]}=..., one of {', '.join(lines[2:])}"
        if found := re.match(r"In '(\w+)/(.+)': Could not override '([\w/]+)'", lines[0]):
            lab = self._lab_with(found[3].partition("/")[0])
            return f"{found[1]}={found[2]} is for {lab}: {lab} train {found[1]}={found[2]}" if lab else lines[0]
        if "Could not override" in lines[0]:
            key = lines[0].split("'")[1]
            return self._of_other_lab(key) or unknown(self._composed(), key, self._choices())
        if type(error).__name__ == "OverrideParseException":
            return f"cannot read the setting: {lines[0]}"
        return " ".join(lines)[:300]

    def _typed(self, error: OmegaConfBaseException | Exception, named: str, or_key: bool = True) -> str:
        """What was typed with a reference to `named` in it, or else the setting that was being resolved."""
        typed = (o for o in self.overrides if re.search(rf"\$\{{[^}}]*{re.escape(named)}", o))
        return next(typed, str(getattr(error, "full_key", "")) if or_key else "")

    def _leading_to(self, text: str) -> str:
        """What was typed as a reference to the setting that the text is about, if that one was not typed itself."""
        about = re.match(r"([\w.]+)=", text)
        keys = [o.lstrip("+~").partition("=")[0] for o in self.overrides]
        if not about or about[1] in keys:
            return ""
        return next((o for o in self.overrides if f"${{{about[1]}}}" in o), "")

    def _lab_with(self, group: str) -> str:
        """The other lab, if it has this group and the one at hand does not."""
        roots = [path.stem for path in sorted(conf_dir().glob("*.yaml"))]
        mine = self._is_command() or group in groups(self.config_name)
        return "" if mine else next((f"{root}-lab" for root in roots if group in groups(root)), "")

    def _of_other_lab(self, key: str) -> str:
        lab = self._lab_with(re.split(r"[./]", key)[0])
        return f"no setting '{key}' in {self.config_name}-lab; {lab} has it: {lab} train" if lab else ""

    def _lab(self) -> str:
        """Whose command this is."""
        return f"{self.config_name.removeprefix('command/').partition('/')[0]}-lab"

    def _ours(self, group: str, options: Sequence[str]) -> Sequence[str]:
        """Without those of the other lab."""
        ours = {*options} if self._is_command() else {*names(self.config_name, group)}
        return [name for name in options if name in ours or not (self.source / f"{group}/{name}.yaml").is_file()]

    def _is_command(self) -> bool:
        return "/" in self.config_name

    def _smaller(self) -> str:
        if self._is_command():
            return "ask for less: fewer episodes, images or samples, or smaller pictures"
        try:
            settings = [*flatten(self._composed())]
        except (HydraException, OmegaConfBaseException):
            settings = []
        found = [key for name in SIZES for key in settings if key.rpartition(".")[2] == name]
        return f"make it smaller: {', '.join([*found[:MOST], 'the layers of its network'])}"

    def _choices(self) -> list[str]:
        """Groups of the lab, and what of Hydra's own settings is of use; to a command, nothing beside its settings."""
        return [] if self._is_command() else [*groups(self.config_name), *HYDRA]

    def _composed(self) -> DictConfig:
        """The config composed with the choices of groups and calls alone, so that misspelt settings are not in it."""
        keys = ((o, re.split("[=@]", o.lstrip("+"))[0]) for o in self.overrides)
        chosen = [o for o, key in keys if is_group(key) or (self.trusted and key.endswith("._target_"))]
        own = own_folder(self.overrides) if self.trusted else None
        try:
            cfg = compose(self.source, self.config_name, chosen + searched(own))
        except HydraException:
            return compose(self.source, self.config_name, [])
        if self.trusted:
            find_wanted(cfg, parts_of(self._lab()))
        return cfg


def _too_large(error: BaseException) -> str | None:
    """What could not be allocated, where memory ran out or a size is beyond all memory."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError | OverflowError):
        return text[:100] or "none is left"
    if isinstance(error, RuntimeError) and (found := re.search(TOO_LARGE, text)):
        return found[0]
    return None


def _is_output_full() -> bool:
    """Whether standard output takes no more, not even the end of a line."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as error:
        return error.errno in FULL
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, each once: a cause that is raised again points back at what it caused."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
