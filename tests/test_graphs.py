"""compile=graphs on a GPU that is not there, whose graphs are the lists of operations that ran (see pretend.py)."""

import sys
from pathlib import Path

import pretend
import pytest
import torch

import rl_lab
from rl_lab.__main__ import COMMANDS
from rl_lab.core import graphs
from rl_lab.core.graphs import MOST, WARM_UP, Captured
from rl_lab.core.launching import cli
from rl_lab.types import Transition

GPU, CPU = torch.device("cuda"), torch.device("cpu")


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="see test_pretend.py")


@pytest.fixture
def gpu():
    with pretend.gpu() as device:
        graphs.choose("graphs", GPU)
        yield device
        graphs.choose("none", GPU)


def on_gpu(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers).to("cuda")


def test_a_captured_function_gives_what_the_function_gives(gpu):
    calls = []

    def double_and_add(x, number):
        calls.append(x)
        return {"y": 2 * x + number}, (x,)

    captured, kept = Captured(double_and_add), []
    for i in range(10):
        kept.append(captured(on_gpu(i, i + 1), 0.5 * i))
    assert [(out["y"].tolist(), x.tolist()) for out, (x,) in kept] == [
        ([2.5 * i, 2.5 * i + 2], [i, i + 1]) for i in range(10)
    ]
    assert len(calls) == WARM_UP + 1  # Python ran no more


def test_each_shape_has_a_graph_and_beyond_the_most_of_them_calls_are_calls(gpu):
    calls = []

    def total(x):
        calls.append(len(x))
        return x.sum()

    captured = Captured(total)
    for size in range(1, MOST + 3):
        assert [captured(on_gpu(*[i] * size)).item() for i in range(6)] == [i * size for i in range(6)]
    assert [calls.count(size) for size in range(1, MOST + 3)] == [WARM_UP + 1] * MOST + [6] * 2


def test_numbers_drawn_in_a_graph_are_those_drawn_without(gpu):
    def draws(captured: bool) -> list:
        graphs.choose("graphs" if captured else "none", GPU)
        rng = torch.Generator("cuda").manual_seed(0)
        draw = Captured(lambda x: x + torch.rand(2, generator=rng, device="cuda"), rng)
        return [draw(on_gpu(i, i)).tolist() for i in range(8)]

    assert draws(True) == draws(False)


def test_what_no_graph_can_hold_is_said_in_a_line(gpu):
    captured = Captured(lambda x: x if x.sum() > 0 else -x)
    for _ in range(WARM_UP):
        captured(on_gpu(1))
    with pytest.raises(graphs.UserError, match="^compile=graphs: .* cannot be captured .*; take compile=none$"):
        captured(on_gpu(1))


# -- the agents

AGENTS = {
    "a2c_mlp": "agent.rollout_length=3 agent.forward_again=true agent.decay_steps=400",
    "a2c_zoo": "agent.rollout_length=3 agent.forward_again=true agent/network=mlp agent.decay_steps=400",
    "dqn_mlp": "agent.learning_starts=16 agent.replay_ratio=4 agent.batch_size=16 agent.target_update_period=3",
    "rainbow": "agent.learning_starts=16 agent.replay_ratio=1 agent.batch_size=16 agent/network=mlp",
    "ppo_mlp": "agent.rollout_length=4 agent.minibatches=2 agent.epochs=2 agent.decay_steps=400 agent.decay_clip=true",
    "pqn_mlp": "agent.rollout_length=4 agent.minibatches=2 agent.epochs=1 agent.decay_steps=400",
}


def trained(agent: str, compiled: str, steps: int = 40):
    graphs.choose(compiled, GPU)
    env, learner = rl_lab.build("device=cuda", "env=four_rooms", f"agent={agent}", *AGENTS[agent].split(), "env.num_envs=4",
                                "env.time_limit=6")  # fmt: skip
    obs, actions = env.reset(0), []
    for _ in range(steps):
        with pretend.no_wait():
            action = learner.act(obs)
        step = env.step(action)
        learner.update(Transition.of(obs, action, step))
        obs, actions = step.obs, [*actions, action.tolist()]
    return learner, actions, obs


def network(learner) -> torch.nn.Module:
    return learner.online if hasattr(learner, "online") else learner.network


def gap(one, two) -> float:
    pairs = zip(network(one).parameters(), network(two).parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_learns_by_graphs_what_it_learns_without(gpu, agent):
    (one, actions, _), (two, others, _) = trained(agent, "graphs"), trained(agent, "none")
    replayed = [name for name, part in vars(one).items() if isinstance(part, Captured) and part._graphs]
    assert {"_improve"} < {*replayed}
    assert gap(one, two) < 1e-5 and actions == others


def test_a_rate_that_a_graph_has_by_heart_would_be_noticed(gpu, monkeypatch):
    """The learning rate as a number: the graph goes on with that of its capture."""

    def without_tensors(optimizer):
        for group in optimizer.param_groups:
            group["capturable"] = graphs.chosen()

    monkeypatch.setattr(graphs, "suit", without_tensors)
    assert gap(trained("a2c_mlp", "graphs")[0], trained("a2c_mlp", "none")[0]) > 1e-4


def test_a_checkpoint_goes_from_graphs_to_the_cpu_and_back(gpu):
    one, _, obs = trained("ppo_mlp", "graphs")
    state = one.state_dict()
    graphs.choose("none", CPU)
    env, two = rl_lab.build(
        "device=cpu", "env=four_rooms", "agent=ppo_mlp", *AGENTS["ppo_mlp"].split(), "env.num_envs=4"
    )
    two.load_state_dict(state)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True))
    first = env.reset(0)
    for _ in range(4):
        action = two.act(first)
        two.update(Transition.of(first, action, env.step(action)))
    three, _, _ = trained("ppo_mlp", "graphs", steps=12)
    three.load_state_dict(two.state_dict())
    assert not three._improve._graphs  # they knew the memory of another state
    for group in three.optimizer.param_groups:
        assert group["capturable"] and group["lr"].is_cuda
        assert all(three.optimizer.state[p]["step"].is_cuda for p in group["params"])


# -- the command line


def run(tmp_path: Path, *settings: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, ["train", "env=four_rooms", "tracker=none", "device=cpu", "compile=graphs",
                    "loop.eval_episodes=1", f"hydra.run.dir={tmp_path}/run", *settings])  # fmt: skip


def test_on_a_cpu_the_run_says_that_nothing_is_captured(tmp_path, capsys):
    assert run(tmp_path, "agent=a2c", "loop.total_steps=640") == 0
    assert "graphs are CUDA's, and this run is on cpu: it computes as with compile=none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("agent=a2c", "loop=crew"), "compile=graphs is for loop=train"),
        (("agent=a2c", "compile=graph"), "compile=graph is not a choice"),
    ],
)
def test_graphs_where_they_are_of_no_use_are_refused(tmp_path, capsys, settings, words):
    assert run(tmp_path, *settings) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_an_optimizer_that_no_graph_can_hold_is_refused(gpu):
    with pytest.raises(graphs.UserError, match="SGD is none; take compile=none"):
        rl_lab.build("device=cuda", "env=four_rooms", "agent=q_learning")
