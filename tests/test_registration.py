"""Our worlds behind Gymnasium's interfaces, held against Gymnasium's own vector env and both checkers."""

import subprocess
import sys
import warnings
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.env_checker import check_env as check_for_sb3
from stated import stated

import rl_lab
from rl_lab.core.errors import UserError
from rl_lab.gymnasium_api.registration import name, worlds

Gym = stated("env/gym")

ROOMS = "rl_lab/FourRooms-v0"
# Down from S is the goal; the way right is longer than the time limit.
TINY = {"mdp": {"map": "S....\nG####", "noise": 0.0, "rewards": {"G": 7.0}, "living_reward": -0.5}, "time_limit": 4}


def test_every_world_of_conf_is_registered_when_rl_lab_is_imported():
    assert rl_lab.__version__ and {name(w) for w in worlds()} <= set(gymnasium.registry)
    assert {"four_rooms", "russell_norvig"} <= set(worlds()) and not {"atari", "gym", "cartpole"} & set(worlds())
    assert name("frozen_lake_8x8") == "rl_lab/FrozenLake8x8-v0"
    assert gymnasium.spec(ROOMS).kwargs == {"world": "four_rooms"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


def test_importing_rl_lab_imports_nothing_else():
    heavy = {"torch", "gymnasium", "numpy", "yaml", "omegaconf", "hydra"}
    assert python(f"import sys, rl_lab; print({heavy} & set(sys.modules))") == "set()\n"


@pytest.mark.parametrize(
    "imports",
    [
        "import rl_lab, gymnasium",
        "import gymnasium, rl_lab",
        "import rl_lab; from gymnasium import spaces; import gymnasium",
        "import rl_lab, importlib.util; importlib.util.find_spec('gymnasium'); import gymnasium",  # looked for first
    ],
)
def test_the_worlds_are_registered_in_whichever_order_one_imports(imports):
    """And nothing waits any longer then: gymnasium is loaded by its own loader."""
    seen = "import sys; print('rl_lab/FourRooms-v0' in gymnasium.registry, type(gymnasium.__spec__.loader).__name__)"
    waiting = "print(any(type(finder).__name__ == 'Waiting' for finder in sys.meta_path))"
    assert python(f"{imports}; {seen}; {waiting}") == "True SourceFileLoader\nFalse\n"


def test_a_world_is_registered_by_what_it_is_built_of(tmp_path, monkeypatch):
    """Not those of Gymnasium itself, nor those that need a file or a name."""
    (tmp_path / "env").mkdir()
    files = {"base": "_target_: rl_lab.envs.collect.world.Collect\n", "mine": "# mine\ndefaults: [base, _self_]\n",
             "theirs": "_target_: rl_lab.envs.gym.Gym\nid: CartPole-v1\n", "again": "defaults: [theirs]\n",
             "odd": "mdp:\n  _target_: rl_lab.envs.tabular.stepper.MDPEnv\n"}  # fmt: skip
    for stem, text in files.items():
        (tmp_path / "env" / f"{stem}.yaml").write_text(text)
    monkeypatch.setattr("rl_lab.gymnasium_api.registration.conf_dir", lambda: tmp_path)
    assert worlds() == ["base", "mine"]


@pytest.mark.parametrize("world", [w for w in worlds() if w not in ("car_rental", "scattered")])
def test_gymnasiums_checker_has_no_complaint(world):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(name(world)).unwrapped
        check_env(env, skip_render_check=True)
        if len(env.observation_space.shape or ()) == 3:  # which SB3 takes for a photograph
            warnings.simplefilter("ignore")
        check_for_sb3(env)


@pytest.mark.parametrize("obs", ["index", "one_hot", "planes", "coordinates"])
def test_the_checkers_accept_every_form_of_observation(obs):
    env = gymnasium.make(ROOMS, obs=obs).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if obs == "planes" else "error")  # SB3 takes three dimensions for a photograph
        check_env(env)
        check_for_sb3(env)


@pytest.mark.parametrize("action", [4, -1, 0.5])
def test_an_action_that_is_not_there_is_refused(action):
    """A table would read another state's row for it."""
    env, envs = gymnasium.make("rl_lab/FourRooms-v0").unwrapped, gymnasium.make_vec("rl_lab/FourRooms-v0", 2)
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(gymnasium.error.InvalidAction, match="whole numbers from 0 to 3"):
        env.step(action)
    with pytest.raises(gymnasium.error.InvalidAction, match="whole numbers from 0 to 3"):
        envs.step(np.array([0, action]))


