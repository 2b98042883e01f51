"""What worlds declare is all that is asked of them: a world of one's own is drawn, recorded and known by it."""

from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stated import stated
from torch import Tensor

from rl_lab.agents.random import Random
from rl_lab.core.errors import UserError
from rl_lab.envs.abilities import Filmed, Map, Mapped, Tabular
from rl_lab.envs.tabular.mdp import Layout
from rl_lab.gymnasium_api.envs import modes
from rl_lab.looking import worlds
from rl_lab.loops.judging import Judge
from rl_lab.playing.player import Player
from rl_lab.playing.scenes import film, play, rate_of
from rl_lab.playing.stage import Stage
from rl_lab.types import Spec, Step, VectorEnv

Atari = stated("env/atari")
Collect = stated("env/collect")
Gym = stated("env/gym")
MDPEnv = stated("env/base/tabular")
gambler = stated("env/gambler", "mdp")
gridworld = stated("env/base/gridworld", "mdp")

CPU = torch.device("cpu")
HALL = Layout(("#####", "#...#", "#####"), ((1, 1), (1, 2), (1, 3)), {})


@pytest.mark.parametrize(
    ("make", "abilities", "time_limit", "fps"),
    [
        (lambda: MDPEnv(gridworld("S.G"), 2, time_limit=9), {Tabular, Mapped}, 9, None),
        (lambda: MDPEnv(gambler(), 2, time_limit=9), {Tabular}, 9, None),
        (lambda: Collect(2, size=6, goals=2, mazes=8, time_limit=7), {Mapped}, 7, None),
        (lambda: Gym("CartPole-v1", 2), {Filmed}, 500, 50),
        (lambda: Atari("pong", 1, num_threads=1, max_frames=400), {Filmed}, 100, 15),
    ],
)
def test_what_a_world_declares(make, abilities, time_limit, fps):
    env = make()
    declared = {ability for ability in (Tabular, Filmed) if isinstance(env, ability)}
    assert declared | ({Mapped} if worlds.mapped(env) else set()) == abilities
    assert (env.time_limit, env.frames_per_second) == (time_limit, fps)
    env.close()


class Walk:
    """A walk to the right end of a hall, for which no room of the house was changed; it can be drawn."""

    num_envs, device, spec = 1, CPU, Spec((), torch.int64, ("stay", "right"))
    time_limit, frames_per_second, has_map = None, 3.0, True

    def reset(self, seed: int) -> Tensor:
        self.place = torch.zeros(1, dtype=torch.int64)
        return self.place

    def step(self, action: Tensor) -> Step:
        reached = self.place + action
        last = reached == 2
        self.place = torch.where(last, 0, reached)
        return Step(action.float(), 1.0 - last.float(), last, reached, self.place, torch.ones(1))

    def observe(self) -> Tensor:
        return self.place

    def maps(self, obs: Tensor) -> Iterator[Map]:
        return (Map(HALL, (1, 1 + place), ((1, 3),)) for place in obs.tolist())

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None: ...

    def close(self) -> None: ...


class Bare(Walk):
    has_map = False


def player(env: VectorEnv) -> Player:
    return Player("mine", "mine", Path("mine"), env, Random(env.spec, CPU, 0), 0, "steps")


def test_a_world_of_ones_own_is_drawn_by_what_it_declares():
    env = Walk()
    moments = list(play(player(env), episodes=1, seed=0, max_steps=50))
    assert moments[-1].ending == "terminated" and moments[-1].reward == 2
    for moment, place in ((moments[0], 0), (moments[-1], 2)):
        (seen,) = env.maps(torch.tensor([place]))
        assert moment.picture.tobytes() == worlds.picture(seen).tobytes()
    assert moments[0].picture.tobytes() != moments[-1].picture.tobytes()
    assert rate_of(player(env), None) == 3.0 and len(list(film(player(env), 3.0, episodes=1, seed=0, max_steps=50))) > 2
    assert worlds.text(seen) == "#####\n#..@#\n#####\n"


def test_it_is_recorded_with_its_pictures():
    env = Walk()
    (episode,) = Stage(env, Random(env.spec, CPU, 0), 1, {}, {}).episodes([1], 0, frames=True)
    for frame, place in zip(episode.frames, episode.obs[:-1], strict=True):
        assert np.array_equal(frame, np.asarray(worlds.picture(*env.maps(torch.tensor([place])))))


def test_a_world_that_declares_no_map_has_no_picture():
    with pytest.raises(UserError, match="^mine: its environment has no picture to film$"):
        next(play(player(Bare()), episodes=1, seed=0, max_steps=5))
    with pytest.raises(UserError, match="no picture; record it with frames=false$"):
        list(Stage(Bare(), Random(Bare.spec, CPU, 0), 1, {}, {}).episodes([1], 0, frames=True))
    assert modes(None, "bare", Bare())[0]["render_modes"] == [] != modes(None, "walk", Walk())[0]["render_modes"]


def test_regret_is_known_where_the_world_is_tabular_and_the_actor_has_probabilities():
    class Silent:
        def act(self, obs, greedy=False):
            return torch.ones(len(obs), dtype=torch.int64)

    said, env = [], MDPEnv(gridworld("S.G"), 1, time_limit=9)
    assert Judge(Walk(), 1, 0).regret is None
    assert Judge(env, 1, 0).exact(Random(env.spec, CPU, 0))["eval/regret"] > 0
    assert Judge(env, 1, 0, said.append).exact(Silent()) == {} and "Silent" in said[0]


def test_a_world_with_options_says_how_long_they_took():
    env = gymnasium.make("rl_lab/Collect-v0", mazes=8)
    env.reset(seed=0)
    assert env.step(0)[4]["duration"] >= 1
    env = gymnasium.make("rl_lab/FourRooms-v0")
    env.reset(seed=0)
    assert env.step(0)[4] == {}
