"""Reinforcement learning: environments, agents, planners, and the loops that join them.

Importing it makes the worlds known to Gymnasium, as rl_lab/FourRooms-v0 and the like, and imports nothing else.
"""

from typing import TYPE_CHECKING

from rl_lab.gymnasium_api.registration import register_with_gymnasium

if TYPE_CHECKING:
    from rl_lab.types import Agent, VectorEnv

__version__ = "0.1.0"

register_with_gymnasium()


def build(*settings: str) -> "tuple[VectorEnv, Agent]":
    """The environment and the agent of `rl-lab train` with these settings: rl_lab.build("env=windy", "agent=dqn").

    Raises UserError where a setting is not known, or cannot be.
    """
    from rl_lab.core.launching.building import world_and_agent

    return world_and_agent(settings)
