"""Comparisons over several tasks: scales, aggregates, ranking, what is left out, and the files."""

import csv
import math

import numpy as np
import pytest
from run_folders import write_run
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.core.comparing.compare import analyse
from rl_lab.core.comparing.results import _middle
from rl_lab.core.comparing.scales import ATARI, Scale
from rl_lab.core.comparing.statistics import stratified_bootstrap
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli

compare = stated("command/rl/compare")


def world(folder, id: str, values, *, agent="dqn", seed=0, metric="eval/return", **settings):
    return write_run(
        folder / agent / id / str(seed), values, name=f"{agent}_{id.lower()}", seed=seed, metric=metric,
        choices={"agent": agent, "env": "gym"}, top={"env": {"id": id}}, **settings,
    )  # fmt: skip


@pytest.fixture
def two(tmp_path):
    """Untrained 0 in A, -100 in B; the best group, dqn, ends at 10 in A (IQM of 8, 10, 12) and at 0 in B."""
    for seed, (a, b) in enumerate(((8, -20), (10, 0), (12, 20))):
        world(tmp_path / "runs", "A", [0, 4, a], seed=seed)
        world(tmp_path / "runs", "B", [-100, -50, b], seed=seed)
        world(tmp_path / "runs", "A", [2, 4, a / 2], seed=seed, agent="a2c")
        world(tmp_path / "runs", "B", [-90, -60, b - 50], seed=seed, agent="a2c")
    return tmp_path / "runs"


def test_scores_are_normalised_in_each_task_from_the_worst_start_to_the_best_end(two):
    results, notes = analyse([two])
    assert results.scales == {"A": Scale(0, 10), "B": Scale(-100, 0)}
    assert results.groups == ["dqn", "a2c"]
    assert results.meaning.startswith("normalised in each task: 0 is the interquartile mean of the worst group")
    dqn, a2c = results.aggregates["dqn"], results.aggregates["a2c"]
    assert dqn["IQM"].point == pytest.approx((0.8 + 1 + 1 + 1.2) / 4)  # of 0.8 0.8 1 1 1.2 1.2, one cut at either end
    assert a2c["mean"].point == pytest.approx((0.4 + 0.5 + 0.6 + 0.3 + 0.5 + 0.7) / 6)
    assert dqn["optimality gap"].point == pytest.approx((0.2 + 0.2) / 6)
    assert a2c["median"].point == pytest.approx(0.5)
    scores = np.array([[0.4, 0.3], [0.5, 0.5], [0.6, 0.7]])
    assert a2c["IQM"] == pytest.approx(stratified_bootstrap(scores))
    assert not notes


def test_improvement_is_counted_within_tasks(two):
    pairwise = analyse([two])[0].pairwise
    assert pairwise["dqn", "a2c"].point == 1  # of B, -20 0 20 over -70 -50 -30; of A, 8 10 12 over 4 5 6
    assert pairwise["a2c", "dqn"] == (0, 0, 0)
    world(two, "B", [-90, -60, -20], seed=3, agent="a2c")
    assert analyse([two])[0].pairwise["dqn", "a2c"].point == pytest.approx((1 + (9 + 2 + 0.5) / 12) / 2)


def test_profiles_are_of_all_runs_and_tasks(two):
    line = analyse([two])[0].profiles["a2c"]
    assert line.y.point[0] == 1 and line.y.point[-1] == 0
    at = np.searchsorted(line.x, 0.45)
    assert line.y.point[at] == pytest.approx(4 / 6)  # of .4 .5 .6 .3 .5 .7


def test_sample_efficiency_is_the_iqm_of_normalised_curves(two):
    results, _ = analyse([two])
    assert results.along == "steps"
    line = results.efficiency["dqn"]
    assert (line.x[0], line.x[100], line.x[-1]) == (0, 10, 20)
    assert line.y.point[[0, 50, 100]].tolist() == pytest.approx([0, (0.2 + 0.25) / 2, (0.4 + 0.5) / 2])
    assert line.y.point[-1] == pytest.approx(1)


def test_the_curve_ends_where_the_aggregate_stands_whichever_runs_are_longest(tmp_path):
    """Both are of seeds 0 and 1, the first ones that every task has, and not of seed 2, whose run in A is longer."""
    for agent, gain in (("dqn", 1), ("a2c", 0.5)):
        for seed, last in enumerate((1, 2)):
            world(tmp_path, "A", [0, 0, gain * last], seed=seed, agent=agent)
            world(tmp_path, "B", [0, 0, gain * last], seed=seed, agent=agent)
        world(tmp_path, "A", [0, 0, 9 * gain, 9 * gain], seed=2, agent=agent)
    results, notes = analyse([tmp_path])
    for name in results.groups:
        assert results.efficiency[name].y.point[-1] == pytest.approx(results.aggregates[name]["IQM"].point)
    assert "dqn: aggregates take the first 2 seeds of each task, as many as every task has." in notes


