"""Which runs stand in one group, and under what name: filters, tasks, algorithms, what is pooled."""

import re

import pytest
from run_folders import write_run

from rl_lab.core.comparing.groups import arrange, chosen, differing
from rl_lab.core.errors import UserError
from rl_lab.core.folders import read_runs


def game(folder, game: str, *, num_envs=4, agent_name="dqn", sticky=0.0, **settings):
    env = {"_target_": "rl_lab.envs.atari.Atari", "game": game, "num_envs": num_envs, "sticky": sticky}
    return write_run(folder, choices={"agent": agent_name, "env": "atari"}, top={"env": env}, **settings)


@pytest.fixture
def study(tmp_path):
    """Two agents on two games, two seeds; what goes with the game differs."""
    for agent in ("dqn", "a2c"):
        for name, envs in (("pong", 4), ("breakout", 8)):
            for seed in range(2):
                folder = tmp_path / f"{agent}_{name}" / str(seed)
                game(folder, name, num_envs=envs, agent_name=agent, name=f"{agent}_{name}", seed=seed)
    return tmp_path


def grouped(folder, by=(), where=()):
    """Task -> group -> seeds, and notes."""
    notes: list[str] = []
    tasks = arrange(chosen(read_runs([folder], notes), where), by, notes)
    return {t: {g: sorted(run.seed for run in runs) for g, runs in of.items()} for t, of in tasks.items()}, notes


def line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# -- tasks and algorithms


def test_a_task_is_an_environment_and_an_algorithm_is_known_in_all_of_them(study):
    tasks, notes = grouped(study)
    assert tasks == {task: {"a2c": [0, 1], "dqn": [0, 1]} for task in ("breakout", "pong")}
    assert notes == ["differs from task to task within a group: env.num_envs."]


def test_a_setting_of_the_environment_makes_another_task(study):
    game(study / "x", "pong", sticky=0.25, name="dqn_sticky")
    tasks, _ = grouped(study)
    assert set(tasks) == {"breakout", "pong env.sticky=0.0", "pong env.sticky=0.25"}
    assert set(tasks["pong env.sticky=0.25"]) == {"dqn"}


def test_what_an_agent_is_shown_of_a_world_makes_another_algorithm_and_no_other_world(tmp_path):
    for name, normalised in ("a", True), ("b", False):
        env = {"_target_": "rl_lab.envs.gym.Gym", "id": "CartPole-v1", "normalise_obs": normalised}
        write_run(tmp_path / name, choices={"agent": "ppo", "env": "gym"}, name="ppo", top={"env": env})
    tasks, _ = grouped(tmp_path)
    (groups,) = tasks.values()
    assert len(groups) == 2


