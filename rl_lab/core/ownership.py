"""Which run folders are one's own: a keyed digest of config.yaml, by a key that nobody else can read.

It covers every byte of config.yaml, where the folder lies, and where the modules lie that it imports. A folder that was
copied, moved, changed or sent is thus a stranger's, and so is one of another user. See RFC 2104 (HMAC).
"""

import hashlib
import hmac
import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rl_lab.core import files
from rl_lab.core.errors import UserError

NAME, SIZE, LARGEST = "seal.json", 32, 100_000  # of the digest's file; bytes of the key, and of that file


class Seal(NamedTuple):
    """What is known of a folder that is one's own."""

    places: Mapping[str, str]  # module that lies in no package -> the working directory that it lay in


def config_home() -> Path | None:
    """Where this user's programs keep what they remember; None where there is no such place."""
    if Path(given := os.environ.get("XDG_CONFIG_HOME", "")).is_absolute():
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ["APPDATA"]) if os.environ.get("APPDATA") else None
    with suppress(RuntimeError):
        return Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".config")
    return None


def key(made: bool) -> bytes | None:
    """This user's own key, `made` if there is none. None where that fails, or others could read or replace it."""
    if (home := config_home()) is None:
        return None
    path = home / __name__.partition(".")[0] / "key"
    try:
        if made and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make(path)
        with files.opened(path, SIZE) as file:
            about, found = os.fstat(file.fileno()), file.read()
    except (OSError, UserError):
        return None
    if hasattr(os, "geteuid") and (about.st_uid != os.geteuid() or stat.S_IMODE(about.st_mode) & 0o077):
        print(f"{path} can be read by others, and proves nothing; delete it, and the next run makes another",
              file=sys.stderr)  # fmt: skip
        return None
    return found if len(found) == SIZE and about.st_nlink == 1 else None


def _make(path: Path) -> None:
    """Makes it whole or not at all, and only once if several processes try. Raises OSError."""
    beside = path.with_name(f".new.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secrets.token_bytes(SIZE))
        os.fsync(handle)
        with suppress(FileExistsError):
            os.link(beside, path)
    finally:
        os.close(handle)
        beside.unlink()


def seal(folder: Path, text: str, places: Mapping[str, str], standing: bytes = b"") -> bool:
    """Notes that the folder is one's own as long as its config.yaml is `text`; False where there is no key.

    To be written first: until config.yaml is, the seal of what is `standing` there holds as well, so that a kill in
    between makes nobody a stranger.
    """
    if (secret := key(made=True)) is None:
        return False
    note = {"places": dict(places), "digest": _digest(secret, folder, text.encode(), places)}
    before = [found for found in _notes(folder) if _holds(secret, folder, standing, found)]
    files.write(files.inside(folder, NAME), json.dumps(note | {"before": before[:1]}, indent=2) + "\n")
    return True


def of(folder: Path, text: bytes) -> Seal | None:
    """The seal of a folder whose config.yaml is `text`; None where that is not this user's."""
    if (secret := key(made=False)) is None:
        return None
    return next((Seal(note["places"]) for note in _notes(folder) if _holds(secret, folder, text, note)), None)


def _notes(folder: Path) -> list[dict[str, Any]]:
    """Places and digest, of what was sealed last and of what stood before it; none where the file is damaged."""
    try:
        with files.opened(folder / NAME, LARGEST) as file:
            note = json.loads(file.read())
        notes = [{"places": x["places"], "digest": x["digest"]} for x in (note, *note.get("before", ())[:1])]
        if all(isinstance(x, str) for n in notes for x in (n["digest"], *n["places"], *n["places"].values())):
            return notes
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # a link is a ValueError
        pass
    return []


def _holds(secret: bytes, folder: Path, text: bytes, note: Mapping[str, Any]) -> bool:
    digest = _digest(secret, folder, text, note["places"])
    return hmac.compare_digest(digest.encode(), note["digest"].encode(errors="replace"))


def _digest(secret: bytes, folder: Path, text: bytes, places: Mapping[str, str]) -> str:
    said = ["rl_lab run folder 1", str(folder.resolve()), sorted(places.items()), hashlib.sha256(text).hexdigest()]
    return hmac.new(secret, json.dumps(said).encode(), hashlib.sha256).hexdigest()
