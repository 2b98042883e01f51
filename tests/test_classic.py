"""Classic control as tensors, held step by step against Gymnasium's own environments."""

import gymnasium
import hydra
import numpy as np
import pytest
import torch
from test_stepper import NoSync

from rl_lab.core import checking
from rl_lab.core.errors import UserError
from rl_lab.core.launching import composition
from rl_lab.envs.abilities import Filmed
from rl_lab.envs.classic.physics import Acrobot, CartPole, MountainCar
from rl_lab.envs.classic.stepper import ClassicEnv, Walkers

KINDS = [CartPole, Acrobot, MountainCar]
LIMITS = {CartPole: 500, Acrobot: 500, MountainCar: 200}


def build(kind, num_envs: int, **settings) -> ClassicEnv:
    env = ClassicEnv(kind(), num_envs, **{"time_limit": LIMITS[kind], "device": "cpu"} | settings)
    env.reset(3)
    return env


def at(env: ClassicEnv, *state: float, left: int | None = None) -> None:
    """Puts all copies there."""
    limit = env.time_limit if left is None else left
    rows = torch.tensor([state] * env.num_envs, dtype=torch.float64)
    env.walkers = Walkers(rows, torch.full((env.num_envs,), limit))


# Policies that get anywhere: where the pole falls, with the swing, with the speed; and actions at random.
def pumping(kind, obs: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    wise = {CartPole: lambda: (obs[:, 2] + obs[:, 3] > 0).long(),
            Acrobot: lambda: (obs[:, 4] < 0).long() * 2,
            MountainCar: lambda: (obs[:, 1] >= 0).long() * 2}[kind]()  # fmt: skip
    foolish = torch.randint(wise.max() + 1, wise.shape, generator=rng)
    return torch.where(torch.rand(len(obs), generator=rng) < 0.2, foolish, wise)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_gymnasiums(kind):
    """From the same state the same action leads to the same place, for 4 copies and 1,000 steps each."""
    env, theirs, rng = build(kind, 4), gymnasium.make(kind.id).unwrapped, torch.Generator().manual_seed(0)
    theirs.reset(seed=0)
    obs, ends, cuts = env.observe(), 0, 0
    for _ in range(1_000):
        action, before = pumping(kind, obs, rng), env.walkers
        step = env.step(action)
        _, successor, *_ = env.advance(before, action, *env.draw())
        for i in range(4):
            theirs.state, theirs.steps_beyond_terminated = before.state[i].numpy().copy(), None
            seen, reward, terminated, _, _ = theirs.step(int(action[i]))
            np.testing.assert_allclose(successor[i].numpy(), theirs.state, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(step.next_obs[i].numpy(), seen, rtol=1e-6, atol=1e-6)
            assert (step.reward[i].item(), 1 - step.discount[i].item()) == (reward, terminated)
            assert step.last[i].item() == (terminated or before.left[i].item() == 1)
        ends, cuts = ends + int((step.discount == 0).sum()), cuts + int((step.last & (step.discount == 1)).sum())
        obs = step.obs
    assert ends > 4 and (cuts > 0 or kind is not CartPole), (ends, cuts)
    assert step.next_obs.dtype == step.obs.dtype == step.reward.dtype == torch.float32


@pytest.mark.parametrize("kind", [CartPole, MountainCar])
def test_an_episode_is_gymnasiums_to_its_end(kind):
    """Short ones of the pole, whose last digits grow 50-fold a second, and none of Acrobot, which is chaotic."""
    env, theirs, rng = build(kind, 1), gymnasium.make(kind.id), torch.Generator().manual_seed(1)
    for seed in range(20):
        env.reset(seed), theirs.reset(seed=seed)
        theirs.unwrapped.state = env.state[0].numpy().copy()
        obs, over = env.observe(), False
        while not over:
            action = pumping(kind, obs, rng) if kind is MountainCar else torch.randint(2, (1,), generator=rng)
            step, (seen, reward, terminated, truncated, _) = env.step(action), theirs.step(int(action))
            np.testing.assert_allclose(step.next_obs[0].numpy(), seen, rtol=1e-5, atol=1e-6)
            assert (step.reward.item(), step.discount.item() == 0) == (reward, terminated)
            obs, over = step.obs, terminated or truncated
            assert step.last.item() == over


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (CartPole, [-0.05] * 4, [0.05] * 4),
        (Acrobot, [-0.1] * 4, [0.1] * 4),
        (MountainCar, [-0.6, 0.0], [-0.4, 0.0]),
    ],
)
def test_first_states_are_spread_as_gymnasiums(kind, low, high):
    state, low, high = build(kind, 20_000).state, torch.tensor(low), torch.tensor(high)
    assert (state >= low).all() and (state <= high).all()
    torch.testing.assert_close(state.mean(0), ((low + high) / 2).double(), atol=0.002, rtol=0)
    torch.testing.assert_close(state.std(0), ((high - low) / 12**0.5).double(), atol=0.001, rtol=0)
    theirs = np.stack([gymnasium.make(kind.id).unwrapped.reset(seed=i)[0] for i in range(300)])
    torch.testing.assert_close(torch.from_numpy(theirs).mean(0), kind().look(state).mean(0), atol=0.02, rtol=0)


