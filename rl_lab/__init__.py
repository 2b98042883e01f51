"""Reinforcement learning: environments, agents, planners, and the loops that join them.

Importing it makes the worlds known to Gymnasium, as rl_lab/FourRooms-v0 and the like.
"""

from rl_lab.registration import register

__version__ = "0.1.0"

register()
