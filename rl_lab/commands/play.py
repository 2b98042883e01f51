"""Play by hand in the same world, from the same seed, beside what the agent thinks of each moment."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from rl_lab.agents.random import Random
from rl_lab.commands.record import described, earlier_recording
from rl_lab.core import files, locks, recording
from rl_lab.core.errors import UserError, counted
from rl_lab.core.launching.named import the_one
from rl_lab.core.recording import Episode
from rl_lab.core.settings import Count, Natural, NonNegative
from rl_lab.memory.episodes import episode_of, newest
from rl_lab.playing.player import Player, load, settings_of
from rl_lab.playing.saliency import Saliency
from rl_lab.playing.scenes import FREEZE, Moment, Screen, Where, open_screen
from rl_lab.playing.scenes import play as played
from rl_lab.playing.stage import Stage, of_world
from rl_lab.types import Transition, VectorEnv

# As in vi and its games; with shift, the same and fire.
KEYS = {"up": ("up", "k"), "right": ("right", "l"), "down": ("down", "j"), "left": ("left", "h"),
        "upright": ("u",), "upleft": ("y",), "downright": ("n",), "downleft": ("b",), "fire": ("space",),
        "noop": (".",), "north": ("up", "k"), "east": ("right", "l"), "south": ("down", "j"),
        "west": ("left", "h")}  # fmt: skip
ARROWS = {"up": "↑", "right": "→", "down": "↓", "left": "←"}
LEAVE, HAND_OVER = ("q", "escape"), "enter"


def play(
    runs: Sequence[Path],
    *,
    env: Mapping | None = None,  # to play in without a run
    view: Where,
    seed: Natural,
    max_steps: Count,
    fps: NonNegative | None,  # 0: every step waits for a key; None: the world's own speed
    saliency: Saliency | None,
    port: Natural,
    out: str | None,  # a folder of demonstrations, to which the episode is added
    device: str,
    changes: Sequence[str] = (),  # of the run's settings
) -> None:
    """One episode by hand, and then the agent's own from the same seed. Raises UserError."""
    usage = "play in the world of one run, rl-lab play run=<folder>, or in any, rl-lab play env=<name>"
    if env and runs:
        raise UserError(usage)
    if env is None:
        player = load(the_one(runs, usage), max_envs=1, device=device, seed=seed, camera=True, changes=changes)
    else:
        player = guest(env, device)
    try:
        keys = bindings(player.env.spec.actions)
        folder = files.folder_for(out) if out else None
        if folder:  # what it holds is looked at before anyone plays
            settings = settings_of(runs[0], changes) if runs else OmegaConf.to_container(env, resolve=True)
            about = by_hand(folder, player.env, settings)
        with open_screen(view, [player], port=port, keys=legend(player.env.spec.actions, keys)) as screen:
            own = player.env.frames_per_second
            hand = Hand(screen, keys, own and min(own, screen.fps) if fps is None else fps)
            tape: list[Transition] = []
            end = sit(player, screen, hand, seed=seed, max_steps=max_steps, saliency=saliency, tape=tape)
        print(f"you: {outcome(end.reward, end.step, end.ending or 'left')}")
        if folder:
            print(kept(folder, about, tape, player.env.spec.frame_stack))
        with Console(stderr=True).status(f"{player.name} plays from the same seed"):
            theirs = alone(player, seed, max_steps)
        print(f"{player.name}, {player.words}: {outcome(*theirs)}")
    finally:
        player.env.close()


def by_hand(folder: Path, env: VectorEnv, settings: Any) -> dict[str, Any]:
    """What recording.json says of episodes played by hand, together with those already there. Raises UserError where
    the folder holds another recording.
    """
    stage = Stage(env, Random(env.spec, env.device, 0), 1, settings, {"name": "by hand"})
    about = described(stage, 0, frames=False)
    earlier = earlier_recording(folder, about)
    return earlier.about if earlier else {**about, "shards": []}


def kept(folder: Path, about: dict[str, Any], tape: Sequence[Transition], frame_stack: int) -> str:
    """Adds the episode to the recording as a shard of its own and returns a line about it. Raises UserError."""
    if not (tape and bool(tape[-1].last)):
        return f"not kept in {folder}: the episode was not played to its end"
    lock = locks.of_run(folder, "recorded")
    try:
        if earlier := earlier_recording(folder, about):  # with what others have played meanwhile
            about = earlier.about
        number, first = len(about["shards"]), sum(shard["episodes"] for shard in about["shards"])
        about["shards"].append(recording.write_shard(folder, number, [as_episode(tape, frame_stack)], first))
        recording.write_index(folder, about)
    finally:
        if lock is not None:
            locks.let_go(lock)
    return f"kept in {folder}: {first + 1} episodes"


