"""Every agent, world and model on a GPU that is not there: no device mixed, no wait in the hot loop, no CPU generator."""

import sys

import hydra
import pretend
import pytest
import torch

import rl_lab
from gen_lab.types import Spec as Images
from rl_lab.core import conf_dir
from rl_lab.core.launching.composition import compose
from rl_lab.types import Transition

GPU = torch.device("cuda")


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torch's library is looked into by its name elsewhere")


@pytest.fixture
def gpu():
    with pretend.gpu() as device:
        yield device


# -- what it finds


def test_it_says_that_it_is_a_gpu_and_computes(gpu):
    x = torch.arange(3.0, device="cuda", requires_grad=True)
    assert x.is_cuda and x.device == torch.device("cuda:0") and (x + 1).device == x.device
    (x * x).sum().backward()
    assert x.grad.is_cuda and x.grad.tolist() == [0, 2, 4] and not x.cpu().is_cuda


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.stack([x, torch.ones(3)]),
        lambda x: x.copy_(torch.ones(3)).mul_(torch.ones(3)),
        lambda x: torch.nn.Linear(3, 2)(x),
    ],
)
def test_a_planted_mix_of_devices_is_found(gpu, mix):
    with pytest.raises(pretend.Mixed, match="takes tensors of cuda:0 and of the CPU"):
        mix(torch.zeros(3, device="cuda"))


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.ones(3).to(x.device),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: x.index_put_((x > 0,), torch.ones(2, device=x.device)),
    ],
)
def test_a_planted_wait_is_found(gpu, wait):
    x = torch.tensor([0.0, 1.0, 2.0]).to("cuda")
    wait(x.clone())
    with pretend.no_wait(), pytest.raises(pretend.Waits, match="waits for the device"):
        wait(x)


def test_what_waits_for_nothing_passes(gpu):
    x = torch.tensor([0.0, 1.0, 2.0]).to("cuda")
    with pretend.no_wait():
        x[x > 1] = 0
        x += torch.tensor(1.0)  # a number of the CPU
        x.add_(torch.ones(3).to("cuda", non_blocking=True))
    assert x.tolist() == [2, 3, 2]


def test_a_planted_generator_of_the_cpu_is_found(gpu):
    for rng, device in (torch.Generator(), "cuda"), (torch.Generator("cuda"), "cpu"):
        with pytest.raises(pretend.Mixed, match="by a generator of"):
            torch.rand(3, generator=rng, device=device)
    assert torch.rand(3, generator=torch.Generator("cuda").manual_seed(0), device="cuda").is_cuda


def test_a_graph_runs_again_what_ran_and_nothing_of_python(gpu):
    x, rng, seen = torch.zeros(2, device="cuda"), torch.Generator("cuda"), []
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(rng)
    with torch.cuda.graph(graph):
        seen.append(1)
        y = 2 * x + torch.rand(2, generator=rng, device="cuda")
    graph.replay()
    first = y.clone()
    x.fill_(10)
    graph.replay()
    assert seen == [1] and ((y - first) - 20).abs().max() < 1 and not torch.equal(y, first + 20)


@pytest.mark.parametrize(
    ("fault", "words"),
    [(lambda x: x.sum().item(), "waits"), (lambda x: torch.rand(2, generator=torch.Generator("cuda"), device="cuda"), "does not know")],
)  # fmt: skip
def test_a_capture_refuses_what_cuda_would(gpu, fault, words):
    x = torch.zeros(2, device="cuda")
    with pytest.raises(RuntimeError, match=words), torch.cuda.graph(torch.cuda.CUDAGraph()):
        fault(x)


# -- the worlds


def built(*settings):
    return rl_lab.build("device=cuda", *settings)


WORLDS = (
    "four_rooms",
    "lavaland",
    "windy",
    "collect_small",
    "collect_stochastic",
    "cartpole_tensor",
    "acrobot_tensor",
    "mountain_car_tensor",
)


@pytest.mark.parametrize("world", WORLDS)
def test_a_world_of_tensors_never_waits(gpu, world):
    env, _ = built(f"env={world}", "env.num_envs=4", "env.time_limit=5", "agent=random")
    env.reset(0)
    actions = torch.randint(env.spec.num_actions, (12, 4), device="cuda")
    with pretend.no_wait():
        for action in actions:
            step = env.step(action)
    assert all(x.is_cuda for x in step if x is not None)


