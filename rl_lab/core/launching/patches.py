"""Where Hydra 1.3 does other than a lab needs, patched for the length of a block."""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.types import RunMode

from rl_lab.core.launching.composition import parsed


@contextmanager
def lazy_help() -> Iterator[None]:
    """Within, an argument's help may be an object that makes its text when it is printed, as Hydra 1.3's completion has
    it. From Python 3.14 on argparse looks into each help as it is added, and would fail.
    """
    parser: Any = ArgumentParser
    if (check := getattr(parser, "_check_help", None)) is None:
        yield
        return
    parser._check_help = lambda self, action: isinstance(action.help, str) and check(self, action)
    try:
        yield
    finally:
        parser._check_help = check


@contextmanager
def composed_once() -> Iterator[None]:
    """Within, a run's config is composed once. Hydra does so twice: first to see whether `hydra.mode` makes a sweep of
    it, and where it makes none, once more.
    """
    usual = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        try:
            cfg = self.compose_config(config_name, overrides, RunMode.RUN)
        except Exception:
            if any(parsed(override).is_sweep_override() for override in overrides):  # each value may make a job
                studied = any(override.startswith("study=") for override in overrides)
                return usual(self, config_name, overrides) or (RunMode.MULTIRUN if studied else None)
            raise
        if cfg.hydra.mode in (None, RunMode.RUN):
            vars(self.config_loader)["load_configuration"] = lambda **_: cfg
        return cfg.hydra.mode or RunMode.RUN

    app: Any = Hydra
    app.get_mode = get_mode
    try:
        yield
    finally:
        app.get_mode = usual
