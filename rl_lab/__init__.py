"""Reinforcement learning: environments, agents, planners, and the loops that join them.

Importing it makes the worlds known to Gymnasium, as rl_lab/FourRooms-v0 and the like. The command line, which starts
sooner without, does so where one is asked for.
"""

import sys
from pathlib import Path

__version__ = "0.1.0"

if Path(sys.argv[0] if sys.argv else "").name not in ("rl-lab", "gen-lab", "-m"):
    from rl_lab.gymnasium_api.registration import register

    register()
