"""Gymnasium environments as people write them: buffers used again, odd shapes, old interfaces, faults of their own."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.envs import frames
from rl_lab.loops import judging
from rl_lab.networks import torsos as networks
from rl_lab.networks.heads import QNetwork

Gym = stated("env/gym")


class Counter(gymnasium.Env):
    """Shows how often it was reset, and its steps since; an episode ends after seven (terminated) or its time limit."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}
    observation_space, action_space = spaces.Box(0, 1e6, (2,), np.float64), spaces.Discrete(2)
    shared = np.zeros(2)

    def __init__(self, render_mode=None, buffer="fresh", info=None, drawn=None):
        self.render_mode, self.info, self.drawn = render_mode, info or {}, drawn
        self.obs = {"fresh": None, "own": np.zeros(2), "of all": Counter.shared}[buffer]
        self.resets = self.steps = 0

    def _seen(self):
        if self.obs is None:
            return np.array([self.resets, self.steps], dtype=np.float64)
        self.obs[:] = self.resets, self.steps
        return self.obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert options is None  # some take {} for a request
        self.resets, self.steps = self.resets + 1, 0
        return self._seen(), dict(self.info)

    def step(self, action):
        self.steps += 1
        return self._seen(), float(action), self.steps == 7, False, dict(self.info)

    def render(self):
        return self.drawn


@pytest.fixture
def register(monkeypatch):
    def add(make, **settings) -> str:
        monkeypatch.setitem(
            gymnasium.registry, "Wild-v0", gymnasium.envs.registration.EnvSpec("Wild-v0", make, **settings)
        )
        return "Wild-v0"

    return add


# -- the true successor


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("limit", [3, 100])
@pytest.mark.parametrize("buffer", ["fresh", "own", "of all"])
@pytest.mark.parametrize("info", [{}, {"final_obs": [-1.0, -1.0], "final_info": 3, "_final_obs": True}])
def test_the_last_observation_is_the_true_successor(register, mode, limit, buffer, info):
    """Whatever buffer it lies in and whatever the environment calls its own infos."""
    if mode == "async" and (buffer, limit, bool(info)) != ("own", 3, True):
        pytest.skip("processes are slow to start")
    id = register(Counter, max_episode_steps=limit, kwargs={"vectorization_mode": mode})
    env, length = Gym(id, 2, options={"buffer": buffer, "info": info}), min(limit, 7)
    expected = obs = env.reset(0)
    assert obs.tolist() == [[1, 0], [1, 0]]
    for t in range(1, 20):
        step = env.step(torch.tensor([0, 1]))
        episode, steps = 1 + (t - 1) // length, 1 + (t - 1) % length
        assert step.next_obs.tolist() == [[episode, steps]] * 2
        assert step.last.tolist() == [steps == length] * 2 and step.reward.tolist() == [0, 1]
        assert step.discount.tolist() == [0.0 if steps == 7 else 1.0] * 2
        assert step.obs.tolist() == ([[episode + 1, 0]] * 2 if steps == length else step.next_obs.tolist())
        assert expected.tolist() == obs.tolist()
        expected, obs = step.obs.clone(), step.obs
    env.close()


def test_a_registration_that_begins_episodes_at_another_time_is_refused(register):
    id = register(Counter, kwargs={"vector_kwargs": {"autoreset_mode": "NextStep"}})
    with pytest.raises(UserError, match="^env.id=Wild-v0 is refused: it is registered with autoreset_mode=NextStep; "):
        Gym(id, 1)


# -- images


class Scalar(Counter):
    """Shows a bare number."""

    observation_space = spaces.Box(0, 1, (), np.float32)


def test_a_bare_number_is_refused_with_what_makes_a_vector_of_it(register):
    with pytest.raises(UserError, match=r"its observations are bare numbers.*env\.wrappers=\[FlattenObservation\]"):
        Gym(register(Scalar), 2)


@pytest.mark.parametrize(("name", "ours"), [("NormalizeReward", "reward=0.99"), ("NormalizeObservation", "obs=true")])
def test_a_wrapper_whose_statistics_would_be_lost_is_refused_and_ours_named(register, name, ours):
    with pytest.raises(
        UserError, match=rf"env\.wrappers\[0\]={name}: its statistics .*env\.normalise_{ours} does the same"
    ):
        Gym(register(Counter), 2, wrappers=[name])