def test_an_episode_step_by_step():
    env = gymnasium.make(ROOMS, render_mode="ansi", **TINY)
    assert env.observation_space == gymnasium.spaces.Discrete(6) and env.action_space == gymnasium.spaces.Discrete(4)
    assert env.reset(seed=0) == (0, {}) and env.render() == "@....\nG####\n"
    assert env.step(1) == (1, -0.5, False, False, {}) and env.render() == "S@...\nG####\n"
    assert env.step(3) == (0, -0.5, False, False, {})
    assert env.step(2) == (5, 7.0, True, False, {}) and env.render() == "S....\n@####\n"
    assert env.reset() == (0, {})
    ends = [env.step(1)[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_reaching_the_goal_in_the_last_step_is_no_truncation():
    env = gymnasium.make(ROOMS, **TINY | {"time_limit": 1})
    env.reset(seed=0)
    assert env.step(2)[2:4] == (True, False)


def test_a_picture():
    env = gymnasium.make(ROOMS, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    assert before.dtype == np.uint8 and before.ndim == 3 and before.shape[2] == 3
    while env.step(0)[0] == 94:
        pass
    assert (before != env.render()).any()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_vector_of_walkers_is_gymnasiums_vector_of_single_walkers(mode):
    """Every array and every info of 60 steps, in a world without chance."""
    ours = gymnasium.make_vec(ROOMS, 5, autoreset_mode=mode, **TINY)
    theirs = gymnasium.make_vec(ROOMS, 5, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **TINY)
    assert ours.metadata["autoreset_mode"] is mode and ours.num_envs == 5
    for space in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    same(ours.reset(seed=3), theirs.reset(seed=3))
    rng, ended = np.random.default_rng(0), 0
    for _ in range(60):
        action = rng.integers(4, size=5)
        answer = ours.step(action)
        same(answer, theirs.step(action))
        over = answer[2] | answer[3]
        ended += over.sum()
        if mode is AutoresetMode.DISABLED and over.any():
            over |= rng.random(5) < 0.2  # some are cut short by us
            same(*(env.reset(options={"reset_mask": over.copy()}) for env in (ours, theirs)))
    assert ended > 40


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_episode_statistics_are_those_of_gymnasiums_vector(mode):
    ours = gymnasium.make_vec(ROOMS, 3, autoreset_mode=mode, obs="one_hot", **TINY)
    theirs = gymnasium.make_vec(
        ROOMS, 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, obs="one_hot", **TINY
    )
    ours, theirs = RecordEpisodeStatistics(ours), RecordEpisodeStatistics(theirs)
    same(ours.reset(seed=0), theirs.reset(seed=0))
    rng = np.random.default_rng(1)
    for _ in range(60):
        action = rng.integers(4, size=3)
        answers = [env.step(action) for env in (ours, theirs)]
        for *_, info in answers:
            info.get("episode", {}).pop("t", None)  # seconds
        same(*answers)
    assert ours.episode_count == theirs.episode_count > 20
    assert list(ours.return_queue) == list(theirs.return_queue) and list(ours.length_queue) == list(theirs.length_queue)
    assert {7.0, -2.0} <= set(ours.return_queue)  # straight to the goal; cut after four steps


def same(ours, theirs):
    """Equal, with equal types and shapes, in tuples, dictionaries and arrays of objects too."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), [theirs[k] for k in ours]
    if isinstance(ours, tuple | list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if ours.dtype == object:
            same(ours.tolist(), theirs.tolist())
        else:
            np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == theirs


def test_walkers_who_end_must_be_reset_by_hand_where_nothing_else_does():
    env = gymnasium.make_vec(ROOMS, 2, autoreset_mode=AutoresetMode.DISABLED, **TINY)
    env.reset(seed=0)
    env.step(np.array([2, 1]))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.array([1, 1]))
    for mask in ([True, False], np.ones(3, dtype=bool), np.zeros(2, dtype=bool), np.ones(2)):
        with pytest.raises(UserError, match="must be a numpy array of 2 bools, at least one of them True$"):
            env.reset(options={"reset_mask": mask})


def test_a_seed_decides_all_and_none_goes_on():
    one, two = (gymnasium.make_vec("rl_lab/RussellNorvig-v0", 64) for _ in range(2))
    paths = []
    for env, seed in ((one, 5), (two, 5), (two, None), (one, 6)):
        env.reset(seed=seed)
        paths.append(np.stack([env.step(np.full(64, 1))[0] for _ in range(8)]))
    assert (paths[0] == paths[1]).all() and (paths[0] != paths[2]).any() and (paths[0] != paths[3]).any()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"mdp": {"nose": 0.1}}, "no setting 'env.mdp.nose'; did you mean env.mdp.noise?"),
        ({"time_limit": 0}, "env.time_limit=0 must be between 1 and 10,000,000"),
        ({"obs": "pixels"}, "env.obs=pixels is not a choice; "),
    ],
)
def test_mistakes_are_named(arguments, line):
    with pytest.raises(UserError) as error:
        gymnasium.make(ROOMS, **arguments)
    assert str(error.value).startswith(line)


def test_a_world_without_a_map_has_no_picture():
    with pytest.raises(UserError, match="^render_mode=ansi is refused: taxi has no map to draw$"):
        gymnasium.make_vec("rl_lab/Taxi-v0", 2, render_mode="ansi")


def test_sb3_learns_a_tiny_world():
    torch.manual_seed(0)
    model = A2C("MlpPolicy", gymnasium.make(ROOMS, obs="one_hot", **TINY), seed=0, device="cpu", learning_rate=0.02)
    model.learn(400)
    env = gymnasium.make(ROOMS, obs="one_hot", **TINY)
    obs, _ = env.reset(seed=0)
    action, _ = model.predict(obs, deterministic=True)
    assert int(action) == 2


def test_sb3_takes_states_as_numbers_too():
    model = DQN("MlpPolicy", gymnasium.make(ROOMS), seed=0, device="cpu", learning_starts=50, buffer_size=500)
    assert model.learn(300).num_timesteps == 300


@pytest.mark.parametrize(
    "world", ["/elsewhere/evil", "../env/four_rooms", "./four_rooms", "four_rooms.yaml", "", "atari", "gym"]
)
def test_a_world_is_the_name_of_one_of_ours_never_a_path(tmp_path, world):
    """A yaml from elsewhere would be called by what it holds."""
    canary = tmp_path / "sung"
    (tmp_path / "evil.yaml").write_text(
        f"_target_: pathlib.Path.touch\nself: {{_target_: pathlib.Path, _args_: ['{canary}']}}\n"
    )
    for path in (world.replace("/tmp", str(tmp_path)), f"{tmp_path}/evil"):
        for make in (partial(gymnasium.make, ROOMS), partial(gymnasium.make_vec, ROOMS)):
            with pytest.raises(UserError, match=r"^no world '.*'"):
                make(world=path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mdp": {"_target_": "os.getcwd"}}, "env.mdp._target_ is refused: the parts of a world cannot be changed here"),
        ({"mdp": {"rewards": {"_target_": "os.getcwd"}}}, "env.mdp.rewards._target_ is refused: "),
        ({"mdp": {"rewards": [{"_args_": [1]}]}}, "env.mdp.rewards[0]._args_ is refused: "),
        ({"_target_": "os.getcwd"}, "env._target_ is refused: "),
        ({"mdp": {"map": "${oc.env:HOME}"}}, "env.mdp.map is refused: it holds ${"),
        ({"mdp": {"rewards": {"${oc.env:HOME}": 1.0}}}, "env.mdp.rewards is refused: it holds ${"),
    ],
)  # fmt: skip
def test_what_a_world_is_made_of_is_not_changed_by_its_options(changes, line):
    with pytest.raises(UserError) as error:
        gymnasium.make(ROOMS, **changes)
    assert str(error.value).startswith(line)


def test_no_option_of_env_gym_names_another_world():
    with pytest.raises(UserError, match=r"^env.options.world is refused: env.id=rl_lab/FourRooms-v0 names its world; "):
        Gym(ROOMS, 1, options={"world": "/elsewhere/evil"})
