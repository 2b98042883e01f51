"""What names of metrics say: direction, standard error, what a search optimises."""

import pytest

from rl_lab.core.launching.execution import objective
from rl_lab.core.metrics import Metric, is_lower_better, is_objective

LOWER = (
    "eval/bits_per_dim[x]", "eval/nll_nats", "plan/residual", "FID", "eval/regret", "vae/kl_nats", "ppo/policy_loss",
    "dqn/td_error", "eval/nll_nats_se[x]", "eval/recon_bce[x]", "eval/frechet_floor[x]", "eval/kernel_distance[x]",
    "eval/iwae1000_nats[x]", "eval/kl[x]", "eval/nats[x]", "loss",
)  # fmt: skip
HIGHER = (
    "eval/return", "a2c/entropy", "eval/confidence", "eval/return[loss]", "eval/recall[x]", "episode/length",
    "eval/finalists", "eval/glossy",
)  # fmt: skip


@pytest.mark.parametrize("metric", LOWER)
def test_metrics_of_which_less_is_more(metric):
    assert is_lower_better(metric)


@pytest.mark.parametrize("metric", HIGHER)
def test_metrics_of_which_more_is_more(metric):
    assert not is_lower_better(metric)


@pytest.mark.parametrize(
    "name, parts",
    [
        ("eval/nll_nats[mnist-static]", ("eval", "nll_nats", "mnist-static")),
        ("eval/return", ("eval", "return", "")),
        ("eval/nats[a[1]]", ("eval", "nats", "a[1]")),
        ("loss", ("", "loss", "")),
    ],
)
def test_a_name_has_a_stage_a_quantity_and_data(name, parts):
    assert Metric.of(name) == parts and Metric.of(name).name == name


def test_a_standard_error_stands_beside_its_metric():
    assert Metric.of("eval/nll_nats[mnist]").error == "eval/nll_nats_se[mnist]"
    assert Metric.of("eval/return").error == "eval/return_se"
    assert Metric.of("eval/return_se").is_error and not Metric.of("eval/return").is_error


def test_an_optimum_is_known_of_the_regret_alone():
    assert Metric.of("eval/regret").known.optimum == 0.0
    assert Metric.of("eval/return").known.optimum is None


def test_a_search_optimises_an_evaluation_if_there_is_one():
    assert objective({"episode/return": 2.0, "eval/return": 1.0, "eval/regret": 0.0}) == ("eval/return", 1.0)
    assert objective({"episode/return": 2.0, "dqn/loss": 0.0}) == ("episode/return", 2.0)
    found = {"eval/nll_nats[x]": 9.0, "eval/bits_per_dim[x]": 0.5, "eval/bits_per_dim_se[x]": 0.1}
    assert objective(found) == ("eval/bits_per_dim[x]", 0.5)
    assert objective({"dqn/loss": 0.0}) is None


def test_a_search_of_gans_optimises_the_distance_of_their_samples():
    judged = {"eval/class_kl_nats[x]": 0.01, "eval/frechet[x]": 5.3, "eval/frechet_floor[x]": 0.1, "gan/D(x)": 0.6}
    assert objective(judged) == ("eval/frechet[x]", 5.3)
    assert objective({**judged, "eval/nll_nats[x]": 90.0}) == ("eval/nll_nats[x]", 90.0)


def test_the_error_of_an_objective_is_none_itself():
    assert is_objective("eval/nll_nats[x]") and not is_objective("eval/nll_nats_se[x]")
    assert not is_objective("autoregressive/nll_nats")  # of training batches
