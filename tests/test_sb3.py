"""Stable-Baselines3 in our harness: what it is shown, and one update of ours beside one of its own."""

import json
from functools import partial

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stated import stated
from transitions import transition

from rl_lab import losses
from rl_lab.__main__ import COMMANDS
from rl_lab.agents import ppo
from rl_lab.agents.a2c import Acted
from rl_lab.agents.sb3 import AsVecEnv, SB3Agent
from rl_lab.core.launching import cli
from rl_lab.networks import torsos as networks
from rl_lab.types import Spec, Transition

A2C = stated("agent/a2c")
Atari = stated("env/atari")
DQN = stated("agent/dqn", zero_head=False)
Gym = stated("env/gym")
MDPEnv = stated("env/base/tabular")
PPO = stated("agent/ppo")
RMSpropTF = stated("agent/a2c_zoo", "optimizer")
Replay = stated("agent/dqn", "replay")
gridworld = stated("env/base/gridworld", "mdp")
Linear = stated("agent/dqn", "epsilon")

CPU = torch.device("cpu")


def test_sb3_is_told_what_was_truncated_and_what_came_last():
    env = AsVecEnv(MDPEnv(gridworld("S.G"), num_envs=2, time_limit=3))
    env.reset()
    left, right = 3, 1
    for _ in range(2):
        obs, reward, done, infos = env.step(np.array([left, right]))
    assert done.tolist() == [False, True] and reward.tolist() == [0.0, 1.0]
    assert infos[1]["terminal_observation"].argmax() == 2 and not infos[1]["TimeLimit.truncated"]
    assert obs[1].argmax() == 0  # already the next episode's
    obs, reward, done, infos = env.step(np.array([left, left]))
    assert done.tolist() == [True, False]
    assert infos[0]["TimeLimit.truncated"] and infos[0]["terminal_observation"].argmax() == 0
    assert infos[1] == {}


def test_sb3_rewards_are_clipped_for_the_learner_and_counted_raw():
    seen = []
    world = MDPEnv(gridworld("SG", rewards={"G": 7.0}), num_envs=1, time_limit=3)
    env = AsVecEnv(world, max_abs_reward=1.0, watch=seen.append)
    env.reset()
    _, reward, _, _ = env.step(np.array([1]))
    assert reward.item() == 1.0 and seen[0].reward.item() == 7.0


def trained(tmp_path, *overrides: str) -> int:
    arguments = ["train", "tracker=none", "device=cpu", "loop.total_steps=8", "loop.eval_episodes=2", *overrides]
    return cli.main("rl-lab", "rl", COMMANDS, [*arguments, f"hydra.run.dir={tmp_path / 'run'}"])


@pytest.mark.parametrize(("total", "step"), [(30, 30), (25, 30)])
def test_sb3_learns_from_every_rollout(total, step, tmp_path, monkeypatch):
    """From the last one too, which it fills up, as plain SB3 does."""
    learned, train = [], stable_baselines3.A2C.train
    monkeypatch.setattr(stable_baselines3.A2C, "train", lambda self: learned.append(self.num_timesteps) or train(self))
    assert trained(tmp_path, "env=four_rooms", "agent=sb3_a2c", "env.num_envs=2", f"loop.total_steps={total}") == 0
    assert learned == [10, 20, 30]
    assert json.loads((tmp_path / "run/summary.json").read_text())["step"] == step


@pytest.mark.parametrize(("overrides", "words"), [(["agent=sb3_a2c"], False),
                                                  (["agent=sb3_dqn", "env=cartpole", "env.num_envs=1", "agent.learning_starts=999"], True)])  # fmt: skip
def test_whether_sb3_learned_is_said(overrides, words, tmp_path, capsys):
    assert trained(tmp_path, "loop.total_steps=200", *overrides) == 0
    assert ("nothing was learned" in capsys.readouterr().err) == words