def test_the_time_limit_leaves_the_future_open():
    """The pole stands at the last step; in the other it falls in that very step, and there is no future."""
    env = build(CartPole, 1)
    at(env, 0.0, 0.0, 0.0, 0.0, left=1)
    step = env.step(torch.tensor([1]))
    assert (step.last.item(), step.discount.item(), step.reward.item()) == (True, 1.0, 1.0)
    assert step.next_obs[0, 1] == pytest.approx(0.19512, abs=1e-5) and (step.obs.abs() <= 0.05).all()
    assert env.walkers.left.item() == 500
    at(env, 0.0, 0.0, 0.2094, 1.0, left=1)
    step = env.step(torch.tensor([1]))
    assert (step.last.item(), step.discount.item(), step.reward.item()) == (True, 0.0, 1.0)


@pytest.mark.parametrize(("kind", "limit"), [(Acrobot, 500), (MountainCar, 200)])
def test_who_idles_is_cut_at_the_limit(kind, limit):
    env = build(kind, 2)
    steps = [env.step(torch.ones(2, dtype=torch.int64)) for _ in range(2 * limit)]
    assert [t + 1 for t, s in enumerate(steps) if s.last.any()] == [limit, 2 * limit]
    assert all((s.discount == 1).all() and (s.reward == -1).all() for s in steps)


def test_rewards_at_the_goals():
    car = build(MountainCar, 1)
    at(car, 0.49, 0.07)
    step = car.step(torch.tensor([2]))
    assert (step.reward.item(), step.discount.item(), step.last.item()) == (-1, 0, True)
    swing = build(Acrobot, 1)
    at(swing, 3.1, 0.0, 0.0, 0.0)
    step = swing.step(torch.tensor([1]))
    assert (step.reward.item(), step.discount.item(), step.last.item()) == (0, 0, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_env_goes_on_as_if_nothing_happened(kind):
    one, two = build(kind, 6, time_limit=11), build(kind, 6, time_limit=11)
    two.reset(9)
    actions = torch.randint(2, (40, 6))
    for action in actions[:17]:
        one.step(action)
    two.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    assert torch.equal(one.observe(), two.observe())
    for action in actions[17:]:
        for a, b in zip(one.step(action)[:6], two.step(action)[:6], strict=True):
            assert torch.equal(a, b)
    with pytest.raises(ValueError, match="^states"):
        build(kind, 5).load_state_dict(one.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_device(kind):
    env = build(kind, 8, time_limit=3)
    with NoSync():
        for _ in range(6):
            env.step(torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (CartPole, (0.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.2, 0.0)),
        (Acrobot, (0.0, 0.0, 0.0, 0.0), (2.0, 1.0, 0.0, 0.0)),
        (MountainCar, (-0.5, 0.0), (0.4, 0.0)),
    ],
)
def test_the_pictures_are_gymnasiums(kind, one, other):
    env, theirs = build(kind, 2, camera=True), gymnasium.make(kind.id, render_mode="rgb_array")
    theirs.reset(seed=0)
    assert isinstance(env, Filmed) and not env.sees_picture()
    for state in (one, other):
        at(env, *state)
        theirs.unwrapped.state = np.array(state)
        first, second = env.picture()
        assert np.array_equal(first, theirs.render()) and np.array_equal(first, second) and first.std() > 5
    at(env, *one)
    assert not np.array_equal(env.picture()[0], first)
    env.close(), theirs.close()
    with pytest.raises(UserError, match="^env.camera=false"):
        build(kind, 1).picture()


@pytest.mark.parametrize(
    ("name", "kind"), [("cartpole", CartPole), ("acrobot", Acrobot), ("mountain_car", MountainCar)]
)
def test_the_settings_are_those_of_gymnasium(name, kind):
    node = composition.compose(composition.conf_dir(), "rl", [f"env={name}_tensor", "device=cpu"]).env
    checking.check(node, "env")
    env, theirs = hydra.utils.instantiate(node), gymnasium.make(kind.id)
    assert isinstance(env.physics, kind)
    assert env.time_limit == theirs.spec.max_episode_steps == LIMITS[kind]
    assert env.spec.obs_shape == theirs.observation_space.shape and env.spec.num_actions == theirs.action_space.n
    assert env.frames_per_second == theirs.metadata["render_fps"]