def test_a_worlds_own_seed_is_a_setting_like_any_other_even_where_it_is_the_runs(tmp_path):
    for seed in range(3):
        for id in "A", "B":
            write_run(
                tmp_path / id / str(seed), name=f"dqn_{id}", seed=seed, choices={"agent": "dqn", "env": "gym"},
                top={"env": {"id": id, "map": {"seed": 0}}},
            )  # fmt: skip
    results, notes = analyse([tmp_path])
    assert {task: [len(runs) for runs in groups.values()] for task, groups in results.tasks.items()} == {
        "A": [3],
        "B": [3],
    }
    assert not notes


def test_tasks_of_unequal_length_are_laid_over_each_other_by_fraction(tmp_path):
    for agent, gain in (("dqn", 1), ("a2c", 0.5)):
        world(tmp_path, "A", [0, gain], agent=agent)
        world(tmp_path, "B", [0, gain, gain, gain, gain], agent=agent)
    results, _ = analyse([tmp_path])
    assert results.along == "fraction of each task's steps"
    line = results.efficiency["dqn"]
    assert (line.x[0], line.x[-1]) == (0, 1)
    assert line.y.point[100] == pytest.approx((0.5 + 1) / 2)


def test_a_group_that_lacks_a_task_is_left_out_of_the_aggregates_and_stands_last(two):
    world(two, "A", [0, 50, 50], agent="ppo")
    results, notes = analyse([two])
    assert results.groups == ["dqn", "a2c", "ppo_a"]
    assert set(results.aggregates) == {"dqn", "a2c"} == {name for pair in results.pairwise for name in pair}
    assert notes == ["left out of the aggregates, because runs of B are missing: ppo_a."]
    assert [row.group for row in results.rows if row.task == "A"] == ["dqn", "a2c", "ppo_a"]


def test_no_group_has_every_task(tmp_path):
    world(tmp_path, "A", [0, 1])
    world(tmp_path, "B", [0, 1], agent="a2c")
    results, notes = analyse([tmp_path])
    assert (results.aggregates, results.pairwise, results.efficiency) == ({}, {}, {})
    assert notes[0].startswith("no aggregates: no group has runs of every task")


def test_seeds_beyond_the_fewest_of_any_task_wait(two):
    world(two, "A", [0, 0, 0], seed=3)
    results, notes = analyse([two])
    assert notes == ["dqn: aggregates take the first 3 seeds of each task, as many as every task has."]
    assert results.aggregates["dqn"]["IQM"].point > 0.9


def test_a_task_in_which_nobody_learned_has_no_scale(two):
    for agent in ("dqn", "a2c"):
        world(two, "C", [5, 5, 5], agent=agent)
    results, notes = analyse([two])
    assert set(results.scales) == {"A", "B"} and math.isnan(results.goals["C"])
    assert "C is left out of the aggregates: no group ends better than the worst begins." in notes
    assert len(results.aggregates) == 2


def test_regret_is_normalised_up_to_the_optimum_and_turned_round(tmp_path):
    for id in ("A", "B"):
        world(tmp_path, id, [4.0, 1.0], metric="eval/regret")
        world(tmp_path, id, [2.0, 2.0], metric="eval/regret", agent="a2c")
    results, _ = analyse([tmp_path])
    assert results.scales["A"] == Scale(4, 0) and "1 the optimum" in results.meaning
    assert results.aggregates["dqn"]["IQM"].point == 0.75
    assert results.groups == ["dqn", "a2c"] and results.pairwise["dqn", "a2c"].point == 1


def test_one_task_where_lower_is_better_stays_raw_and_is_turned_round_where_it_counts(tmp_path):
    world(tmp_path, "A", [4.0, 1.0], metric="eval/nll")
    world(tmp_path, "A", [4.0, 2.0], metric="eval/nll", agent="a2c")
    results, _ = analyse([tmp_path])
    assert (results.groups, results.meaning) == (["dqn_a", "a2c_a"], "")
    assert results.pairwise["dqn_a", "a2c_a"].point == 1
    assert results.aggregates["dqn_a"]["IQM"].point == 1 and "optimality gap" not in results.aggregates["dqn_a"]
    profile = results.profiles["dqn_a"]
    assert profile.y.point[profile.x > 1.01].tolist() == [1] * (profile.x > 1.01).sum()  # the fraction below


def test_thresholds_of_several_tasks_are_normalised(two, capsys):
    assert analyse([two])[0].goals == pytest.approx({"A": 9, "B": -10})
    assert analyse([two], threshold=0.5)[0].goals == pytest.approx({"A": 5, "B": -50})