def test_sb3_on_collect_says_that_it_discounts_by_options(tmp_path, capsys):
    collect = ["env=collect_small", "agent=sb3_a2c", "env.num_envs=2", "env.mazes=16"]
    said = "SB3 applies agent.gamma once per option, not once per step of it"
    assert trained(tmp_path, *collect, "env.options=false") == 0
    assert said not in capsys.readouterr().err
    (tmp_path / "run").rename(tmp_path / "first")
    assert trained(tmp_path, *collect) == 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["loop=sb3", "agent=dqn"], "loop=sb3 is for the agents of Stable-Baselines3, and this one is DQN; choose agent=sb3_dqn, "
                                    "sb3_a2c or sb3_ppo, or loop=train"),
        (["loop=sb3", "agent=random", "env=cartpole"], "loop=sb3 is for the agents of Stable-Baselines3, and this one is Random; "),
        (["agent=sb3_dqn", "loop=train"], "loop=train is not for stable_baselines3's DQN; choose loop=sb3, or another agent"),
        (["agent=fitted_q_linear", "loop=train"], "loop=train is not for rl_lab's LeastSquares; choose loop=fit_q, or another agent"),
        (["agent=sb3_a2c", "loop=crew"], "loop=crew is for rl_lab's A2C, and this agent is stable_baselines3's A2C; choose agent=a2c"),
        (["agent=dqn_cnn", "env.obs=index"], "env.obs=index is a bare number"),
        (["agent=sb3_dqn_cnn", "env=cartpole"], "Stable-Baselines3's DQN cannot be built for observations (4,): You should use "
                                                "NatureCNN only with images"),
        (["agent=sb3_dqn", "env.obs=index"], "env.obs=index is a bare number, and networks need a vector; use env.obs=one_hot"),
        (["agent=sb3_dqn", "+agent.seed=5"], "agent.seed is set by the lab itself; leave it out, and type seed=..."),
        (["agent=sb3_ppo", "+agent.device=cpu"], "agent.device is set by the lab itself; leave it out, and type device=..."),
        (["agent=sb3_ppo", "+agent.tensorboard_log=x"], "agent.tensorboard_log is set by the lab itself; leave it out, and type "
                                                        "tracker=tensorboard"),
        (["agent=sb3_a2c", "+agent._init_setup_model=false"], "agent._init_setup_model is set by the lab itself; leave it out"),
        (["agent=sb3_dqn", "+agent.policy_kwargs.no_such=1"], "Stable-Baselines3's DQN cannot be built for observations (104,): "),
    ],
)  # fmt: skip
def test_what_sb3_cannot_do_is_a_line(tmp_path, capsys, overrides, line):
    assert trained(tmp_path, *overrides) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"rl-lab: {line}")


def test_one_dqn_update_equals_sb3s():
    """The same weights, batch and optimizer: every parameter after each of three steps."""
    torch.manual_seed(0)
    theirs = stable_baselines3.DQN("MlpPolicy", gymnasium.make("CartPole-v1"), learning_rate=2.3e-3, batch_size=64,
                                   learning_starts=0, policy_kwargs={"net_arch": [256, 256]})  # fmt: skip
    theirs._setup_learn(100)
    ours = DQN(
        Spec((4,), torch.float32, ("0", "1")), CPU, 0, network=partial(networks.mlp, hidden=(256, 256)),
        optimizer=partial(torch.optim.Adam, lr=2.3e-3), replay=partial(Replay, capacity=1_000), batch_size=64,
        replay_ratio=1.0, learning_starts=0, target_update_period=100, gamma=0.99, epsilon=Linear(0.1, 0.1),
        max_grad_norm=10.0,
    )  # fmt: skip
    for their_net, our_net in ((theirs.q_net, ours.online), (theirs.q_net_target, ours.target)):
        for source, copy in zip(their_net.parameters(), our_net.parameters(), strict=True):
            copy.data.copy_(source.data)
    obs, next_obs, action = torch.randn(64, 4), torch.randn(64, 4), torch.randint(2, (64,))
    reward, terminated = 3 * torch.randn(64), (torch.rand(64) < 0.3).float()
    samples = ReplayBufferSamples(obs, action[:, None], next_obs, terminated[:, None], reward[:, None], None)
    theirs.replay_buffer = type("Fixed", (), {"sample": lambda self, size, env=None: samples})()
    for _ in range(3):
        theirs.train(1, 64)
        ours.learn(transition(obs, action, reward, 1 - terminated, terminated.bool(), next_obs))
        for a, b in zip(theirs.q_net.parameters(), ours.online.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_an_sb3_model_is_saved_restored_and_looked_at_like_an_agent_of_ours():
    env = AsVecEnv(MDPEnv(gridworld("S.G"), num_envs=2, time_limit=3))
    one, two = (SB3Agent(stable_baselines3.A2C("MlpPolicy", env, seed=s)) for s in (0, 1))
    obs = env.env.all_observations()
    before = two.view(obs).bars
    two.load_state_dict(one.state_dict())
    view = one.view(obs)
    torch.testing.assert_close(two.view(obs).bars, view.bars)
    assert not torch.equal(before, view.bars)
    assert view.kind == "probabilities" and torch.equal(one.act(obs), view.bars.argmax(-1))


def cartpole(num_envs: int, limit: int) -> AsVecEnv:
    """Episodes end by a fall and by the time limit, both within a rollout."""
    return AsVecEnv(Gym("CartPole-v1", num_envs, options={"max_episode_steps": limit}), seed=3)


def rollout(theirs, env: AsVecEnv) -> tuple[list[Transition], torch.Tensor, torch.Tensor]:
    """What SB3's model saw and did while it learned for the first time: T transitions, as our loop would give them."""
    seen, step_wait = [], env.step_wait

    def watched():
        seen.append(answer := env.env.step(env._action))
        env.env.step = lambda action: answer
        try:
            return step_wait()
        finally:
            del env.env.step

    env.step_wait = watched
    first, log_probs, values = None, [], []
    forward = theirs.policy.forward

    def noted(obs, *arguments, **more):
        nonlocal first
        first = obs if first is None else first
        action, value, log_prob = forward(obs, *arguments, **more)
        values.append(value.squeeze(-1))
        log_probs.append(log_prob)
        return action, value, log_prob

    theirs.policy.forward = noted
    theirs.learn(theirs.n_steps * env.num_envs)
    obs = [first.to(env.env.spec.obs_dtype), *(s.obs for s in seen[:-1])]
    buffer = theirs.rollout_buffer  # its actions were laid out env by env for the update
    actions = torch.tensor(buffer.actions.reshape(env.num_envs, theirs.n_steps).T).long()
    transitions = [Transition.of(o, a, s) for o, a, s in zip(obs, actions, seen, strict=True)]
    return transitions, torch.stack(log_probs), torch.stack(values)


def assert_same(theirs, ours) -> None:
    for a, b in zip(theirs.policy.parameters(), ours.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def twins(theirs, ours) -> None:
    for source, copy in zip(theirs.policy.parameters(), ours.network.parameters(), strict=True):
        copy.data.copy_(source.data)


RMSPROP = {"alpha": 0.99, "eps": 1e-5}
TF = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": RMSPROP}
MLP = partial(networks.mlp, hidden=(64, 64), activation="Tanh", orthogonal=True)


@pytest.mark.parametrize(
    ("world", "settings"),
    [("cartpole", {"gae_lambda": 1.0}), ("cartpole", {"gae_lambda": 0.9, "normalize_advantage": True}),
     ("pong", {"gae_lambda": 1.0})],
)  # fmt: skip
def test_one_a2c_update_equals_sb3s(world, settings):
    """The same weights and the same rollout, but for a step large enough to show a slip."""
    env = cartpole(3, 4) if world == "cartpole" else AsVecEnv(Atari("pong", 2, num_threads=1), 3, max_abs_reward=1.0)
    theirs = stable_baselines3.A2C(
        "MlpPolicy" if world == "cartpole" else "CnnPolicy", env, n_steps=12 if world == "cartpole" else 5, gamma=0.99,
        vf_coef=0.25, ent_coef=0.01, max_grad_norm=0.5, seed=0, learning_rate=0.1, policy_kwargs=TF, **settings,
    )  # fmt: skip
    ours = A2C(
        env.env.spec, CPU, 0, network=MLP if world == "cartpole" else networks.nature_cnn,
        optimizer=partial(RMSpropTF, lr=0.1, **RMSPROP), rollout_length=theirs.n_steps, gamma=0.99,
        lambda_=settings["gae_lambda"], standardise="normalize_advantage" in settings, value_coef=0.25,
        entropy_coef=0.01, max_grad_norm=0.5, max_abs_reward=1.0, separate_value=world == "cartpole",
    )  # fmt: skip
    twins(theirs, ours)
    transitions, *_ = rollout(theirs, env)
    if world == "cartpole":
        assert any((t.last & (t.discount == 1)).any() for t in transitions[:-1])  # the time limit, in the midst
    acted = []
    for t in transitions:
        log_probs, value = ours.network(t.obs)
        acted.append((Acted(losses.pick(log_probs, t.action), losses.entropy(log_probs), value), t))
    ours.learn(acted)
    assert_same(theirs, ours)


@pytest.mark.parametrize("world", ["cartpole", "pong"])
def test_one_ppo_update_equals_sb3s(world):
    """Three epochs over the whole rollout: the ratio leaves 1, and the clipping bites."""
    env = cartpole(3, 4) if world == "cartpole" else AsVecEnv(Atari("pong", 2, num_threads=1), 3, max_abs_reward=1.0)
    steps = 12 if world == "cartpole" else 5
    theirs = stable_baselines3.PPO(
        "MlpPolicy" if world == "cartpole" else "CnnPolicy", env, n_steps=steps, batch_size=steps * env.num_envs,
        n_epochs=3, clip_range=0.02, ent_coef=0.01, learning_rate=1e-2 if world == "cartpole" else 2.5e-4, seed=0,
    )  # fmt: skip
    ours = PPO(
        env.env.spec, CPU, 0, network=MLP if world == "cartpole" else networks.nature_cnn,
        optimizer=partial(torch.optim.Adam, lr=theirs.learning_rate, eps=1e-5), rollout_length=steps, epochs=3,
        minibatches=1, gamma=0.99, lambda_=0.95, clip=0.02, value_coef=0.5, entropy_coef=0.01, max_grad_norm=0.5,
        max_abs_reward=1.0, separate_value=world == "cartpole",
    )  # fmt: skip
    twins(theirs, ours)
    transitions, log_prob, value = rollout(theirs, env)
    kept = [ppo.Acted(ours.network.prepared(t.obs), *x) for t, *x in zip(transitions, log_prob, value, strict=True)]
    metrics = ours.learn(list(zip(kept, transitions, strict=True)))
    assert metrics["ppo/clipped"] > 0
    assert_same(theirs, ours)