class Pictures(gymnasium.Env):
    """Every pixel tells its channel: 10 (c + 1)."""

    action_space = spaces.Discrete(2)

    def __init__(self, shape, first, render_mode=None):
        self.observation_space = spaces.Box(0, 255, tuple(shape), np.uint8)
        self.seen = np.zeros(shape, np.uint8)
        channels = 10 * (1 + np.arange(shape[0] if first else shape[-1], dtype=np.uint8))
        self.seen += channels[:, None, None] if first else channels

    def reset(self, *, seed=None, options=None):
        return self.seen, {}

    def step(self, action):
        return self.seen, 0.0, False, False, {}


@pytest.mark.parametrize(
    ("shape", "first", "seen"),
    [
        ((4, 84, 84), True, (4, 84, 84)),
        ((3, 210, 160), True, (3, 210, 160)),
        ((12, 64, 96), True, (12, 64, 96)),
        ((1, 40, 36), True, (1, 40, 36)),
        ((84, 84, 4), False, (4, 84, 84)),
        ((210, 160, 3), False, (3, 210, 160)),
        ((64, 96, 1), False, (1, 64, 96)),
        ((5, 7, 3), False, (3, 5, 7)),
    ],
)
def test_the_channels_of_an_image_are_its_shortest_side(register, shape, first, seen):
    env = Gym(register(Pictures), 2, options={"shape": shape, "first": first})
    obs = env.reset(0)
    assert env.spec.obs_shape == seen and env.spec.obs_dtype == torch.uint8 and obs.shape == (2, *seen)
    for picture in (obs, env.step(torch.tensor([0, 1])).next_obs):
        assert all((picture[:, c] == 10 * (c + 1)).all() for c in range(seen[0]))


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 84, 4), (84, 4, 84), (3, 3, 9), (7, 7, 7)])
def test_an_image_whose_channels_could_be_either_side_says_so(register, shape):
    id = register(Pictures)
    with pytest.raises(UserError) as error:
        Gym(id, 1, options={"shape": shape, "first": True})
    assert str(error.value) == (
        f"env.id=Wild-v0: any side of its images {shape} may count the channels; set env.channels=first or env.channels=last"
    )
    assert Gym(id, 1, options={"shape": shape, "first": True}, channels="first").spec.obs_shape == shape
    last = Gym(id, 1, options={"shape": shape, "first": False}, channels="last")
    assert last.spec.obs_shape == (shape[2], *shape[:2]) and (last.reset(0)[:, 1] == 20).all()


@pytest.mark.parametrize("torso", [networks.linear, partial(networks.mlp, hidden=(8,))])
def test_dense_layers_see_images_as_numbers_from_0_to_1(register, torso):
    env = Gym(register(Pictures), 2, options={"shape": (7, 8, 3), "first": False})
    net = QNetwork(env.spec, torso)
    pixels = next(layer for layer in net.torso.modules() if isinstance(layer, networks.Pixels))
    assert pixels(env.reset(0)).unique().tolist() == pytest.approx([10 / 255, 20 / 255, 30 / 255])
    assert net(env.reset(0)).shape == (2, 2, 1)


def test_what_a_small_image_is_told_to_take_instead_runs(register, tmp_path, capsys):
    id = register(Pictures, max_episode_steps=9)
    run = lambda *more: cli.main("rl-lab", "rl", COMMANDS, ["train", "env=gym", f"env.id={id}", "env.num_envs=2",
        "+env.options.shape=[7,8,3]", "+env.options.first=false", "tracker=none", "device=cpu", "loop.total_steps=40",
        "loop.eval_episodes=2", "agent.learning_starts=10", "agent.batch_size=4", *more])  # fmt: skip
    assert run("agent=dqn_cnn", f"hydra.run.dir={tmp_path / 'cnn'}") == 2
    assert capsys.readouterr().err.strip() == (
        "rl-lab: agent.network=nature_cnn needs frames of at least 36 x 36, not observations (3, 7, 8); "
        "choose agent/network=cnn_small, agent/network=mlp or agent/network=linear"
    )
    for network in ("cnn_small", "mlp", "linear"):
        assert run("agent=dqn_cnn", f"agent/network={network}", f"hydra.run.dir={tmp_path / network}") == 0


# -- answers that Gymnasium cannot use, and faults of the environment's own


