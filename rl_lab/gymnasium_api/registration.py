"""The worlds of conf/env as Gymnasium environments: four_rooms is rl_lab/FourRooms-v0. Nothing is built here."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

from rl_lab.core import conf_dir

NEED_MORE = {"atari", "gym", "toy_text", "mdp_file"}  # without a name or a file of yours these are no world
GYMNASIUMS_OWN = {"cartpole", "acrobot", "mountain_car"}


def register_with_gymnasium() -> None:
    """At once where Gymnasium has been imported, and otherwise when it is: it has no entry points for that."""
    if "gymnasium" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, Waiting())


class Waiting(MetaPathFinder):
    """Finds gymnasium as everybody does, and registers the worlds once it has been imported."""

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        if fullname != "gymnasium" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        if (spec := find_spec(fullname)) and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_register(module) -> None:
                execute(module)
                register()

            spec.loader.exec_module = execute_and_register
        return spec


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
    """Read from the names of the files, without opening them: this runs whenever Gymnasium is imported."""
    return sorted({path.stem for path in (conf_dir() / "env").glob("*.yaml")} - NEED_MORE - GYMNASIUMS_OWN)


def name(world: str) -> str:
    """frozen_lake_8x8 -> rl_lab/FrozenLake8x8-v0"""
    return f"rl_lab/{''.join(word[:1].upper() + word[1:] for word in world.split('_'))}-v0"
