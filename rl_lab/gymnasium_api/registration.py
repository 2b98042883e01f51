"""The worlds of conf/env as Gymnasium environments: four_rooms is rl_lab/FourRooms-v0. Nothing is built here."""

import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from rl_lab.core import conf_dir

# Worlds whose step is a function (envs.abilities.Functional): what World and VectorWorld are made of.
FUNCTIONAL = "rl_lab.envs.tabular.stepper.MDPEnv", "rl_lab.envs.collect.world.Collect"


def register_with_gymnasium() -> None:
    """At once if Gymnasium has been imported, otherwise when it is: Gymnasium offers no entry points for this."""
    if "gymnasium" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, Waiting())


class Waiting(MetaPathFinder, Loader):
    """Finds gymnasium as the other finders do, and registers the worlds once it has been imported."""

    loader: Loader

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "gymnasium":
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec and spec.loader:
            self.loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__:
            module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        register()
        sys.meta_path.remove(self)


def register() -> None:
    import gymnasium

    for world in worlds():
        if (id := name(world)) not in gymnasium.registry:
            gymnasium.register(
                id,
                entry_point="rl_lab.gymnasium_api.envs:World",
                vector_entry_point="rl_lab.gymnasium_api.envs:VectorWorld",
                kwargs={"world": world},
            )


def worlds() -> list[str]:
    """Read from the files as text, two milliseconds for all: this runs whenever Gymnasium is imported."""
    return sorted(path.stem for path in (conf_dir() / "env").glob("*.yaml") if target(path.stem) in FUNCTIONAL)


def target(world: str) -> str | None:
    """What conf/env/<world>.yaml builds, or else the file that its defaults begin with."""
    text = (conf_dir() / "env" / f"{world}.yaml").read_text()
    if found := re.search(r"^_target_: (\S+)", text, re.MULTILINE):
        return found[1]
    base = re.search(r"^defaults: \[([\w/]+)", text, re.MULTILINE)
    return target(base[1]) if base else None


def name(world: str) -> str:
    """frozen_lake_8x8 -> rl_lab/FrozenLake8x8-v0"""
    return f"rl_lab/{''.join(word[:1].upper() + word[1:] for word in world.split('_'))}-v0"