class Odd(gymnasium.Env):
    """Answers as `answer` says from its third step on; `begin` is what a reset answers."""

    observation_space, action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, answer, begin=None):
        self.answer, self.begin, self.steps = answer, begin, 0

    def reset(self, *, seed=None, options=None):
        return (np.zeros(2, np.float32), {}) if self.begin is None else self.begin()

    def step(self, action):
        self.steps += 1
        if self.steps < 3:
            return np.zeros(2, np.float32), 0.0, False, False, {}
        return self.answer()


def fails():
    return {}["no such key"]


OBS = np.zeros(2, np.float32)
ANSWERS = {
    "four values": (lambda: (OBS, 0.0, False, {}), "step() does not return what"),
    "six values": (lambda: (OBS, 0.0, False, False, {}, {}), "step() does not return what"),
    "no tuple": (lambda: None, "step() does not return what"),
    "a reward of shape (1,)": (lambda: (OBS, np.zeros(1), False, False, {}), "a reward is a number, and array([0.]) is not"),
    "no reward": (lambda: (OBS, None, False, False, {}), "a reward is a number, and None is not"),
    "a word": (lambda: (OBS, "high", False, False, {}), "step() does not return what"),
    "ends of shape (2,)": (lambda: (OBS, 0.0, np.zeros(2, bool), False, {}), "step() does not return what"),
    "another shape": (lambda: (np.zeros(3, np.float32), 0.0, False, False, {}), "step() does not return what"),
    "no observation": (lambda: (None, 0.0, False, False, {}), "step() does not return what"),
}  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("limit", [None, 50])
def test_an_answer_that_gymnasium_cannot_use_is_named_in_a_line(register, answer, limit):
    make, words = ANSWERS[answer]
    env = Gym(register(Odd, max_episode_steps=limit, disable_env_checker=limit is None), 2, options={"answer": make})
    env.reset(0)
    with pytest.raises(UserError) as error:
        for _ in range(3):
            env.step(torch.tensor([0, 1]))
    assert str(error.value).startswith("env.id=Wild-v0: its step() does not return what Gymnasium ")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("begin", [lambda: OBS, lambda: None, lambda: (OBS,), lambda: (np.zeros(5, np.float32), {})])
def test_a_reset_of_the_old_interface_is_named_in_a_line(register, begin):
    env = Gym(register(Odd), 2, options={"answer": fails, "begin": begin})
    with pytest.raises(UserError, match=r"^env.id=Wild-v0: its reset\(\) does not return what Gymnasium "):
        env.reset(0)


def test_a_fault_inside_an_environment_is_shown_whole(register):
    env = Gym(register(Odd), 2, options={"answer": fails})
    env.reset(0)
    with pytest.raises(KeyError, match="no such key"):
        for _ in range(3):
            env.step(torch.tensor([0, 1]))


@pytest.mark.parametrize("fault", [fails, lambda: (OBS, 0.0, False, {})])
def test_a_run_whose_environment_fails_has_failed_and_keeps_its_checkpoint(register, tmp_path, fault):
    """The first twelve steps are good; the checkpoint of one of them stands, and is gone on from."""
    count = iter(range(10_000))
    answer = lambda: fault() if next(count) >= 40 else (OBS, 0.0, True, False, {})
    id, folder = register(lambda: Odd(answer)), tmp_path / "run"
    train = ["train", "env=gym", f"env.id={id}", "env.num_envs=2", "agent=random", "tracker=none", "device=cpu",
             "checkpoint.every=0.0001", "loop.total_steps=1000", "loop.eval_every=1000", "loop.eval_episodes=1"]  # fmt: skip
    run = partial(cli.main, "rl-lab", "rl", COMMANDS)
    if fault is fails:
        with pytest.raises(KeyError, match="no such key"):
            run([*train, f"hydra.run.dir={folder}"])
    else:
        assert run([*train, f"hydra.run.dir={folder}"]) == 2
    summary = json.loads((folder / "summary.json").read_text())
    step = torch.load(folder / "checkpoint.pt", weights_only=True)["step"]
    assert summary["state"] == "failed" and 0 < step < 60
    count = iter(range(0))
    answer = None
    gymnasium.registry[id].entry_point = lambda: Odd(lambda: (OBS, 0.0, True, False, {}))
    assert run(["train", f"run={folder}", f"loop.total_steps={step + 20}"]) == 0
    assert json.loads((folder / "summary.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("id", "game"),
    [
        ("ALE/Pong-v5", "pong"), ("ALE/MsPacman-v5", "ms_pacman"), ("PongNoFrameskip-v4", "pong"),
        ("SpaceInvadersDeterministic-v0", "space_invaders"), ("Breakout-v0", "breakout"), ("Breakout-ram-v4", "breakout"),
        ("ALE/Pong", "pong"), ("ALE/Qbert-v5", "qbert"), ("ALE/UpNDown-v5", "up_n_down"),
    ],
)  # fmt: skip
def test_the_ids_of_atari_games_point_to_env_atari(id, game):
    with pytest.raises(UserError) as error:
        Gym(id, 1)
    assert str(error.value) == f"no Gymnasium environment '{id}'; Atari games are played as env=atari env.game={game}"


class Bare(gymnasium.Env):
    """States neither of its spaces."""


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Bare, "AttributeError: The environment must specify an action space. "),
        ("no_such_module_of_worlds:X", "ModuleNotFoundError: No module named 'no_such_module_of_worlds'"),
    ],
)
def test_what_gymnasium_itself_refuses_is_a_line(register, make, words):
    with pytest.raises(UserError) as error:
        Gym(register(make), 2)
    assert str(error.value).startswith(f"env.id=Wild-v0: {words}") and "\n" not in str(error.value)


