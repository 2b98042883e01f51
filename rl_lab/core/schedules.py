"""Learning rates over a run, as shares of the first ones: functions of the update's number alone, so that a resumed run
needs nothing more and may change them.
"""

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "linear", "step"]


def share(
    schedule: Schedule, step: int, total: int, warm_up: int = 0, step_every: int | None = None, step_factor: float = 0.1
) -> float:
    """Of update number `step`, counted from 0, of `total`.

    It rises in a line over `warm_up` updates, and over the others it is 1; half a cosine from 1 to 0 (Loshchilov &
    Hutter, 2017, eq. 5, without restarts); a line from 1 to 0; or times `step_factor` after every `step_every` updates.
    """
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, total - warm_up)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if schedule == "linear":
        return max(0.0, 1 - done)
    if schedule == "step" and step_every:
        return step_factor ** ((step - warm_up) // step_every)
    return 1.0
