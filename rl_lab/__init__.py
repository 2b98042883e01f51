"""Reinforcement learning: environments, agents, planners, and the loops that join them.

Importing it makes the worlds known to Gymnasium, as rl_lab/FourRooms-v0 and the like, and imports nothing else.
"""

from rl_lab.gymnasium_api.registration import register_with_gymnasium

__version__ = "0.1.0"

register_with_gymnasium()
