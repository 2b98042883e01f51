"""Where transitions wait to be learned from."""

from rl_lab.memory.priorities import Priorities
from rl_lab.memory.replay import Replay

__all__ = ["Priorities", "Replay"]