# -- Atari


def play(folder, game: str, values, metric="eval/return", **settings):
    return write_run(folder / game, values, name=f"dqn_{game}", metric=metric,
                     choices={"agent": "dqn", "env": "atari"}, top={"env": {"game": game}}, **settings)  # fmt: skip


def test_games_are_normalised_by_a_random_policy_and_a_human(tmp_path):
    play(tmp_path, "pong", [-21, 14.6])
    play(tmp_path, "breakout", [1.7, 1.7 + 2 * 28.8])
    results, _ = analyse([tmp_path])
    assert results.scales == {"breakout": Scale(*ATARI["breakout"]), "pong": Scale(-20.7, 14.6)}
    assert results.aggregates["dqn"]["mean"].point == pytest.approx((1 + 2) / 2)
    assert results.meaning.startswith("human-normalised")
    assert analyse([tmp_path], normalise="range")[0].aggregates["dqn"]["mean"].point == 1


def test_one_game_is_normalised_only_when_asked(tmp_path):
    play(tmp_path, "pong", [-21, 14.6])
    assert analyse([tmp_path])[0].meaning == ""
    assert analyse([tmp_path], normalise="atari")[0].aggregates["dqn_pong"]["IQM"].point == pytest.approx(1)


def test_scales_that_cannot_be(tmp_path, two):
    play(tmp_path / "a", "adventure", [0, 1])
    play(tmp_path / "b", "pong", [0, 1], metric="eval/length")
    for folder, text in {
        two: "normalise=atari: A is not an Atari game; choose normalise=range",
        tmp_path / "a": "normalise=atari: adventure has no human score; choose normalise=range",
        tmp_path / "b": "normalise=atari is for returns, not for eval/length; "
                        "choose normalise=range or metric=eval/return",
    }.items():  # fmt: skip
        with pytest.raises(UserError) as error:
            analyse([folder], normalise="atari")
        assert str(error.value) == text


# -- files


def test_the_files_of_several_tasks(two, tmp_path, capsys):
    compare([two], out=tmp_path / "out", resamples=50)
    tables = {}
    for name in ("compare", "curves", "aggregates", "pairwise"):
        with (tmp_path / f"out/{name}.csv").open() as file:
            tables[name] = list(csv.DictReader(file))
    assert [(row["task"], row["group"], float(row["final"])) for row in tables["compare"]] == [
        ("A", "dqn", 10), ("A", "a2c", 5), ("B", "dqn", 0), ("B", "a2c", -50),
    ]  # fmt: skip
    assert [float(row["iqm"]) for row in tables["curves"] if (row["task"], row["group"]) == ("A", "dqn")] == [0, 4, 10]
    assert [(row["group"], row["aggregate"]) for row in tables["aggregates"]][:4] == [
        ("dqn", "IQM"), ("dqn", "median"), ("dqn", "mean"), ("dqn", "optimality gap"),
    ]  # fmt: skip
    assert {row["scores"][:10] for row in tables["aggregates"]} == {"normalised"}
    assert [(row["group"], row["over"], float(row["probability_of_improvement"])) for row in tables["pairwise"]] == [
        ("dqn", "a2c", 1), ("a2c", "dqn", 0),
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "over 2 tasks" in out and "threshold: in each task 90 % of the way" in out
    for name in ("compare", "aggregates", "profiles"):
        assert (tmp_path / f"out/{name}.png").stat().st_size > 5_000
        assert str(tmp_path / f"out/{name}.svg") in out


def test_the_command_line_takes_conditions_and_groups(two, tmp_path, capsys):
    given = ["compare", str(two), "by=[agent,agent.gamma]", "where=[env.id:A*,-agent:a2c]", f"out={tmp_path}/out"]
    assert cli.main("rl-lab", "rl", COMMANDS, [*given, "tracker=none", "resamples=20"]) == 0
    with (tmp_path / "out/compare.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["task"], row["group"], row["seeds"]) == ("A", "agent=dqn agent.gamma=0.99", "3")
    assert cli.main("rl-lab", "rl", COMMANDS, ["compare", str(two), "by=agent.gama", "tracker=none"]) == 2
    assert capsys.readouterr().err == "rl-lab: no setting 'agent.gama'; did you mean agent.gamma?\n"


def test_a_score_far_out_does_not_squeeze_the_profile():
    """Quartiles .25 and .75: shown from -1.25 to 2.25, or as far as there are scores."""
    assert _middle(np.array([0, 0.25, 0.5, 0.75, 1])) == (0, 1)
    assert _middle(np.array([-113.0, 0.25, 0.5, 0.75, 1])) == (-1.25, 1)
    assert _middle(np.array([2.0, 2, 2, 2, 9])) == (2, 9)  # quartiles that are one say nothing of what is far
