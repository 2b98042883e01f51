"""Networks of frames: convolutions of any layers, inputs standardised, and bfloat16 in training alone."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from stated import stated
from torch import nn

from rl_lab.agents.a2c import A2C
from rl_lab.agents.dqn import DQN
from rl_lab.agents.ppo import PPO
from rl_lab.agents.q_learning import QLearning
from rl_lab.agents.vpn.model import FrameEncoder
from rl_lab.core import precision
from rl_lab.core.bookkeeping import Book
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Decay, Learner
from rl_lab.loops.training import check_statistics, checked
from rl_lab.networks.torsos import FURTHEST, LEAST, StandardFrames, gather, lower, mlp, nature_cnn, prepared
from rl_lab.types import Spec, Transition

CPU = torch.device("cpu")
Atari = stated("env/atari")
cnn = stated("agent/network/cnn", orthogonal=False)


def spec(height: int = 20, width: int = 20) -> Spec:
    return Spec((4, height, width), torch.uint8, ("a", "b"), frame_stack=4)


def frames(count: int, of: Spec) -> torch.Tensor:
    return torch.randint(256, (count, *of.obs_shape), dtype=torch.uint8)


@pytest.fixture
def bf16():
    precision.choose("bf16", CPU)
    yield
    precision.choose("fp32", CPU)


def small(of: Spec, **changes) -> nn.Module:
    torch.manual_seed(0)
    return cnn(of, **dict(layers=[[5, 4, 2], [6, 3, 1]], hidden=[7]) | changes)


def test_layers_are_convolutions_then_dense_ones():
    torso = small(spec(20, 30), activation="ELU")
    shapes = [tuple(p.shape) for name, p in torso.named_parameters() if name.endswith("weight")]
    assert shapes == [(5, 4, 4, 4), (6, 5, 3, 3), (7, 6 * 7 * 12)]
    assert sum(isinstance(layer, nn.ELU) for layer in torso) == 3
    assert torso(frames(3, spec(20, 30))).shape == (3, 7)


def test_nature_is_one_of_them():
    """Three convolutions and 512 units: 1,684,128 parameters with 4 frames of 84 x 84 (without the head)."""
    torso = nature_cnn(spec(84, 84))
    assert sum(p.numel() for p in torso.parameters()) == 8224 + 32832 + 36928 + 3136 * 512 + 512
    assert nature_cnn(spec(84, 84), features=0)(frames(2, spec(84, 84))).shape == (2, 3136)


@pytest.mark.parametrize(
    "layers, size, words",
    [
        ([[5, 4, 2], [6, 3, 1]], (7, 30), "agent.network=cnn needs frames of at least 8 x 8"),
        ([[32, 8, 4], [64, 4, 2], [64, 3, 1]], (84, 35), "needs frames of at least 36 x 36"),
        ([[5, 4]], (20, 20), r"a convolution is \[channels, kernel, stride\], such as \[32, 8, 4\], not \[5, 4\]"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, size, words):
    with pytest.raises(UserError, match=words):
        cnn(spec(*size), layers=layers, hidden=[7])


@pytest.mark.parametrize("name", ["RELU", "functional", "init"])
def test_activations_are_those_of_torch(name):
    for network in small, partial(mlp, hidden=[7]):
        with pytest.raises(UserError, match=f"agent.network.activation={name} is no class of torch.nn"):
            network(spec(), activation=name)


@pytest.mark.parametrize("name", ["Linear", "RReLU", "Dropout", "GLU", "Softmax2d", "MultiheadAttention", "Module"])
def test_an_activation_is_a_function_of_one_number_without_settings_or_noise(name):
    with pytest.raises(UserError, match=f"agent.network.activation={name} is no function of one number that draws"):
        small(spec(), activation=name)


@pytest.mark.parametrize("name", ["ReLU", "ELU", "GELU", "PReLU", "Tanh", "SiLU", "Identity"])
def test_those_that_are_one_are_taken(name):
    assert small(spec(), activation=name)(torch.zeros(2, *spec().obs_shape, dtype=torch.uint8)).isfinite().all()


def test_what_is_no_bytes_is_not_standardised():
    with pytest.raises(UserError, match="agent.network.standardise=true is for frames of bytes"):
        small(Spec((4, 20, 20), torch.float32, ("a", "b")), standardise=True)


def test_the_smallest_frames_do():
    assert small(spec(8, 8))(frames(2, spec(8, 8))).shape == (2, 7)


def test_each_pixel_has_mean_0_and_deviation_1_over_all_that_was_gathered():
    of, torso = spec(), small(spec(), standardise=True)
    first, second = frames(64, of), frames(40, of)
    first[:, :, 3, 3] = 7  # a pixel that never changes
    second[:, :, 3, 3] = 7
    for obs in (first, second):
        gather(torso, obs)
    obs = torch.cat([first, second])
    x = prepared(torso, obs)
    deviation = (obs / 255).std(0, correction=0)
    torch.testing.assert_close(x.mean(0), torch.zeros(of.obs_shape), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), deviation / (deviation**2 + LEAST**2).sqrt())
    one = obs[:1].clone()
    one[:, :, 3, 3] = 8
    torch.testing.assert_close(prepared(torso, one)[0, 0, 3, 3], torch.tensor(1 / 255 / LEAST))
    assert torch.equal(torso(x), torso(obs)), "and what is prepared is taken as it is"


def test_a_pixel_that_was_never_seen_is_clipped():
    of, torso = spec(), small(spec(), standardise=True)
    obs = frames(64, of)
    obs[:, :, 3, 3] = 100
    gather(torso, obs)
    obs[0, 0, 3, 3], obs[0, 1, 3, 3] = 255, 0
    x = prepared(torso, obs)
    assert (x[0, 0, 3, 3], x[0, 1, 3, 3]) == (FURTHEST, -FURTHEST) and x.abs().max() == FURTHEST


def test_statistics_are_in_the_checkpoint():
    of = spec()
    one, other = (small(of, standardise=True) for _ in range(2))
    gather(one, frames(64, of))
    other.load_state_dict(one.state_dict())
    obs = frames(5, of)
    assert torch.equal(one(obs), other(obs)) and not torch.equal(one(obs), small(of, standardise=True)(obs))


def test_before_anything_is_gathered_frames_are_in_0_to_1():
    obs = frames(5, spec())
    assert torch.equal(small(spec(), standardise=True)(obs), small(spec())(obs))


OWN = {
    "a2c": {"rollout_length": 4},
    "ppo": {"rollout_length": 4},
    "q_learning": {"rollout_length": 4, "normalise": False, "zero_head": False},
    "dqn": {"zero_head": False, "batch_size": 8, "replay_ratio": 8, "learning_starts": 8},
}


def learner(name: str, gather_steps: int, standardise: bool = True) -> A2C | PPO | QLearning | DQN:
    own = OWN[name] | ({"replay": stated("agent/dqn", "replay", capacity=1_000)} if name == "dqn" else {})
    network, optimizer = partial(small, standardise=standardise), partial(torch.optim.Adam, lr=0.01)
    agent = stated(f"agent/{name}", network=network, optimizer=optimizer, gather_steps=gather_steps, **own)
    return agent(spec(), CPU, 0)


def network_of(agent: A2C | PPO | QLearning | DQN) -> nn.Module:
    return agent.online if isinstance(agent, DQN) else agent.network


def played(agent: A2C | PPO | QLearning | DQN, steps: int) -> list[dict]:
    rng, of, metrics = torch.Generator().manual_seed(0), spec(), []
    obs = torch.randint(256, (8, *of.obs_shape), dtype=torch.uint8, generator=rng)
    for _ in range(steps):
        action = agent.act(obs)
        following = torch.randint(256, obs.shape, dtype=torch.uint8, generator=rng)
        zeros = torch.zeros(8)
        metrics.append(
            agent.update(Transition(obs, action, zeros + 1, zeros + 1, zeros.bool(), following, zeros.long() + 1))
        )
        obs = following
    return metrics


@pytest.mark.parametrize(
    "name, asked",  # a rollout that has begun is gathered whole, or a step of eight games
    [(name, asked) for name in OWN for asked in (57 if name == "dqn" else 33, 64)],
)
def test_the_first_steps_are_for_the_statistics_alone(name, asked):
    agent = learner(name, asked)
    network = network_of(agent)
    before = {k: v.clone() for k, v in network.named_parameters()}
    assert played(agent, 8) == [{}] * 8
    eyes = network.torso[0]
    assert isinstance(eyes, StandardFrames) and eyes.count == 64 and agent.steps == 64
    assert all(torch.equal(v, before[k]) for k, v in network.named_parameters())
    metrics = played(agent, 4)
    assert metrics[-1] and eyes.count == 64
    assert not any(torch.equal(v, before[k]) for k, v in network.named_parameters() if "weight" in k)


def test_a_target_network_sees_what_the_online_one_sees():
    agent = learner("dqn", 64)
    played(agent, 8)
    obs, online = frames(3, spec()), agent.online
    assert torch.equal(agent.target(obs), online(obs)) and (online.torso[0].rate != 1).all()
    played(agent, 8)
    assert torch.equal(agent.target.torso[0](obs), online.torso[0](obs))


@pytest.mark.parametrize("name", OWN)
def test_statistics_are_gathered_where_inputs_are_standardised_and_nowhere_else(name):
    with pytest.raises(UserError, match="agent.gather_steps=0 takes no statistics, and .* set agent.gather_steps="):
        learner(name, 0)
    plain = learner(name, 64, standardise=False)
    assert plain.gather_steps == 0 and played(plain, 4)[-1], "it learns from its first steps"


def test_who_gathers_nothing_is_told_so():
    network = partial(small, standardise=True)
    adam = partial(torch.optim.Adam, lr=0.01)
    actor_critic = stated("agent/actor_critic", actor=network, critic=small, actor_optimizer=adam, critic_optimizer=adam,
                          zero_heads=False)  # fmt: skip
    with pytest.raises(UserError, match="ActorCritic gathers no statistics of frames, .* leave out standardise=true"):
        checked(actor_critic(spec(), CPU, 0))
    reinforce = stated("agent/reinforce", network=small, optimizer=adam, zero_head=False,
                       baseline=stated("agent/baseline/value", network=network, optimizer=adam, zero_head=False))  # fmt: skip
    with pytest.raises(UserError, match="Reinforce gathers no statistics of frames"):
        checked(reinforce(spec(), CPU, 0))
    fitted = stated("agent/fitted_q_mlp", network=network, optimizer=adam)
    with pytest.raises(UserError, match="gathers no statistics of frames"):
        check_statistics(fitted(spec(), CPU, 0))
    checked(learner("ppo", 64))


def test_a_network_may_be_built_while_others_train(bf16):
    with precision.training():
        assert small(spec())(frames(2, spec())).shape == (2, 7)


def test_the_encoder_of_a_vpn_takes_bfloat16_too(bf16):
    encoder, obs = FrameEncoder(spec(84, 84)), frames(2, spec(84, 84))
    exact = encoder(obs)
    with precision.training():
        rough = encoder(obs)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=3e-2, rtol=3e-2)


def test_bfloat16_is_for_training_alone(bf16):
    torso, obs = small(spec()), frames(4, spec())
    exact = torso(obs)
    with precision.training():
        assert (kept := prepared(torso, obs)).dtype == torch.bfloat16
        rough = torso(obs)
        torch.testing.assert_close(torso(prepared(torso, obs)), rough)
    torch.testing.assert_close(torso(kept), exact, atol=5e-3, rtol=3e-2)  # taken up where there is no bfloat16
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=5e-3, rtol=3e-2)
    rough.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in torso.parameters())
    assert torch.equal(torso(obs), exact) and prepared(torso, obs).dtype == torch.float32


class Kept:
    """A run of which a book is kept, in memory."""

    leads = True

    def __init__(self):
        self.final, self.seen = {}, []

    def restore(self, parts):
        return 0

    def begin(self, total, unit, *, enough=""): ...
    def choose_threads(self, weights, lanes): ...
    def pause(self, step, parts): ...
    def save(self, step, parts): ...
    def at_once(self):
        return nullcontext()

    def log(self, row, step, keep=False): ...


def test_a_book_evaluates_in_float32(bf16):
    seen, run = [], Kept()

    def evaluate() -> dict:
        seen.append(precision.reduced())
        return {}

    book = Book(run, {}, evaluate, total=3, eval_every=1)
    trained = [precision.reduced() for _ in book.steps()]
    assert trained == [True] * 3 and seen == [False] * 4


def test_an_evaluation_draws_nothing_from_the_stream_that_training_goes_on_with():
    class Drawing(Learner):
        saved = ("rng",)

        def __init__(self):
            self.rng = torch.Generator().manual_seed(0)

    def drawn(eval_every: int | None) -> list[float]:
        learner = Drawing()
        draw = lambda: {"x": torch.rand((), generator=learner.rng)}  # noqa: E731
        book = Book(Kept(), {"agent": learner}, draw, total=3, eval_every=eval_every)
        return [draw()["x"].item() for _ in book.steps()]

    assert drawn(1) == drawn(None)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_network_kept_in_bfloat16_computes_what_it_would_turned_into_it_at_each_call(layer_norm, bf16):
    network, obs = small(spec(), layer_norm=layer_norm), frames(3, spec())
    kept = copy.deepcopy(network)
    lower(kept)
    assert kept[1].weight.dtype == torch.bfloat16
    for _ in range(2):
        with precision.training(), torch.no_grad():
            assert torch.equal(network(obs), kept(obs))
        for p in network.parameters():
            p.data.mul_(1.1)
        kept.load_state_dict(network.state_dict())


def test_float32_is_chosen_unless_asked():
    precision.choose("fp32", CPU)
    with precision.training():
        assert not precision.reduced()
    assert precision.choose("fp32", CPU) is None


def test_auto_is_bfloat16_where_the_processor_has_it(monkeypatch):
    for flags, chosen in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        words = precision.choose("auto", CPU)
        with precision.training():
            assert precision.reduced() == chosen
        assert words == (
            "precision=auto: bf16 in training, fp32 in evaluations (this cpu has bfloat16)"
            if chosen
            else "precision=auto: fp32 (this cpu lacks bfloat16)"
        )
    precision.choose("fp32", CPU)


def test_learning_rates_fall_to_their_floor():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    decay = Decay(optimizer, 100, floor=0.1)
    assert [decay.to(step) for step in (0, 50, 90, 95, 1000)] == pytest.approx([1, 0.5, 0.1, 0.1, 0.1])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_atari_at_another_size_shows_the_same_game():
    """The picture for people keeps its own size; the small frames are those of ale-py."""
    small, usual = (Atari("pong", 2, num_threads=1, camera=True, **size) for size in ({"height": 60, "width": 42}, {}))
    assert small.spec.obs_shape == (4, 60, 42) and usual.spec.obs_shape == (4, 84, 84)
    assert small.reset(3).shape == (2, 4, 60, 42)
    usual.reset(3)
    for action in torch.randint(6, (120, 2), generator=torch.Generator().manual_seed(0)):
        a, b = small.step(action), usual.step(action)
        assert torch.equal(a.reward, b.reward) and torch.equal(a.last, b.last)
        assert (small.picture() == usual.picture()).all() and small.picture().shape == (2, 210, 160, 3)
    mean = a.obs.float().mean((1, 2, 3)) / b.obs.float().mean((1, 2, 3))
    torch.testing.assert_close(mean, torch.ones(2), atol=0.02, rtol=0)
