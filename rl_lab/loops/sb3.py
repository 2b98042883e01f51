"""Stable-Baselines3 as a yardstick: it keeps its own loop; environment, metrics and evaluation are ours."""

import math
from collections.abc import Callable

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from rl_lab.agents.sb3 import SB3Agent
from rl_lab.core.errors import UserError
from rl_lab.core.meters import Every
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Positive
from rl_lab.envs.collect.world import Collect
from rl_lab.loops.bookkeeping import Episodes
from rl_lab.loops.judging import Judge
from rl_lab.types import VectorEnv


def train_sb3(
    env: VectorEnv,
    agent: Callable[..., BaseAlgorithm],
    run: Run,
    *,
    eval_env: VectorEnv,
    total_steps: Count,
    eval_every: Count,
    eval_episodes: Judged,
    log_every: Count | None = None,
    max_abs_reward: Positive = math.inf,
) -> "SB3Agent":
    """`agent` is an SB3 class with its hyperparameters: everything but env, seed and device.

    A resumed run keeps parameters, optimizer and step count; SB3's rollout or replay and its exploration schedule
    start anew. SB3 knows no discount but agent.gamma, once an action: where actions are options that last, it learns
    another return than agents of ours, who discount each of an option's steps.
    """
    wrapped = AsVecEnv(env, run.stream("env"), max_abs_reward)
    player = SB3Agent(built(agent, wrapped, run))
    if isinstance(env, Collect) and env.longest > 1:
        run.say("SB3 discounts by agent.gamma once an option, and not once each of its steps, as agents of ours do")
    player.model.set_logger(Logger(None, []))  # its own would write a folder of its own
    rows, evaluations = Every(log_every or max(1, total_steps // 200)), Every(eval_every)
    rows.due(0)
    parts = {"agent": player, "rows": rows, "evaluations": evaluations}
    first = run.restore(parts)
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say)
    run.begin(total_steps)
    if first:
        run.say("SB3 keeps parameters, optimizer and steps; its rollout or replay and its schedules start anew")

    class Report(BaseCallback):
        def _on_step(self) -> bool:
            step = first + self.num_timesteps
            if rows.due(step):
                run.log(wrapped.episodes.pop(), step)
            run.pause(step, parts)
            if evaluations.due(step) and step < total_steps:
                run.log(judge(player), step, keep=True)
            return True

    if not first:
        evaluations.due(0)
        run.log(judge(player), 0, keep=True)
    player.model.learn(total_steps - first, callback=Report())
    step = first + player.model.num_timesteps
    run.save(step, parts)
    run.log(judge(player), step, keep=True)
    return player


def built(agent: Callable[..., BaseAlgorithm], env: "AsVecEnv", run: Run) -> BaseAlgorithm:
    """Raises UserError where this is not for SB3, or SB3 refuses it."""
    kind, shape = getattr(agent, "func", agent), env.observation_space.shape
    if not (isinstance(kind, type) and issubclass(kind, BaseAlgorithm)):
        raise UserError(f"loop=sb3 is for the agents of Stable-Baselines3, and this one is {kind.__name__}; "
                        "choose agent=sb3_dqn, sb3_a2c or sb3_ppo, or loop=train")  # fmt: skip
    if not shape:
        raise UserError("env.obs=index is a bare number, of which a network makes nothing; use env.obs=one_hot")
    try:
        return agent(env=env, seed=run.stream("agent"), device=run.device)
    except (AssertionError, TypeError, ValueError) as error:
        words = str(error).strip().partition("\n")[0]
        raise UserError(
            f"Stable-Baselines3's {kind.__name__} cannot be built for observations {shape}: {words}"
        ) from error


class AsVecEnv(VecEnv):
    """Our VectorEnv seen through SB3's eyes."""

    def __init__(self, env: VectorEnv, seed: int = 0, max_abs_reward: float = math.inf):
        self.env, self._seed, self._max_abs_reward = env, seed, max_abs_reward
        self.episodes = Episodes(env.num_envs, env.device)
        high, dtype = (255, np.uint8) if env.spec.obs_dtype == torch.uint8 else (np.inf, np.float32)
        low = 0 if dtype == np.uint8 else -np.inf
        super().__init__(
            env.num_envs, spaces.Box(low, high, env.spec.obs_shape, dtype), spaces.Discrete(env.spec.num_actions)
        )

    def reset(self) -> np.ndarray:
        return self.env.reset(self._seed).cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self._action = torch.as_tensor(actions, device=self.env.device)

    def step_wait(self):
        step = self.env.step(self._action)
        self.episodes.add(step.reward, step.last)
        last, truncated = step.last.cpu().numpy(), (step.last & (step.discount > 0)).cpu().numpy()
        done = last | (step.discount == 0).cpu().numpy()  # a lost life that ends the future ends SB3's episode too
        infos = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(done):
            infos[i] = {
                "terminal_observation": step.next_obs[i].cpu().numpy(),
                "TimeLimit.truncated": bool(truncated[i]),
            }
        reward = step.reward.clamp(-self._max_abs_reward, self._max_abs_reward)
        return step.obs.cpu().numpy(), reward.cpu().numpy(), done, infos

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs

    def set_attr(self, attr_name, value, indices=None) -> None: ...

    def env_method(self, method_name, *args, indices=None, **kwargs):
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs
