"""The worlds of conf/env as Gymnasium environments: four_rooms is rl_lab/FourRooms-v0. Nothing is built here."""

import gymnasium

from rl_lab.core import conf_dir

NEED_MORE = {"atari", "gym", "toy_text", "mdp_file"}  # without a name or a file of yours these are no world
GYMNASIUMS_OWN = {"cartpole", "acrobot", "mountain_car"}


def register() -> None:
    for world in worlds():
        if (id := name(world)) not in gymnasium.registry:
            gymnasium.register(
                id,
                entry_point="rl_lab.gymnasium_api.envs:World",
                vector_entry_point="rl_lab.gymnasium_api.envs:VectorWorld",
                kwargs={"world": world},
            )


def worlds() -> list[str]:
    """Told from the names of the files: reading them would slow down every import of rl_lab."""
    return sorted({path.stem for path in (conf_dir() / "env").glob("*.yaml")} - NEED_MORE - GYMNASIUMS_OWN)


def name(world: str) -> str:
    """frozen_lake_8x8 -> rl_lab/FrozenLake8x8-v0"""
    return f"rl_lab/{''.join(word[:1].upper() + word[1:] for word in world.split('_'))}-v0"
