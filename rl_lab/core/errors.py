"""A user's mistake: one line that names the fault and the remedy, exit code 2, no traceback."""

import difflib
import errno
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """What went wrong and what to do about it, in one line."""


class NotFinite(UserError):
    """A loss or a gradient became nan or infinite."""


class NoRoom(UserError):
    """The disk is full."""


class NothingLeft(Exception):
    """A finished run is taken up again, and nothing asks for more of it: its folder stays as it is."""


WINDOWS = (
    "Windows is not supported, since runs are locked and stopped in the ways of POSIX; use WSL: wsl --install, and "
    "install the lab in there"
)

FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG  # the disk, a quota on it, the largest file allowed
SHORTEST, MOST = 3, 6  # letters of a word that is looked for in longer ones; how many of those are named


def nearest(word: str, choices: Iterable[str], listing: bool = True, before: str = "") -> str:
    """`; did you mean X?` for the choice most like `word`, or those that hold it, or, with `listing`, the choices if
    there are none. `before` is what is typed before each, and no part of what is alike.
    """
    word, choices = str(word).lower(), sorted({str(c) for c in choices})
    holding = sorted((c for c in choices if word in c.lower()), key=len)[:MOST] if len(word) >= SHORTEST else []
    if close := difflib.get_close_matches(word, by_case := {c.lower(): c for c in choices}, n=1, cutoff=0.5):
        found = by_case[close[0]]
        alike = [c for c in holding if len(c) == len(found)] if found in holding else [found]
        return f"; did you mean {' or '.join(before + c for c in alike)}?"
    if holding:
        return f"; did you mean {' or '.join(before + c for c in holding)}?"
    return f"; choose from {', '.join(choices)}" if listing and 0 < len(choices) <= 20 else ""


@contextmanager
def spared(faults: list[UserError]) -> Iterator[None]:
    """A mistake in one of several runs is added to `faults`, so that the others have their turn; see `tell`."""
    try:
        yield
    except UserError as fault:
        faults.append(fault)


def tell(faults: list[UserError], runs: int) -> None:
    """Raises UserError where there are any, of so many runs."""
    words = list(dict.fromkeys(map(str, faults)))
    if words and len(faults) == runs and len(words) == 1:
        raise faults[0]
    if words:
        raise UserError(f"{len(faults)} of {runs} runs left out: {'; '.join(words)}")


def counted(number: float, things: str) -> str:
    """1 step, 2 steps, 1,000 steps of 16 seeds."""
    shown = f"{number:,.0f}"
    return f"{shown} " + (re.sub(r"s\b", "", things, count=1) if shown == "1" else things)


def refuse_undecoded(name: str) -> None:
    """Raises UserError over bytes that are no UTF-8: no file of a run could hold such a name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} is not UTF-8; give it another name (mv)") from None


def article(name: str) -> str:
    """`an` Agent, `a` Model."""
    return "an" if name[:1].lower() in "aeiou" else "a"


def brief(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:200]


def pasted(word: str) -> str:
    """The word as a shell takes it for one: in quotes where it has spaces, brackets or quotes of its own."""
    quoted = shlex.quote(word)
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else quoted


def kind(x: object) -> str:
    """What something is in words: a tensor float32 [5, 4], an ndarray likewise; of all else its type."""
    shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", None)
    if shape is None or dtype is None:
        return type(x).__name__
    return f"{type(x).__name__.lower()} {str(dtype).removeprefix('torch.')} {list(shape)}"


def printable(text: str) -> str:
    """The text without control characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
