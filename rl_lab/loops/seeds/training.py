"""Many seeds at once, in one process: S learners, each with its own environments, side by side as one batch."""

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from rl_lab.core import calls, distributed
from rl_lab.core.bookkeeping import Book
from rl_lab.core.errors import NotFinite, UserError
from rl_lab.core.learner import Metrics
from rl_lab.core.randomness import streams
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Seeds
from rl_lab.envs.abilities import alike
from rl_lab.envs.tabular.stepper import MDPEnv
from rl_lab.loops.episodes import Episodes
from rl_lab.loops.judging import Judge, play, scores
from rl_lab.loops.seeds.runs import Rows, Runs
from rl_lab.loops.seeds.stacking import Stackable, share, stacked
from rl_lab.types import Actor, Step, Transition, VectorEnv


def train(
    env: VectorEnv,
    agent: Callable[..., Stackable],
    run: Run,
    *,
    eval_env: VectorEnv,
    seeds: Seeds,  # how many, from the run's own seed upwards
    total_steps: Count,  # of each seed; one step is one action in one env
    eval_every: Count | None,  # steps; None: only after the last one
    eval_episodes: Judged,
    log_every: Count | None,  # steps; None: 200 rows a run
) -> Stackable:
    """As `loops.train`, with a leading dimension of S seeds; each leaves a run folder as if it had been alone."""
    env, eval_env = check(env, agent), check(eval_env, agent)
    alike(env, eval_env)
    runs = Runs(run, seeds, loop=ALONE)
    learner = stacked([agent(env.spec, device=run.device, seed=seed) for seed in runs.streams("agent")])
    runs.parts = lambda i: {"agent": Share(learner, i)}
    if words := learner.announce(env.num_envs):
        run.say(words)
    judges = Judges(eval_env, eval_episodes, runs.streams("eval"), run.say)
    num_envs, worlds = env.num_envs, Worlds(env, seeds)
    obs = worlds.reset(runs.streams("env"))
    book = Book(
        runs,
        {"agent": learner, "env": worlds},
        partial(judges, learner),
        total=total_steps,
        eval_every=eval_every,
        log_every=log_every,
        means=Means(runs),
        episodes=SeedEpisodes(num_envs, env.device, (seeds,)),
    )
    if book.step:
        obs = worlds.observe()
    with runs:
        for _ in book.steps(num_envs, learner):
            action = learner.act(obs)
            step = worlds.step(action)
            book.add(learner.update(Transition.of(obs, action, step)), step.reward, step.last)
            obs = step.obs
    runs.check()
    return learner


ALONE = {"_target_": "rl_lab.loops.training.train", "eval_drawn": 0, "stop_at": None}  # the loop of one of the seeds


def check(env: VectorEnv, agent: Callable[..., Stackable]) -> MDPEnv:
    """The env, if many seeds can be trained in it at once. Raises UserError if not."""
    if distributed.size() > 1:
        raise UserError("loop=seeds trains in one process; start it without torchrun")
    if not isinstance(env, MDPEnv):
        raise UserError(f"loop=seeds steps gridworlds and other known MDPs, and env is a {type(env).__name__}; "
                        "run the seeds one by one: -m seed=0,1,2")  # fmt: skip
    kind = calls.behind(agent)
    if not (isinstance(kind, type) and issubclass(kind, get_args(Stackable))):
        raise UserError(
            f"loop=seeds trains DQN, A2C, PPO and Q-learning (SARSA, PQN), and this agent is {kind.__name__}; "
            "run the seeds one by one: -m seed=0,1,2"
        )
    return env


class Share:
    """One of the stacked learners, as a checkpoint has it; only saved, never loaded."""

    def __init__(self, learner: Stackable, i: int):
        self.learner, self.i = learner, i

    def state_dict(self) -> dict[str, Any]:
        return share(self.learner, self.i)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError("the checkpoint of all seeds is loaded")


