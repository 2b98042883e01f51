"""Reinforcement learning: environments, agents, planners, and the loops that join them."""

__version__ = "0.1.0"
