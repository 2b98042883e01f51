"""Ask a person which of two clips is better, for a run that learns from it."""

import hashlib
import os
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rl_lab.core.errors import UserError, counted, pasted
from rl_lab.core.folders import summary
from rl_lab.core.settings import Natural, Positive
from rl_lab.looking.browser import Browser
from rl_lab.looking.shown import FILM, Frame, Shown, Words, frames_of, painted, painter
from rl_lab.playing.player import settings_of
from rl_lab.playing.scenes import FREEZE, GRIDWORLD_FPS, Page
from rl_lab.playing.stage import of_world
from rl_lab.types import VectorEnv
from rl_lab.wanted.preferences.clips import Clips
from rl_lab.wanted.preferences.logs import Log
from rl_lab.wanted.preferences.sittings import LEFT, REVOKED, RIGHT, SAME, UNSURE, Sitting, name_of, unpacked

SOON = 0.3  # seconds in which nobody has seen a pair: a key is of the one before
POLL = 0.5  # seconds between looks for questions
ANSWERS = {"left": LEFT, "right": RIGHT, "up": SAME, "down": UNSURE}
AGAIN, UNDO, LEAVE = "space", "backspace", ("q", "escape")
LEGEND = {"left": ["←"], "right": ["→"], "the same": ["↑"], "cannot say": ["↓"], "undo": ["Backspace"],
          "again": ["Space"], "leave": ["q"]}  # fmt: skip
OTHER = {LEFT: RIGHT, RIGHT: LEFT}


def teach(
    runs: Sequence[Path],
    *,
    who: str,
    fps: Positive | None,  # None: the world's own, of a gridworld 6
    port: Natural,  # of the page; 0: any that is free
) -> None:
    """Asks until the person leaves, or until the run has ended and every question is answered. Raises UserError."""
    if not runs:
        raise UserError("which run? rl-lab teach run=<folder> who=<name>")
    asking = [run for run in runs if Sitting(run).now()] if len(runs) > 1 else runs
    if len(asking) != 1:
        which = f", such as {pasted(f'run={(asking or runs)[0]}')}"
        raise UserError(f"teach one run at a time, and these are {len(runs)}: name one of them{which}")
    folder, who = asking[0], name_of(who)
    world: Any = OmegaConf.create(settings_of(folder))
    person = Person(folder, who)
    env = of_world(world, 1, "cpu", frames=True).env
    try:
        with Browser(f"{folder.name}: {who}", Page, port=port, keys=LEGEND, across=True) as screen:
            words = Desk(person, env, screen, fps or env.frames_per_second or GRIDWORLD_FPS).sit()
        print(f"{words}: {person.account()}")
    finally:
        person.log.close()
        env.close()


class Person:
    """What one person has said so far, each answer on disk before the next question."""

    def __init__(self, folder: Path, who: str):
        """Raises UserError where the run asks no people, or where another process writes this person's answers."""
        self.sitting, self.who = Sitting(folder), who
        if not self.sitting.now():
            raise UserError(f"{folder} asks nobody (yet); start one that does with teacher=person, as in "
                            "rl-lab train experiment=preferences_russell_norvig teacher=person")  # fmt: skip
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written to, and answers are kept in it; teach as a user who may write "
                            "there, where the run learns")  # fmt: skip
        self.sitting.told()  # what is damaged is said before anyone answers
        self.log = Log(self.sitting.path(f"answers-{who}.jsonl"))
        self.given: list[int] = []  # pairs, in order, and what is left of them after those taken back
        for row in self.log.rows:
            self._note(row)

    def _note(self, row: dict[str, Any]) -> None:
        if row["answer"] != REVOKED:
            self.given.append(row["pair"])
        elif row["pair"] in self.given:  # not where a damaged line was taken out
            self.given.remove(row["pair"])

    def question(self) -> tuple[int, str] | None:
        """A pair that nobody has answered, and what its clips are known by."""
        asked, withdrawn = self.sitting.asked()
        answered = {pair for (_, pair), answer in self.sitting.told().items() if answer != REVOKED}
        left = [pair for pair in asked if pair not in withdrawn and pair not in answered]
        if not left:
            return None
        pair = min(left) if len(self.sitting.files()) == 1 else random.choice(left)  # two people, two questions
        return pair, asked[pair]

    def say(self, pair: int, of: str, answer: str, swapped: bool, seconds: float) -> None:
        """`answer` as the person saw it; where `swapped`, the left clip stood on the right."""
        row = {"pair": pair, "of": of, "answer": OTHER.get(answer, answer) if swapped else answer, "swapped": swapped}
        row |= {"seconds": round(seconds, 2), "when": datetime.now(UTC).isoformat(timespec="seconds")}
        self.log.add(row)
        self._note(row)

    def undo(self) -> tuple[int, str] | None:
        """Asks the question again that was answered last."""
        if not self.given:
            return None
        pair, of = self.given[-1], self.sitting.asked()[0][self.given[-1]]
        self.say(pair, of, REVOKED, False, 0.0)
        return pair, of

    def account(self) -> str:
        """A summary in words; how often each side was chosen shows whether they lean to one."""
        told = {row["pair"]: row for row in self.log.rows}.values()
        seen = [OTHER.get(x["answer"], x["answer"]) if x.get("swapped") else x["answer"] for x in told]
        of = lambda answer: f"{seen.count(answer)}"
        answers = counted(len(self.given), "answers")
        return (f"{answers} of {self.who}'s: the left one {of(LEFT)}, the right one {of(RIGHT)}, "
                f"the same {of(SAME)}, cannot say {of(UNSURE)}")  # fmt: skip


