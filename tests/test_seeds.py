"""Many seeds at once: each learns what it would have learned alone, from the same random numbers."""

import json
import math
import os
import shutil
import signal

import pytest
import torch
import yaml
from stopping import equal
from tiers import later

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.a2c import A2C
from rl_lab.core.distributed import standardised
from rl_lab.core.folders import group, read_runs
from rl_lab.core.launching import cli
from rl_lab.core.learner import descend
from rl_lab.core.randomness import generator, integers, permutation, streams, uniform

SGD = "agent.optimizer._target_=torch.optim.SGD agent.optimizer.lr=0.5"
DQN = "agent.learning_starts=64 agent.batch_size=32 agent.target_update_period=7"
CASES = {
    "dqn": f"agent=dqn {DQN}",
    "dqn_mlp": f"agent=dqn_mlp {DQN} {SGD} ~agent.optimizer.fused agent.replay_ratio=2 agent.max_grad_norm=0.1",
    "dqn_variants": f"agent=dqn {DQN} agent/value=quantiles agent.value.count=5 agent.replay.n_step=3 "
                    "agent.dueling=true agent.stream_units=8 agent.double=true agent.zero_head=false "
                    "agent.epsilon_spread=7 agent.max_grad_norm=0.5",
    "a2c": "agent=a2c agent.standardise=true",
    "a2c_again": "agent=a2c agent.forward_again=true",
    "a2c_mlp": f"agent=a2c_mlp {SGD} agent.rollout_length=7 agent.max_grad_norm=0.01 agent.separate_value=true "
               "agent.decay_steps=3200",
    "ppo": "agent=ppo agent.rollout_length=10 agent.minibatches=3",
    "q_learning": "agent=q_learning agent.epochs=2 agent.minibatches=2",
    "sarsa": "agent=sarsa agent.epsilon_spread=2",
    "pqn": "agent=pqn_mlp agent.rollout_length=10",
}  # fmt: skip
SMALL = ["env=russell_norvig", "env.time_limit=23", "tracker=none", "device=cpu", "loop.total_steps=1920",
         "loop.eval_every=960", "loop.eval_episodes=32", "loop.log_every=192"]  # fmt: skip


def run(*arguments) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, ["train", *map(str, arguments)])


def train(folder, *arguments) -> int:
    return run(*SMALL, *arguments, f"hydra.run.dir={folder}")


def rows(folder) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


def same(ours: list[dict], theirs: list[dict]) -> bool:
    """Rows, but for the rounding of sums that were added up in another order."""
    return len(ours) == len(theirs) and all(
        a == pytest.approx(b, rel=1e-4, abs=1e-6) for a, b in zip(ours, theirs, strict=True)
    )


def settings(folder) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


def agent(folder) -> dict:
    """What a checkpoint holds of it, but its memory."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["agent"]
    return {name: part for name, part in state.items() if name != "replay"}


def alike(a, b) -> bool:
    """Of states: the same names, shapes and random streams, and numbers to a rounding."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if not isinstance(a, torch.Tensor):
        return a == b
    return a.shape == b.shape and (torch.allclose(a, b, 1e-3, 1e-5) if a.is_floating_point() else torch.equal(a, b))


@pytest.mark.parametrize("case", later(CASES, "dqn_variants", "pqn", "a2c_again", "sarsa"))
def test_a_seed_learns_among_others_what_it_learns_alone(case, tmp_path):
    """60 steps of 32 environments, ends, time limits and gradient steps among them, and two evaluations."""
    words = CASES[case].split()
    assert train(tmp_path / "many", *words, "loop=seeds", "loop.seeds=3", "seed=4") == 0
    assert train(tmp_path / "alone", *words, "seed=6") == 0
    alone, among = tmp_path / "alone", tmp_path / "many/seed6"
    assert len(rows(alone)) >= 12 and "eval/regret" in rows(alone)[-1]
    assert same(rows(among), rows(alone)) and alike(agent(among), agent(alone))
    assert settings(among) == settings(alone)
    assert not same(rows(among), rows(tmp_path / "many/seed5"))


def test_a_seed_among_one_is_alone(tmp_path):
    assert train(tmp_path / "many", "agent=a2c", "loop=seeds", "loop.seeds=1", "seed=3") == 0
    assert train(tmp_path / "alone", "agent=a2c", "seed=3") == 0
    assert same(rows(tmp_path / "many/seed3"), rows(tmp_path / "alone"))