def test_options_that_an_environment_cannot_take_are_named_in_a_line(register):
    for id, options, words in [
        ("FrozenLake-v1", {"map_name": "9x9"}, "env.id=FrozenLake-v1 with env.options {'map_name': '9x9'}: KeyError: '9x9'"),
        ("CartPole-v1", {"size": 3}, "env.id=CartPole-v1: CartPoleEnv.__init__() got an unexpected keyword argument 'size'"),
        ("CartPole-v1", {"max_episode_steps": "many"}, "env.id=CartPole-v1: Expect the `max_episode_steps` to be an integer"),
    ]:  # fmt: skip
        with pytest.raises(UserError) as error:
            Gym(id, 2, options=options)
        assert str(error.value).startswith(words) and "\n" not in str(error.value)


# -- episodes that never end


def test_an_episode_that_never_ends_is_told_of_and_then_refused(register, monkeypatch, capsys):
    monkeypatch.setattr(judging, "LONG", 100)
    monkeypatch.setattr(judging, "ENDLESS", 1_000)
    env = Gym(register(Pictures), 2, options={"shape": (7, 8, 3), "first": False})
    with pytest.raises(UserError) as error:
        judging.play(env, lambda obs: torch.zeros(2, dtype=torch.int64), 2, seed=0)
    assert str(error.value) == (
        "an episode has lasted 1,000 steps, and its environment has no time limit; "
        "set one: +env.options.max_episode_steps=10000"
    )
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[5] for line in said] == ["100", "200", "400", "800"]
    assert said[0] == (
        "evaluation: an episode has lasted 100 steps without ending; the run stops at 1,000. "
        "This environment has no time limit; set one: +env.options.max_episode_steps=10000"
    )


def test_a_long_episode_that_ends_is_played_to_its_end(register, monkeypatch, capsys):
    """With a time limit of its own however long; without one up to the last step allowed."""
    monkeypatch.setattr(judging, "LONG", 100)
    monkeypatch.setattr(judging, "ENDLESS", 1_000)
    id, still = register(Pictures, max_episode_steps=2_500), lambda obs: torch.zeros(2, dtype=torch.int64)
    env = Gym(id, 2, options={"shape": (7, 8, 3), "first": False})
    assert env.time_limit == 2_500
    returns, lengths = judging.play(env, still, 4, seed=0)
    assert lengths.tolist() == [2_500] * 4 and capsys.readouterr().err == ""
    env = Gym(id, 2, options={"shape": (7, 8, 3), "first": False, "max_episode_steps": -1})
    assert env.time_limit is None
    count = iter(range(2_000))
    env._env.envs[0].unwrapped.step = lambda action: (
        env._env.envs[0].unwrapped.seen,
        1.0,
        next(count) % 999 == 998,
        False,
        {},
    )
    env._env.envs[1].unwrapped.step = lambda action: (env._env.envs[1].unwrapped.seen, 0.0, True, False, {})
    _, lengths = judging.play(env, still, 4, seed=0)
    assert sorted(lengths.tolist()) == [1, 1, 999, 999]
    assert len(capsys.readouterr().err.splitlines()) == 4  # at 100, 200, 400 and 800, once


# -- what render() gives


GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
RGB = np.stack([GREY, GREY, GREY], -1)
FRAMES = {
    "bytes": (RGB, RGB),
    "shares up to 1": (RGB / np.float32(255), RGB),
    "doubles up to 255": (RGB.astype(np.float64), RGB),
    "whole numbers": (RGB.astype(np.int64), RGB),
    "truth values": (RGB > 80, np.where(RGB > 80, 255, 0)),
    "out of bounds": (RGB * 2.0 - 1.0, (RGB * 2.0 - 1.0).clip(0, 255)),
    "not a number": (np.where(RGB == 0, np.nan, RGB), RGB),
    "grey": (GREY, RGB),
    "grey with a channel": (GREY[..., None], RGB),
    "grey shares": (GREY / 255, RGB),
    "with transparency": (np.concatenate([RGB, RGB[..., :1]], -1), RGB),
    "channels first": (np.ascontiguousarray(np.pad(RGB, ((0, 5), (0, 5), (0, 0))).transpose(2, 0, 1)), np.pad(RGB, ((0, 5), (0, 5), (0, 0)))),
    "a list of frames": ([RGB * 0, RGB], RGB),
    "a tuple of frames": ((RGB * 0, RGB), RGB),
    "nested lists": (RGB.tolist(), RGB),
}  # fmt: skip


@pytest.mark.parametrize("kind", FRAMES)
def test_what_render_gives_becomes_a_picture(register, kind):
    drawn, expected = FRAMES[kind]
    env = Gym(register(Counter), 2, options={"drawn": drawn}, camera=True)
    env.reset(0)
    assert env.picture().dtype == np.uint8 and env.frames_per_second == 12
    np.testing.assert_array_equal(env.picture(), np.stack([expected, expected]).astype(np.uint8))


@pytest.mark.parametrize(
    "drawn", [None, [], (), {}, np.zeros(0), np.zeros((0, 4, 3)), np.zeros((2, 3, 7)), 3.0, np.array(["a"]), object()]
)
def test_what_is_no_picture_is_a_line(register, drawn):
    env = Gym(register(Counter), 1, options={"drawn": drawn}, camera=True)
    env.reset(0)
    with pytest.raises(UserError, match=r"^env.id=Wild-v0 cannot be drawn: its render\(\) returns .*\]$"):
        env.picture()


class Texts(Counter):
    metadata = {"render_modes": ["ansi"]}

    def render(self):
        assert self.render_mode == "ansi"
        return self.drawn


def test_text_is_drawn_letter_by_letter(register):
    pictures = []
    for text in ("\x1b[41mA\x1b[0m.\n.B\n", "A.\n.C\n"):
        env = Gym(register(Texts), 1, options={"drawn": text}, camera=True)
        env.reset(0)
        pictures += [*env.picture()]
    off = np.argwhere((pictures[0] != pictures[1]).any(-1))
    assert pictures[0].shape == (54, 36, 3) and pictures[0].min() < 60
    assert (off >= (27, 18)).all() and (off < (46, 28)).all()  # the second letter of the second line


class Silent(Counter):
    metadata = {}


class Mute(Counter):
    metadata = {"render_modes": ["human"], "render_fps": 0}

    def __init__(self, render_mode=None):
        assert render_mode is None
        super().__init__()


def test_a_picture_without_a_display_is_drawn_without_a_word():
    """Of SDL's, which would look for one."""
    code = "env, _ = made('CartPole-v1', 1, {}, {'render_mode': 'rgb_array'}); env.reset(seed=0); print(env.render()[0].shape)"  # fmt: skip
    bare = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR")}
    words = [sys.executable, "-c", f"from rl_lab.envs.gym import made; {code}"]
    drawn = subprocess.run(words, env=bare, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (drawn.stdout.splitlines()[-1:], drawn.stderr) == (["(400, 600, 3)"], "")


@pytest.mark.parametrize(("make", "fps"), [(Silent, 30), (Mute, 30)])
def test_a_world_that_draws_nothing_or_at_no_speed(register, make, fps):
    env = Gym(register(make), 1, camera=True)
    env.reset(0)
    assert env.frames_per_second == fps
    with pytest.raises(UserError, match="cannot be drawn"):
        env.picture()


@pytest.mark.parametrize(
    ("said", "fps"),
    [(12, 12), (29.97, 29.97), (0, 30), (-1, 30), (None, 30), ("fast", 30), (float("nan"), 30), (float("inf"), 30), (10**9, 30), (1e-9, 30)],
)  # fmt: skip
def test_a_speed_is_a_number_that_a_film_can_have(said, fps):
    assert frames.speed(said) == fps