def is_swapped(who: str, pair: int) -> bool:
    """Whether this person sees the left clip on the right: by chance, but the same whenever the pair is shown again."""
    return hashlib.sha256(f"{who}/{pair}".encode()).digest()[0] % 2 == 1


class Desk:
    """Shows one question after another."""

    def __init__(self, person: Person, env: VectorEnv, screen: Browser, rate: float):
        self.person, self.env, self.screen, self.rate = person, env, screen, rate
        self.paint, self.paint_film = painter(env), painter(env, FILM)
        self.stamp: tuple[int, int] = 0, 0
        self.film: list[Frame] = []
        self.time = 0

    def sit(self) -> str:
        """Asks until it ends; returns why it did."""
        question = self.person.question()
        while True:
            if question is None:
                if (state := summary(self.person.sitting.folder).get("state", "running")) != "running":
                    return f"the run is {state}" + "; rl-lab train run=<folder> resumes it" * (state != "finished")
                key = self.show_alone()
            else:
                key = self.ask(*question)
            if key in LEAVE:
                return "left"
            question = (self.person.undo() if key == UNDO else None) or self.person.question()

    def ask(self, pair: int, of: str) -> str:
        """Shows a pair until it is answered; returns the key that ended it."""
        swapped, began = is_swapped(self.person.who, pair), time.monotonic()
        shown = self.shown(pair, self.person.sitting.clips(pair), swapped)
        while key := self.screen.key(0):  # pressed before there was anything to see, which is all an answer needs
            if key == UNDO or key in LEAVE:
                return key
        drawn, step = time.monotonic(), 0
        pause = max(1, round(FREEZE * self.rate))
        while True:
            self.screen.show([shown.draw(step, self.time)])
            key = self._key(drawn)
            if key in ANSWERS:
                self.person.say(pair, of, ANSWERS[key], swapped, time.monotonic() - began)
                return key
            if key == UNDO or key in LEAVE:
                return str(key)
            step = 0 if key == AGAIN else (step + 1) % (shown.length + pause)

    def show_alone(self) -> str:
        """Shows what the agent does until there is a question; returns the key that ends it, if one did."""
        looked, shown = time.monotonic(), self.shown(None, None, False)
        while time.monotonic() - looked < POLL:
            self.screen.show([shown.draw(0, self.time)])
            key = self._key(0.0)
            if key == UNDO or key in LEAVE:
                return str(key)
        return ""

    def _key(self, drawn: float) -> str | None:
        """A key pressed before the next picture is due."""
        due = time.monotonic() + 1 / self.rate
        self.time += 1
        while (left := due - time.monotonic()) > 0:
            key = self.screen.key(left)
            if key and (time.monotonic() - drawn >= SOON or key == UNDO or key in LEAVE):
                return key
        return None

    def shown(self, pair: int | None, clips: Clips | None, swapped: bool) -> Shown:
        now, sitting = self.person.sitting.now(), self.person.sitting
        self._look()
        believed = [list(map(float, line)) for line in now.get("believed", {}).get(str(pair), [])]
        frames: list[list[Frame]] = [] if clips is None else frames_of(clips, self.env, self.paint)
        answered = len({p for (_, p), answer in sitting.told().items() if answer != REVOKED})
        labels = max(1, int(now.get("labels", 1)))
        words = Words(
            str(now.get("question", "Which is better?")) if frames else "No question is open: the agent learns on",
            f"{self.person.who}  ·  {answered:,} of {labels:,} answered  ·  {len(self.person.given):,} by you",
            min(1.0, answered / labels),
            f"step {int(now.get('step', 0)):,}",
        )
        return Shown(frames[::-1] if swapped else frames, believed[::-1] if swapped else believed, self.film, words)

    def _look(self) -> None:
        """Reads what the agent does now, where the run has written something new."""
        path = self.person.sitting.path("now.npz")
        about = path.stat() if path.exists() else None
        if about and (about.st_ino, about.st_mtime_ns) != self.stamp:
            self.stamp = about.st_ino, about.st_mtime_ns
            self.film = painted(unpacked(path).obs[0], self.paint_film)