def test_they_are_compared_as_if_run_alone(tmp_path):
    """Whether one names the folder of all or one above it; and the longer of two runs of a seed stands for both."""
    assert train(tmp_path / "many", "agent=q_learning", "loop=seeds", "loop.seeds=3") == 0
    assert train(tmp_path / "alone", "agent=q_learning", "seed=3") == 0
    ((_, runs),) = group(read_runs([tmp_path], notes := []), notes).items()
    assert sorted(r.seed for r in runs) == [0, 1, 2, 3] and not notes and all(r.finished for r in runs)
    assert len(read_runs([tmp_path / "many"], [])) == 3
    summary = json.loads((tmp_path / "many/summary.json").read_text())
    assert summary["state"] == "finished" and summary["step"] == 1920
    means = [rows(tmp_path / f"many/seed{i}")[-1]["eval/return"] for i in range(3)]
    assert summary["final"]["eval/return"] == pytest.approx(sum(means) / 3)


def test_each_can_be_judged_and_goes_on_alone(tmp_path):
    many = tmp_path / "many"
    assert train(many, *CASES["dqn"].split(), "loop=seeds", "loop.seeds=2") == 0
    assert cli.main("rl-lab", "rl", COMMANDS, ["evaluate", f"run={many / 'seed1'}", "episodes=32", "device=cpu"]) == 0
    scores = json.loads((many / "seed1/evaluation.json").read_text())
    assert scores["step"] == 1920 and scores["episodes"] == 32
    assert run(f"run={many / 'seed1'}", "loop.total_steps=2400") == 0
    assert rows(many / "seed1")[-1]["step"] == 2400 and rows(many / "seed0")[-1]["step"] == 1920
    assert cli.main("rl-lab", "rl", COMMANDS, ["evaluate", f"run={many}", "episodes=2", "device=cpu"]) == 0
    assert all((many / f"seed{i}/evaluation.json").exists() for i in range(2))


@pytest.mark.parametrize("case", later(["dqn_variants", "a2c_mlp", "sarsa"], "dqn_variants"))
def test_a_run_of_many_goes_on_as_if_never_stopped(case, tmp_path):
    """Bit for bit, from the whole's checkpoint: the seeds' own folders may be behind it or before it."""
    words = [*CASES[case].split(), "loop=seeds", "loop.seeds=2", "loop.eval_every=960"]
    if case == "a2c_mlp":
        words += ["agent.rollout_length=10"]
    assert train(tmp_path / "whole", *words) == 0
    assert train(tmp_path / "halves", *words, "loop.total_steps=960") == 0
    shutil.copy(tmp_path / "whole/seed1/checkpoint.pt", tmp_path / "halves/seed1/checkpoint.pt")
    with (tmp_path / "halves/seed0/metrics.jsonl").open("a") as file:
        file.write('{"step": 1152, "seconds": 1.0, "episode/return": 7.0}\n')
    assert run(f"run={tmp_path / 'halves'}", "loop.total_steps=1920") == 0
    for seed in ("seed0", "seed1"):
        assert rows(tmp_path / "halves" / seed) == rows(tmp_path / "whole" / seed)
    assert equal(agent(tmp_path / "halves"), agent(tmp_path / "whole"))


class Stopping(A2C):
    """It is asked to stop in its 20th update."""

    def update(self, transition):
        self.left = getattr(self, "left", 20) - 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().update(transition)


def test_a_signal_stops_all_of_them_whole(tmp_path):
    words = ["agent=a2c", "loop=seeds", "loop.seeds=2"]
    stopping = [f"agent._target_={__name__}.Stopping"]
    assert train(tmp_path / "stopped", *words, *stopping) == 128 + 15
    states = [
        json.loads((tmp_path / f"stopped{x}/summary.json").read_text())["state"] for x in ("", "/seed0", "/seed1")
    ]
    assert states == ["stopped"] * 3
    text = (tmp_path / "stopped/config.yaml").read_text()
    (tmp_path / "stopped/config.yaml").write_text(text.replace(f"{__name__}.Stopping", "rl_lab.agents.a2c.A2C"))
    assert run(f"run={tmp_path / 'stopped'}") == 0
    assert train(tmp_path / "whole", *words) == 0
    assert rows(tmp_path / "stopped/seed1") == rows(tmp_path / "whole/seed1")


class Poisoned(A2C):
    """Its third learner loses its mind in update 20."""

    def update(self, transition):
        self.left = getattr(self, "left", 20) - 1
        if not self.left:
            with torch.no_grad():
                next(self.network.parameters())[2] = math.nan
        return super().update(transition)