# -- the agents

# Each with what makes it learn within a few steps.
FEW, COLLECT = (
    "agent.learning_starts=16 agent.replay_ratio=1 agent.batch_size=16",
    "env=collect_small agent.random_steps=80",
)
AGENTS = {
    "a2c": "", "a2c_mlp": "agent.rollout_length=5", "actor_critic": "", "dqn": FEW, "dqn_mlp": FEW, "ppo": "agent.rollout_length=8",
    "pqn_mlp": "agent.rollout_length=8", "q_learning": "", "sarsa": "", "expected_sarsa": "", "reinforce": "",
    "rainbow": f"{FEW} agent/network=mlp", "vpn1": COLLECT, "vpn3": COLLECT, "opn": COLLECT, "vpn_replay": COLLECT,
    "dqn_collect": "env=collect_small",
}  # fmt: skip
# Where learning waits: once a rollout, but for the walks, which are looked at while they are taken and once after that.
NEXT, BEYOND = "rl_lab.memory.rollouts._next_values", "rl_lab.agents.vpn.learner.beyond"
WALKS = BEYOND, "rl_lab.agents.vpn.walks.packed", "rl_lab.agents.vpn.walks.sample"
WAITING = {"a2c": (NEXT,), "a2c_mlp": (NEXT,), "ppo": (NEXT,), "reinforce": ("rl_lab.agents.reinforce.",),
           "vpn1": WALKS, "vpn3": WALKS, "opn": WALKS, "vpn_replay": WALKS, "dqn_collect": WALKS}  # fmt: skip
LONG = {"vpn3", "opn", "vpn_replay", "dqn_collect"}


@pytest.mark.parametrize("agent", [pytest.param(x, marks=pytest.mark.slow) if x in LONG else x for x in AGENTS])
def test_an_agent_acts_and_learns(gpu, agent):
    env, learner = built(
        "env=four_rooms", *AGENTS[agent].split(), f"agent={agent}", "env.num_envs=4", "env.time_limit=6"
    )
    obs, learned = env.reset(0), {}
    gpu.waits.clear()
    for _ in range(24 if agent not in LONG | {"vpn1"} else 32):
        with pretend.no_wait():
            action = learner.act(obs)
            step = env.step(action)
        learned = learner.update(Transition.of(obs, action, step)) or learned
        obs = step.obs
    waits = {place for place in gpu.waits if not place.startswith(WAITING.get(agent, ()))}
    assert learned and not waits, (waits, learned)
    assert all(x.is_cuda for x in learned.values() if isinstance(x, torch.Tensor))
    learner.act(obs, greedy=True), learner.probabilities(obs), learner.view(obs)


# -- the models

MODELS = [
    "vae",
    "iwae",
    "autoencoder",
    "vqvae",
    "independent",
    "bernoulli_mixture",
    "pixelcnn",
    "gated_pixelcnn",
    "dcgan",
    "sngan",
]
BINARY = "vae", "iwae", "vqvae", "bernoulli_mixture"
DEEP = ["pixelcnnpp", "pixelrnn_row", "pixelrnn_diagonal", "wgan_gp"]


@pytest.mark.parametrize("model", [*MODELS, *(pytest.param(x, marks=pytest.mark.slow) for x in DEEP)])
def test_a_model_learns_draws_and_scores(gpu, model):
    levels = 2 if model in BINARY else 17
    made = compose(conf_dir(), "gen", [f"experiment={model}_digits"]).model
    learner = hydra.utils.instantiate(made)(Images((1, 8, 8), levels), GPU, 0)
    x = torch.randint(levels, (4, 1, 8, 8), dtype=torch.uint8, device="cuda")
    learner.update(x)
    with pretend.no_wait():
        metrics = learner.update(x)
    rng = torch.Generator("cuda").manual_seed(0)
    scores = learner.score(x, rng)
    assert learner.sample(2, rng).is_cuda
    assert all(value.is_cuda for value in [*metrics.values(), *scores.values()] if isinstance(value, torch.Tensor))
