"""Many seeds at once, in one process: S learners, each with its own environments, side by side as one batch."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from rl_lab.agents.a2c import A2C
from rl_lab.agents.dqn import DQN
from rl_lab.agents.ppo import PPO
from rl_lab.agents.q_learning import QLearning
from rl_lab.core import distributed
from rl_lab.core.errors import NotFinite, UserError
from rl_lab.core.learner import Learner, Metrics
from rl_lab.core.meters import Every
from rl_lab.core.randomness import streams
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Seeds
from rl_lab.envs.tabular.stepper import MDPEnv
from rl_lab.loops.bookkeeping import Episodes
from rl_lab.loops.judging import Judge, play
from rl_lab.loops.seeds.runs import Runs
from rl_lab.loops.seeds.stacking import share, stacked
from rl_lab.types import Actor, Step, Transition, VectorEnv

STACKED = A2C, DQN, PPO, QLearning  # their code takes tensors [S, ...] too: S learners side by side


def train(
    env: VectorEnv,
    agent: Callable[..., Learner],
    run: Run,
    *,
    eval_env: VectorEnv,
    seeds: Seeds,  # so many, from the run's own seed upwards
    total_steps: Count,  # of each seed; one step is one action in one env
    eval_every: Count,  # steps
    eval_episodes: Judged,
    log_every: Count | None = None,  # steps; None: 200 rows a run
) -> Learner:
    """As `loops.train`, with a leading dimension of S seeds; each leaves a run folder as if it had been alone."""
    check(env, agent)
    runs = Runs(run, seeds, loop={"_target_": "rl_lab.loops.training.train", "seeds": None})
    agent = stacked([agent(env.spec, device=run.device, seed=seed) for seed in runs.streams("agent")])
    if words := agent.announce(env.num_envs):
        run.say(words)
    episodes, means = Episodes(env.num_envs, env.device, (seeds,)), Means()
    rows, evaluations = Every(log_every or max(1, total_steps // 200)), Every(eval_every)
    rows.due(0)
    judge = Judges(eval_env, eval_episodes, runs.streams("eval"), run.say)
    num_envs, env = env.num_envs, Worlds(env, seeds)
    parts = {"agent": agent, "env": env, "episodes": episodes, "means": means, "rows": rows,
             "evaluations": evaluations, "runs": runs}  # fmt: skip
    obs = env.reset(runs.streams("env"))
    if step := run.restore(parts):
        obs = env.observe()
    with runs:
        runs.begin(total_steps)
        while step < total_steps:
            if agent.settled:
                run.pause(step, parts)
                if evaluations.due(step):
                    runs.save(step, partial(checkpointed, agent))
                    runs.log(judge(agent), step, keep=True)
            action = agent.act(obs)
            answer = env.step(action)
            step += num_envs
            metrics = agent.update(Transition.of(obs, action, answer))
            for i, error in means.add(metrics, step):
                runs.stop(i, error, step, checkpointed(agent, i))
            episodes.add(answer.reward, answer.last)
            obs = answer.obs
            if rows.due(step):
                runs.log([a | b for a, b in zip(means.pop(seeds), episodes.pops(), strict=True)], step)
        run.save(step, parts)
        runs.save(step, partial(checkpointed, agent))
        runs.log(judge(agent), step, keep=True)
    runs.check()
    return agent


def check(env: VectorEnv, agent: Callable[..., Learner]) -> None:
    """Raises UserError where many seeds cannot be trained at once."""
    if distributed.size() > 1:
        raise UserError("loop=seeds trains in one process; start it without torchrun")
    if not isinstance(env, MDPEnv):
        raise UserError(f"loop=seeds steps gridworlds and other known MDPs, and env is a {type(env).__name__}; "
                        "run the seeds one by one: -m seed=0,1,2")  # fmt: skip
    if not (isinstance(agent.func, type) and issubclass(agent.func, STACKED)):
        raise UserError(f"loop=seeds trains DQN, A2C, PPO and Q-learning (SARSA, PQN), and this agent is "
                        f"{agent.func.__name__}; run the seeds one by one: -m seed=0,1,2")  # fmt: skip


def checkpointed(agent: Learner, i: int) -> dict:
    """The parts of the checkpoint of one seed: what can be judged and filmed, or learn on with a new memory."""
    return {"agent": Share(agent, i)}


class Share:
    """One of the stacked learners, as a checkpoint has it."""

    def __init__(self, agent: Learner, i: int):
        self.state_dict = partial(share, agent, i)


class Worlds:
    """The walkers of S seeds in one environment, [S, N]; those of each move by a stream of their own."""

    def __init__(self, env: MDPEnv, seeds: int):
        self.env, self.seeds = env, seeds
        env.num_envs, env.rng = seeds * env.num_envs, streams(range(seeds), env.device)
        self.state_dict, self.load_state_dict = env.state_dict, env.load_state_dict

    def reset(self, seeds: list[int]) -> Tensor:
        return self._apart(self.env.reset(seeds))

    def step(self, action: Tensor) -> Step:
        return Step(*map(self._apart, self.env.step(action.flatten())))

    def observe(self) -> Tensor:
        return self._apart(self.env.observe())

    def _apart(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.seeds, -1))


class Judges:
    """A `Judge` for each seed, with as many episodes from a stream of its own, all played at once."""

    def __init__(self, env: MDPEnv, episodes: int, seeds: list[int], say: Callable[[str], None]):
        self.regret, self.env = Judge(env, episodes, 0, say).regret, Worlds(env, len(seeds)).env
        self.episodes, self.seeds = episodes * len(seeds), seeds

    def __call__(self, actor: Actor) -> list[Metrics]:
        """Of who acts on obs [S, B, ...]."""
        count = len(self.seeds)

        def policy(obs: Tensor) -> Tensor:
            return actor.act(obs.unflatten(0, (count, -1)), greedy=True).flatten()

        played = play(self.env, policy, self.episodes, self.seeds)
        returns, lengths = (x.view(-1, count, self.env.num_envs // count).mean((0, 2)).tolist() for x in played)
        rows = [{"eval/return": r, "eval/length": n} for r, n in zip(returns, lengths, strict=True)]
        if self.regret:
            sights = self.env.all_observations()
            with torch.no_grad():
                chances = actor.probabilities(sights.expand(count, *sights.shape))
            rows = [row | {"eval/regret": self.regret(p)} for row, p in zip(rows, chances, strict=True)]
        return rows


class Means:
    """As `meters.Means`, of metrics [S] or of all seeds alike; what is not finite is handed back, not raised."""

    def __init__(self):
        self._sums: dict[str, Tensor | float] = {}
        self._count = 0

    def add(self, metrics: Metrics, step: int) -> list[tuple[int, NotFinite]]:
        """The seeds that went astray, and where. On a GPU looking would stop the queue: there the next row tells."""
        for name, x in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + (x.double() if isinstance(x, Tensor) else x)
        self._count += bool(metrics)
        values = {name: x for name, x in metrics.items() if isinstance(x, Tensor) and not x.is_cuda}
        if not values or (finite := torch.stack([*values.values()]).isfinite()).all():
            return []
        at = (~finite).nonzero().tolist()
        names = list(values)
        first = {i: names[row] for row, i in reversed(at)}
        return [(i, NotFinite(f"{name} is {float(values[name][i])} at step {step:,}")) for i, name in first.items()]

    def pop(self, seeds: int) -> list[Metrics]:
        """A row for each seed."""
        means = [torch.as_tensor(x / self._count, dtype=torch.float64) for x in self._sums.values()]
        table = [x.expand(seeds).tolist() for x in means]
        names, self._sums, self._count = list(self._sums), {}, 0
        return [dict(zip(names, row, strict=True)) for row in zip(*table, strict=True)] or [{}] * seeds

    def state_dict(self) -> dict:
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: dict) -> None:
        self._sums, self._count = dict(state["sums"]), state["count"]