def test_one_that_fails_is_named_and_leaves_the_others_alone(tmp_path, capsys):
    words = ["agent=a2c", "loop=seeds", "loop.seeds=3", "seed=7", "agent.rollout_length=7"]
    assert train(tmp_path / "many", *words, f"agent._target_={__name__}.Poisoned") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "seed 9: a2c/policy_loss is nan at step 672; it stops here, the others continue" in err
    assert "rl-lab: 1 of 3 seeds failed: seed 9: a2c/policy_loss is nan at step 672" in err
    assert train(tmp_path / "sane", *words) == 0
    for seed, state in ((7, "finished"), (8, "finished"), (9, "failed")):
        summary = json.loads((tmp_path / f"many/seed{seed}/summary.json").read_text())
        assert summary["state"] == state
        if state == "finished":
            assert rows(tmp_path / f"many/seed{seed}") == rows(tmp_path / f"sane/seed{seed}")
    assert summary["error"] == "a2c/policy_loss is nan at step 672"
    assert rows(tmp_path / "many/seed9")[-1]["step"] < 672


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("env=gym env.id=CartPole-v1", "loop=seeds steps gridworlds and other known MDPs, and env is a Gym"),
        ("agent=reinforce", "and this agent is Reinforce; run the seeds one by one: -m seed=0,1,2"),
        ("agent=dqn agent/priorities=proportional", "agent.priorities: many seeds at once draw uniformly"),
        (
            "agent=q_learning agent.eval_epsilon=0.1",
            "agent.eval_epsilon: many seeds are evaluated at once by greedy policies",
        ),
        ("agent=dqn agent.eval_epsilon=0.1", "agent.eval_epsilon: many seeds are evaluated at once by greedy policies"),
        ("agent=dqn agent.zero_head=false agent.noisy=0.5", "need networks of linear layers, not NoisyLinear"),
        ("agent=a2c agent.optimizer._target_=torch.optim.Adafactor", "Adafactor would mix the seeds"),
        ("agent=a2c loop.seeds=0", "loop.seeds=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words, line, tmp_path, capsys):
    own = [word for word in SMALL if not ("env" in words and word.startswith("env"))]
    assert run(*own, "loop=seeds", *words.split(), f"hydra.run.dir={tmp_path / 'x'}") == 2
    assert line in capsys.readouterr().err and not (tmp_path / "x").exists()


# -- the pieces


def test_streams_draw_what_each_alone_would_draw():
    both, alone = streams([3, 4], torch.device("cpu")), [generator(seed, torch.device("cpu")) for seed in (3, 4)]
    for draw in (lambda n, rng: uniform((n, 5), rng), lambda n, rng: integers(2**62, (n, 3), rng)):
        assert torch.equal(draw(4, both), torch.cat([draw(2, rng) for rng in alone]))
    assert torch.equal(permutation(9, both), torch.stack([permutation(9, rng) for rng in alone]))
    state = both.state_dict()
    first = uniform((2,), both)
    both.load_state_dict(state)
    assert torch.equal(uniform((2,), both), first) and first[0] != first[1]


def test_a_step_of_many_by_hand():
    """Gradients (3, 4) and (0.3, 0.4), clipped at 1 each by itself: (.6, .8) and as it is."""
    w = torch.nn.Parameter(torch.zeros(2, 2))
    loss = (w * torch.tensor([[3.0, 4.0], [0.3, 0.4]])).sum(-1)
    norm = descend(torch.optim.SGD([w], lr=1.0), loss, max_norm=1.0)
    torch.testing.assert_close(norm, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(w.data, torch.tensor([[-0.6, -0.8], [-0.3, -0.4]]), atol=1e-5, rtol=0)


def test_one_whose_gradient_is_not_finite_stays_where_it_is():
    w = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.Adam([w], lr=0.1)
    descend(optimizer, w.sum(-1))
    before = w.detach().clone()
    norm = descend(optimizer, w.sum(-1) * torch.tensor([1.0, math.nan, 1.0]))
    assert norm.isfinite().tolist() == [True, False, True]
    assert torch.equal(w[1], before[1]) and (w[[0, 2]] < before[[0, 2]]).all()


def test_standardised_over_some_dimensions():
    x = torch.tensor([[[1.0, 2.0], [10.0, 20.0]], [[3.0, 4.0], [30.0, 40.0]]])  # [T, S, N]
    alone = [standardised(x[:, i]) for i in range(2)]
    torch.testing.assert_close(standardised(x, (0, -1)), torch.stack(alone, 1))
    assert standardised(torch.tensor([[7.0], [8.0]]), (-1,)).tolist() == [[7.0], [8.0]]


def test_a_seed_that_went_on_by_itself_does_not_fall_back(tmp_path, capsys):
    many = tmp_path / "many"
    assert train(many, *CASES["q_learning"].split(), "loop=seeds", "loop.seeds=2", "loop.total_steps=480") == 0
    assert run(f"run={many}/seed1", "loop.total_steps=960") == 0
    before = rows(many / "seed1")
    assert run(f"run={many}", "loop.total_steps=1_440") == 2
    assert "seed1 was trained by itself, to step 960, and would fall back to step 480" in capsys.readouterr().err
    assert rows(many / "seed1") == before
