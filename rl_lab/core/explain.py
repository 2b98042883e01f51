"""What Hydra, OmegaConf and the system raise over a user's mistake, as one line of ours."""

import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from rl_lab.core.composition import GROUPS, compose, flatten
from rl_lab.core.errors import UserError, nearest

EXTRAS = {"ray": "ray", "submitit_local": "slurm", "submitit_slurm": "slurm", "optuna": "optuna"}  # of Hydra's plugins
HYDRA = "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.mode"


class plain_errors:
    """Turns what Hydra and OmegaConf raise over a user's mistake into a UserError of one line."""

    def __init__(self, source: Path, config_name: str, overrides: list[str]):
        self.source, self.config_name, self.overrides = source, config_name, overrides

    def __enter__(self) -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print and exit

    def __exit__(self, kind, error, trace) -> None:
        for link in _chain(error):
            if isinstance(link, UserError):
                raise link from None
        for link in _chain(error):
            if isinstance(link, OSError) and link.filename is not None:
                remedy = "free or choose another place (hydra.run.dir=...)"
                raise UserError(f"cannot write {link.filename}: {link.strerror}; {remedy}") from error
            if isinstance(link, OSError) and link.errno in (27, 28, 122):  # file too large, disk full, quota
                raise UserError(f"cannot write the run: {link.strerror or link}; make room, then resume it") from error
        if isinstance(error, HydraException | OmegaConfBaseException):
            if type(error).__name__ == "InstantiationException":
                if error.__cause__:
                    raise error.__cause__
                return
            raise UserError(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        if isinstance(error, MissingMandatoryValue):
            return f"{error.full_key} has no default; give it a value: {error.full_key}=..."
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if isinstance(error, MissingConfigException) and error.options:
            group, _, choice = str(error.missing_cfg_file).rpartition("/")
            if group.startswith("hydra/") and (extra := EXTRAS.get(choice)):
                return f"{group}={choice} needs a plugin of Hydra; pip install 'rl-lab[{extra}]'"
            options = (f"{group}={option}" for option in error.options)
            return f"no choice '{choice}' for {group}{nearest(f'{group}={choice}', options)}"
        if "Could not override" in lines[0]:
            groups = [g for g in GROUPS if (self.source / g).is_dir()]
            return unknown(self._composed(), lines[0].split("'")[1], [*groups, *HYDRA])
        if type(error).__name__ == "OverrideParseException":
            return f"cannot read the setting: {lines[0]}"
        return " ".join(lines)[:300]

    def _composed(self) -> DictConfig:
        """With the choices of groups alone, so that what was misspelt is not there."""
        groups = [o for o in self.overrides if "." not in o.partition("=")[0] and not o.startswith("-")]
        try:
            return compose(self.source, self.config_name, groups)
        except HydraException:
            return compose(self.source, self.config_name, [])


def unknown(cfg: DictConfig, key: str, more: Sequence[str] = ()) -> str:
    """No such setting; or one that the signature has and the YAML leaves at its default."""
    from rl_lab.core import settings

    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else None
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if target and name in inspect.signature(settings.locate(target)).parameters:
        return f"'{key}' has its default and is not in the YAML; write +{key}=... to set it"
    if parent and OmegaConf.is_config(node) and not target:  # a mapping that is passed on, such as env.options
        return f"'{key}' is not in the YAML; write +{key}=... to add it"
    return f"no setting '{key}'{nearest(key, [*flatten(cfg), *more])}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it, each once: a cause that is raised anew points back at what it caused."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