def as_episode(tape: Sequence[Transition], frame_stack: int) -> Episode:
    """One env's steps, each [1, ...], as they are recorded."""
    rows = [(t._replace(obs=newest(t.obs, frame_stack))) for t in tape]
    final = newest(tape[-1].next_obs, frame_stack)[0].cpu().numpy()
    columns = ("obs", "action", "reward", "discount", "duration", "last")
    return episode_of([(*(getattr(t, name)[0].cpu().numpy() for name in columns), None) for t in rows], final)


def guest(env: Mapping, device: str) -> Player:
    """An agent in this world that acts at random."""
    stage = of_world(env, 1, device, frames=True)
    return Player("random agent", "random", Path("random agent"), stage.env, stage.agent, 0, "steps")


def sit(player: Player, screen: Screen, hand: "Hand", **how) -> Moment:
    """Plays an episode and returns its last moment, whose `ending` is empty where the person left."""
    draw, moments = screen.draw(player), played(player, episodes=1, **how)
    moment = next(moments)
    while not moment.ending:
        screen.show([draw(moment, "yours")])
        action = hand.choose(moment)
        if action is None:
            return moment
        moment = moments.send(action)
    screen.show([draw(moment, "yours")])
    time.sleep(2 * FREEZE)
    return moment


class Hand:
    """Turns keys into actions: one each where the world waits; else a key stays down until the next comes."""

    def __init__(self, screen: Screen, keys: Mapping[str, int], rate: float | None):
        self.screen, self.keys, self.rate = screen, keys, rate
        self.down: str | None = None
        self.due = 0.0

    def choose(self, moment: Moment) -> int | None:
        """The action to take now; None to leave. The first key is always waited for."""
        waits = not self.rate
        patience = lambda: None if waits or self.down is None else max(0.0, self.due - time.monotonic())
        while (key := self.screen.key(patience())) is not None:
            if key in LEAVE:
                return None
            if key == HAND_OVER or key in self.keys:
                self.down = key
                if waits:
                    break
        if self.rate:
            self.due = max(self.due, time.monotonic()) + 1 / self.rate
        if self.down is None or self.down == HAND_OVER:
            return moment.action
        return self.keys[self.down]


def bindings(actions: Sequence[str]) -> dict[str, int]:
    """Which action each key stands for. Actions with unknown names get the digit of their number, or a letter."""
    keys: dict[str, int] = {}
    for i, action in enumerate(map(str.lower, actions)):
        plain = action.removesuffix("fire")
        wanted = KEYS.get(action) or (tuple(k.upper() for k in KEYS[plain][-1:]) if plain in KEYS else ())
        keys |= {key: i for key in wanted if key not in keys}
    for i in sorted(set(range(len(actions))) - set(keys.values())):
        letters = [str(i)] if i < 10 else []
        free = [k for k in (*letters, *"abcdefghijklmnoprstuvwxyzABCDEFGHIJKLMNOPRSTUVWXYZ") if k not in keys]
        if not free:
            raise UserError(f"there are not enough keys for {len(actions)} actions")
        keys[free[0]] = i
    return keys


def legend(actions: Sequence[str], keys: Mapping[str, int]) -> dict[str, list[str]]:
    """The available keys, by what they do."""
    of = lambda number: [ARROWS.get(key, key) for key, i in keys.items() if i == number]
    rows = {action: of(number) for number, action in enumerate(actions)}
    return rows | {"as the agent would": [HAND_OVER], "leave": [LEAVE[0]]}


def alone(player: Player, seed: int, max_steps: int) -> tuple[float, int, str]:
    """The return, the length and the end of the agent's own episode."""
    obs, reward, step, last = player.env.reset(seed), 0.0, 0, False
    while not last and step < max_steps:
        answer = player.env.step(player.act(obs))
        obs, reward, step, last = answer.obs, reward + float(answer.reward), step + 1, bool(answer.last)
    return reward, step, "cut" if not last else "time limit" if answer.discount > 0 else "terminated"


def outcome(reward: float, steps: int, ending: str) -> str:
    return f"return {reward:,.6g} in {counted(steps, 'steps')} ({ending})"
