"""The files between a run that asks and the people who answer it; each has one writer, who may be killed at any time.

preferences/clips/<pair>.npz     obs, action and length of the two clips, first the left one         the run
preferences/pairs.jsonl          pair, the step it was asked at, and what its clips are known by     the run
preferences/used.jsonl           step, and the answers that were learned from then                   the run
preferences/now.json, now.npz    what it asks and believes; what the agent does                      the run
preferences/answers-<who>.jsonl  pair, what its clips are known by, answer, seconds                  who answers
"""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rl_lab.core import files, rows
from rl_lab.core.errors import UserError
from rl_lab.wanted.preferences.clips import Clips
from rl_lab.wanted.preferences.logs import Row, read

HOME, LARGEST = "preferences", 2**28  # bytes that a file of arrays unpacks to
LEFT, RIGHT, SAME, UNSURE, REVOKED = "left", "right", "same", "unsure", "revoked"
WORTH = {LEFT: 1.0, RIGHT: 0.0, SAME: 0.5}  # of the left clip


class Told(NamedTuple):
    """The latest answer of a person about a pair."""

    who: str
    pair: int
    answer: str  # left, right, same, unsure, or revoked


class Sitting:
    """What the files in a run's folder say. Raises UserError where one is damaged."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, name: str) -> Path:
        return files.inside(self.folder, f"{HOME}/{name}")

    def now(self) -> dict[str, Any]:
        """What the run last wrote about itself; {} where it has asked nobody yet."""
        data = rows.content(self.folder / HOME / "now.json")
        try:
            found = json.loads(data) if data else {}
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{self.folder / HOME / 'now.json'} is damaged; the run writes it anew when it asks again")
        return found

    def asked(self) -> tuple[dict[int, str], set[int]]:
        """The digest of the clips of each pair; and the pairs that were withdrawn."""
        found, withdrawn = {}, set()
        for number, row in enumerate(read(path := self.folder / HOME / "pairs.jsonl"), 1):
            if type(row.get("pair")) is not int or not ("withdrawn" in row or isinstance(row.get("of"), str)):
                raise UserError(
                    f"{path}: line {number} is no question; without it the run's other files cannot be used"
                )
            if "withdrawn" in row:
                withdrawn.add(row["pair"])
            else:
                found[row["pair"]] = row["of"]
        return found, withdrawn

    def told(self) -> dict[tuple[str, int], str]:
        """The latest answer of each person to each pair. Raises UserError where one belongs to another run."""
        asked, found = self.asked()[0], {}
        for path in self.files():
            who = path.stem.partition("-")[2]
            for number, row in enumerate(read(path), 1):
                pair, answer = row.get("pair"), row.get("answer")
                if type(pair) is not int or answer not in (*WORTH, UNSURE, REVOKED):
                    raise UserError(f"{path}: line {number} is no answer; take it out, and the others stay")
                if pair not in asked or row.get("of") != asked[pair]:
                    raise UserError(
                        f"{path}: line {number} answers a question of another run; take the file away, or "
                        "rl-lab train teacher=recorded teacher.run=<that run>"
                    )
                found[who, pair] = str(answer)
        return found

    def files(self) -> list[Path]:
        return files.found(self.folder, f"{HOME}/answers-*.jsonl")

    def used(self) -> dict[int, list[Told]]:
        """For each step, the answers that were learned from at that step."""
        found: dict[int, list[Told]] = {}
        for number, row in enumerate(read(path := self.folder / HOME / "used.jsonl"), 1):
            try:
                found[int(row["step"])] = [Told(str(who), int(pair), str(answer)) for who, pair, answer in row["told"]]
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}: line {number} is damaged, and the sitting cannot be repeated") from error
        return found

    def clips(self, pair: int) -> Clips:
        """The left one and the right one."""
        return unpacked(self.folder / HOME / f"clips/{pair:06}.npz")


def packed(clips: Clips) -> bytes:
    """The clips as npz, without their true rewards, which stay with the run."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: getattr(clips, name).cpu().numpy() for name in ("obs", "action", "length")}
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def unpacked(path: Path) -> Clips:
    """Raises UserError where the file is missing or damaged."""
    try:
        data = rows.content(path)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LARGEST:
                raise ValueError("too large")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            obs, action, length = (torch.from_numpy(arrays[name]) for name in ("obs", "action", "length"))
        if not len(obs) == len(action) == len(length) or action.ndim != 2:
            raise ValueError("not of one pair")
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is missing or damaged, and no clips can be shown; resume the run") from error
    return Clips(obs, action, length, torch.full((len(length),), torch.nan, dtype=torch.float64))


def known_by(clips: Clips) -> str:
    """A digest of the clips, equal for equal clips in any run."""
    digest = hashlib.sha256()
    for x in (clips.obs, clips.action, clips.length):
        digest.update(x.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def name_of(who: str) -> str:
    """The name, which becomes part of a file's name. Raises UserError where it cannot."""
    if not re.fullmatch(r"\w[\w.]{0,39}", who):
        raise UserError(f"who={who[:60]} must be a name of letters, digits, points and underscores, 40 at most and "
                        "no point first, as in who=anna")  # fmt: skip
    return who


def changes(told: dict[tuple[str, int], str], before: dict[tuple[str, int], str], pairs: Iterable[int]) -> list[Told]:
    """What people say about these pairs and had not said before, in a fixed order."""
    known = set(pairs)
    news = {key: answer for key, answer in told.items() if key[1] in known and before.get(key, REVOKED) != answer}
    return [Told(who, pair, answer) for (who, pair), answer in sorted(news.items(), key=lambda item: item[0][::-1])]


def as_row(step: int, told: list[Told]) -> Row:
    return {"step": step, "told": [list(x) for x in told]}
