"""A user's mistake: one line that names the fault and the remedy, exit code 2, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What went wrong and what to do about it, in one line."""


class NotFinite(UserError):
    """A loss or a gradient became nan or infinite."""


WINDOWS = (
    "Windows is not supported, since runs are locked and stopped in the ways of POSIX; use WSL: wsl --install, and "
    "install the lab in there"
)


def nearest(word: str, choices: Iterable[str], listing: bool = True) -> str:
    """`; did you mean X?` for the choice most like `word`, or, with `listing`, the choices if none is."""
    choices = sorted({str(c) for c in choices})
    if close := difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5):
        return f"; did you mean {close[0]}?"
    return f"; choose from {', '.join(choices)}" if listing and 0 < len(choices) <= 20 else ""


def printable(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