def test_the_title_of_a_task_is_short_and_its_own_though_the_map_is_long(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    walls = "#" * 13
    maps = {
        "a": f"{walls}\n#S.........G#\n{walls}\n",
        "b": f"{walls}\n#G.........S#\n{walls}\n",
        "c": str(tmp_path / "m.txt"),
    }
    for name, drawn in maps.items():
        env = {"_target_": "rl_lab.envs.tabular.tabular", "mdp": {"map": drawn}}
        write_run(tmp_path / name, choices={"agent": "dqn", "env": "four_rooms"}, top={"env": env})
    titles, _ = grouped(tmp_path)
    drawn = [title for title in titles if re.fullmatch(r"four_rooms env\.mdp\.map=#{12}\.\.\. \([0-9a-f]{4}\)", title)]
    assert len(titles) == 3 and len(drawn) == 2 and "four_rooms env.mdp.map=m.txt" in titles


def test_a_setting_that_differs_within_a_task_makes_another_algorithm(study):
    for name in ("pong", "breakout"):
        game(study / f"x_{name}", name, num_envs={"pong": 4, "breakout": 8}[name], name=f"dqn_{name}", gamma=0.9)
    tasks, _ = grouped(study)
    both = {"a2c": [0, 1], "dqn agent.gamma=0.99": [0, 1], "dqn agent.gamma=0.9": [0]}
    assert tasks == {"breakout": both, "pong": both}


def test_a_setting_that_only_some_have_makes_another_algorithm_too(study):
    game(study / "x", "pong", name="dqn_pong_deep", depth=3)
    tasks, _ = grouped(study)
    assert tasks["pong"] == {"a2c": [0, 1], "dqn": [0, 1], "dqn_pong_deep": [0]}


def test_a_seed_run_twice_under_two_names_counts_once_over_several_tasks(study):
    game(study / "again", "pong", name="dqn_pong_again", seed=1)
    tasks, notes = grouped(study)
    assert tasks["pong"]["dqn"] == [0, 1]
    assert sum("has its seed and settings" in note for note in notes) == 1


# -- by


def test_groups_by_a_setting_pool_the_rest_and_say_so(study):
    tasks, notes = grouped(study, by=["agent"])
    assert tasks["pong"] == {"agent=a2c": [0, 1], "agent=dqn": [0, 1]}
    game(study / "x", "pong", name="dqn_pong", gamma=0.9, seed=0)
    tasks, notes = grouped(study, by=["agent"])
    assert tasks["pong"]["agent=dqn"] == [0, 0, 1]
    assert "pooled in a group: agent.gamma (0.9 or 0.99)." in notes
    tasks, _ = grouped(study, by=["agent.gamma"])
    assert tasks["pong"] == {"agent.gamma=0.99": [0, 0, 1, 1], "agent.gamma=0.9": [0]}
    tasks, _ = grouped(study, by=["agent", "agent.gamma"])
    assert tasks["pong"]["agent=dqn agent.gamma=0.9"] == [0]


def test_what_groups_are_told_apart_by_makes_no_tasks(study):
    game(study / "x", "pong", sticky=0.25, name="dqn_sticky")
    tasks, _ = grouped(study, by=["env.sticky"])
    assert tasks["pong"] == {"env.sticky=0.0": [0, 0, 1, 1], "env.sticky=0.25": [0]}


def test_a_setting_that_some_lack(study):
    game(study / "x", "pong", name="x", depth=3)
    tasks, _ = grouped(study, by=["agent.depth"])
    assert tasks["pong"]["agent.depth=3"] == [0] and len(tasks["pong"]["agent.depth=none"]) == 4


# -- where


@pytest.mark.parametrize(
    ("where", "left"),
    [
        (["env.game:pong"], {"pong": {"a2c_pong": [0, 1], "dqn_pong": [0, 1]}}),
        (["name:dqn_*"], {"breakout": {"dqn": [0, 1]}, "pong": {"dqn": [0, 1]}}),
        (["-agent:a2c", "seed:1"], {"breakout": {"dqn": [1]}, "pong": {"dqn": [1]}}),
        (["agent.gamma:.99", "env.num_envs:8"], {"breakout": {"a2c_breakout": [0, 1], "dqn_breakout": [0, 1]}}),
    ],
)
def test_conditions(study, where, left):
    assert grouped(study, where=where)[0] == left


def test_a_number_is_compared_as_a_number_and_text_without_case(study):
    game(study / "x", "pong", name="x", lr=1e-5, double=True)
    assert grouped(study, where=["agent.lr:0.00001"])[0] == grouped(study, where=["agent.double:True"])[0]
    assert grouped(study, where=["agent.lr:1e-5"])[0] == {"pong": {"x": [0]}}


# -- a user's mistakes


@pytest.mark.parametrize(
    ("by", "where", "text"),
    [
        (["agent.gama"], [], "no setting 'agent.gama'; did you mean agent.gamma?"),
        ([], ["agent.gama:1"], "no setting 'agent.gama'; did you mean agent.gamma?"),
        ([], ["agent.gamma:0.5"], "where=agent.gamma:0.5 leaves no run; agent.gamma is 0.99"),
        ([], ["env.game:pacman"], "where=env.game:pacman leaves no run; env.game is breakout or pong"),
        ([], ["dqn"], "where=dqn is not a condition; write where=agent.gamma:0.99, or -agent.gamma:0.99"),
        (["seed"], [], "by=seed would leave nothing to pool, as a group is made of seeds; where=seed:0 selects one"),
    ],
)
def test_mistakes(study, by, where, text):
    with pytest.raises(UserError) as error:
        grouped(study, by, where)
    assert line(error) == text


def test_the_settings_that_differ_are_listed_by_group_without_those_of_the_task(study):
    game(study / "x", "pong", name="dqn_pong", gamma=0.9)
    found = differing(arrange(read_runs([study], []), ["agent"], []))
    assert found == {
        "agent.gamma": {"agent=dqn": ["0.9", "0.99"], "agent=a2c": ["0.99"]},
        "env.num_envs": {"agent=dqn": ["4", "8"], "agent=a2c": ["4", "8"]},
    }