class Worlds:
    """The walkers of S seeds in one environment, [S, N]; those of each move by a stream of their own."""

    def __init__(self, env: MDPEnv, seeds: int):
        self.env, self.seeds = env, seeds
        env.num_envs = seeds * env.num_envs
        env.rng = streams(range(seeds), env.device)  # type: ignore[assignment]  # drawn from as from one generator
        self.state_dict, self.load_state_dict = env.state_dict, env.load_state_dict

    def reset(self, seeds: list[int]) -> Tensor:
        return self._apart(self.env.reset(seeds))  # type: ignore[arg-type]  # one for each stream

    def step(self, action: Tensor) -> Step:
        return Step(*(None if x is None else self._apart(x) for x in self.env.step(action.flatten())))  # type: ignore[arg-type]

    def observe(self) -> Tensor:
        return self._apart(self.env.observe())

    def _apart(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.seeds, -1))


class Judges:
    """A `Judge` for each seed, with as many episodes from a stream of its own, all played at once."""

    def __init__(self, env: MDPEnv, episodes: int, seeds: list[int], say: Callable[[str], None]):
        self.regret, self.env = Judge(env, episodes, 0, say).regret, Worlds(env, len(seeds)).env
        self.episodes, self.seeds = episodes * len(seeds), seeds

    def __call__(self, actor: Actor) -> Rows:
        """Of who acts on obs [S, B, ...]."""
        count = len(self.seeds)

        def policy(obs: Tensor) -> Tensor:
            return actor.act(obs.unflatten(0, (count, -1)), greedy=True).flatten()

        played = play(self.env, policy, self.episodes, self.seeds)  # type: ignore[arg-type]  # one for each stream
        returns, lengths = (x.view(-1, count, self.env.num_envs // count).transpose(0, 1) for x in played)
        rows = [scores(*of_seed) for of_seed in zip(returns.flatten(1), lengths.flatten(1), strict=True)]
        if self.regret:
            sights = self.env.all_observations()
            with torch.no_grad():
                chances = actor.probabilities(sights.expand(count, *sights.shape))
            rows = [row | {"eval/regret": self.regret(p)} for row, p in zip(rows, chances, strict=True)]
        return Rows(rows)


class SeedEpisodes(Episodes):
    def pop(self) -> Rows:  # type: ignore[override]
        return Rows(self.pops())


class Means:
    """As `bookkeeping.Means`, of metrics [S] or of all seeds alike; a seed that is not finite stops alone."""

    def __init__(self, runs: Runs):
        self._runs = runs
        self._sums: dict[str, Tensor | float] = {}
        self._count = 0

    def add(self, metrics: Metrics, step: int) -> None:
        """On a GPU looking would stop the queue: there the next row finds what is not finite."""
        for name, x in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + (x.double() if isinstance(x, Tensor) else x)
        self._count += bool(metrics)
        values = {name: x for name, x in metrics.items() if isinstance(x, Tensor) and x.is_cpu}
        if not values or (finite := torch.stack([*values.values()]).isfinite()).all():
            return
        names = list(values)
        first = {i: names[row] for row, i in reversed((~finite).nonzero().tolist())}
        for i, name in first.items():
            self._runs.stop(i, NotFinite(f"{name} is {float(values[name][i])} at step {step:,}"), step)

    def pop(self) -> Rows:
        seeds = len(self._runs.each)
        means = [torch.as_tensor(x / self._count, dtype=torch.float64) for x in self._sums.values()]
        table = [x.expand(seeds).tolist() for x in means]
        names, self._sums, self._count = list(self._sums), {}, 0
        return Rows(dict(zip(names, row, strict=True)) for row in zip(*table, strict=True)) or Rows([{}] * seeds)

    def state_dict(self) -> dict:
        return {"sums": dict(self._sums), "count": self._count}

    def load_state_dict(self, state: dict) -> None:
        self._sums, self._count = dict(state["sums"]), state["count"]
