"""The experiments: `train` an agent, or `plan` with a model; both end before the `Judge`."""

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from rl_lab.agents.planned import Planned
from rl_lab.core import distributed, files
from rl_lab.core.errors import NotFinite, UserError
from rl_lab.core.learner import Metrics
from rl_lab.core.meters import Every, Means
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged
from rl_lab.envs.mdp import MDPEnv
from rl_lab.looking import plan_pictures
from rl_lab.mdp import MDP
from rl_lab.planning import Plan, Regret
from rl_lab.types import Actor, Agent, Policy, Transition, VectorEnv


def train(
    env: VectorEnv,
    agent: Callable[..., Agent],
    run: Run,
    *,
    eval_env: VectorEnv,
    total_steps: Count,  # one step is one action in one env
    eval_every: Count,  # steps
    eval_episodes: Judged,
    log_every: Count | None = None,  # steps; None: 200 rows a run
) -> Agent:
    """Act, step, update; now and then log, evaluate, save. The same loop for every agent of ours.

    Under torchrun each process has envs of its own, as many as one alone would have, and the steps of all count. They
    learn together; the first one evaluates, while the others wait for its next gradient.
    """
    check_loop(agent, "train")
    agent, stride = agent(env.spec, device=run.device, seed=run.stream("agent")), env.num_envs * distributed.size()
    episodes, means = Episodes(env.num_envs, env.device), Means()
    rows, evaluations = Every(log_every or max(1, total_steps // 200)), Every(eval_every)
    rows.due(0)
    parts = {"agent": agent, "env": env, "episodes": episodes, "means": means, "rows": rows, "evaluations": evaluations}
    step, obs = start(env, run, parts)
    for words in agent.announce(env.num_envs), differing_gammas(agent, env):
        if words:
            run.say(words)
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say)
    run.begin(total_steps)
    while step < total_steps:
        if agent.settled:
            run.pause(step, parts)
            if evaluations.due(step) and run.leads:
                run.log(judge(agent), step, keep=True)
        action = agent.act(obs)
        answer = env.step(action)
        step += stride
        try:
            means.add(agent.update(Transition(obs, action, *answer[:4], answer.duration)), step)
            episodes.add(answer.reward, answer.last)
            obs = answer.obs
            if rows.due(step):
                run.log(means.pop() | episodes.pop(), step)
        except NotFinite as error:
            raise run.rescued(error, step, parts) from None
    run.save(step, parts)  # before the last row, so that a longer run taken up from here is as if never ended
    if run.leads:
        run.log(judge(agent), step, keep=True)
    return agent


def check_loop(agent: Callable, loop: str) -> None:
    """Raises UserError where the agent is one of another loop's."""
    kind = getattr(agent, "func", agent)
    foreign = {"stable_baselines3": "sb3", "rl_lab.agents.fitted_q": "fit_q"}
    own = next((name for home, name in foreign.items() if f"{kind.__module__}.".startswith(f"{home}.")), "train")
    if isinstance(kind, type) and own != loop:
        raise UserError(f"loop={loop} is not for {kind.__module__.partition('.')[0]}'s {kind.__name__}; choose "
                        f"loop={own}, or another agent")  # fmt: skip


def differing_gammas(agent: Agent, env: VectorEnv) -> str | None:
    """What there is to say where a world of options discounts by another gamma than the agent, as Collect may."""
    own, worlds = getattr(agent, "gamma", None), getattr(env, "gamma", None)
    if None in (own, worlds) or own == worlds:
        return None
    return (f"agent.gamma={own:g} and env.gamma={worlds:g} differ, and both discount: an option of d steps by "
            f"{own:g} x {worlds:g}^(d-1); set agent.gamma={worlds:g} for one discount")  # fmt: skip


def start(env: VectorEnv, run: Run, parts: dict) -> tuple[int, Tensor]:
    """The step to go on from and the first observation: of a fresh run, or of one that was stopped."""
    obs = env.reset(run.own_stream("env"))
    step = run.restore(parts)
    if step and env.state_dict():
        obs = env.observe()
    elif step:
        obs = env.reset(run.own_stream(f"env/{step}"))
        parts["episodes"].reset()
        run.say("this environment's state cannot be saved: its episodes start anew")
    return step, obs


def plan(
    env: VectorEnv,
    planner: Callable[[MDP], Iterator[Plan]],
    run: Run,
    *,
    eval_episodes: Judged,
    log_every: Count = 1,  # sweeps
    film: bool = True,  # of the sweeps
) -> Plan:
    """Sweep until the planner is done; leave plan.npz, pictures and a film; then walk its policy in the same env."""
    if not isinstance(env, MDPEnv):
        raise UserError(f"{planner.func.__name__} plans with a known model, and env={run.names.get('env')} has none; "
                        "choose a gridworld, or a learning agent")  # fmt: skip
    layout, actions = env.mdp.layout, env.mdp.actions
    if run.before.get("state") == "finished" and _is_whole(run, layout is not None, film):
        raise UserError(f"{run.dir} holds a finished plan: there is nothing to go on with; start a new run")
    if run.before:
        run.say("a plan is not gone on with: it is found anew, the same")
    run.anew()
    judge = Judge(env, eval_episodes, run.stream("eval"), run.say)
    run.begin(1, "plans")
    sweeps = plan_pictures.Sweeps(layout, actions)
    policy, spent, start = torch.zeros_like(env.mdp.terminal, dtype=torch.int64), 0.0, perf_counter()
    for sweep, plan in enumerate(planner(env.mdp), 1):
        spent += perf_counter() - start
        run.heed(sweep)
        if sweep % log_every == 0:
            run.log(progress(plan, policy, spent), sweep)
            policy = plan.policy
            if film:
                sweeps.add(sweep, plan)
        start = perf_counter()
    row = progress(plan, policy, spent)
    player = Planned(plan.q, plan.policy, env.states)
    run.log(row | judge(player), sweep, keep=True)
    found = {"q": plan.q, "value": plan.value.masked_fill(env.mdp.terminal, 0.0), "policy": plan.policy}
    found = {name: x.cpu().numpy() for name, x in found.items()}
    with files.replacing(run.path("plan.npz")) as path:
        np.savez(path, **found)
    run.save(sweep, {"agent": player})
    for name, picture in plan_pictures.draw(layout, actions, **found).items():
        with files.replacing(run.path(f"pictures/{name}.png")) as path:
            picture.save(path)
        run.media(f"plan/{name}", run.path(f"pictures/{name}.png"), sweep)
    if film and sweeps.snapshots:
        sweeps.write(run.path("videos/sweeps.mp4"))
        run.media("plan/sweeps", run.path("videos/sweeps.mp4"), sweep)
    return plan


def _is_whole(run: Run, drawn: bool, film: bool) -> bool:
    """Whether a planner's folder has all that one may have; where it has not, the plan is found again."""
    names = ["checkpoint.pt", "plan.npz", "pictures/values.png", *["pictures/q.png"] * drawn]
    names += [f"videos/sweeps.{kind}" for kind in ("mp4", "gif") if film]
    return all((run.dir / name).is_file() and (run.dir / name).stat().st_size for name in names)


def progress(plan: Plan, policy: Tensor, seconds: float) -> Metrics:
    """Of a sweep: what moved, what the start is worth and between which bounds, and the seconds planned so far."""
    value = plan.mdp.start @ plan.value
    row = {
        "plan/residual": plan.residual,
        "plan/policy_changes": (plan.policy != policy).sum(),
        "plan/start_value": value,
        "plan/seconds": seconds,
    }
    if plan.low.isfinite() and plan.high.isfinite():
        row |= {"plan/start_low": value + plan.low, "plan/start_high": value + plan.high}
    return row


class Judge:
    """Mean return and length of `play`'s episodes; where the world is a known MDP, also the policy's exact regret."""

    LARGEST = 5_000  # states, for every one of which the policy is asked

    def __init__(self, env: VectorEnv, episodes: int, seed: int, say: Callable[[str], None] = lambda text: None):
        self.env, self.episodes, self.seed, self.say, self.regret = env, episodes, seed, say, None
        if isinstance(env, MDPEnv) and len(env.mdp.start) <= self.LARGEST:
            try:
                self.regret = Regret(env.mdp, env.time_limit)
            except UserError as error:
                say(f"eval/regret is left out: by the world's own gamma there is no best policy ({error})")

    def __call__(self, actor: Actor) -> Metrics:
        returns, lengths = play(self.env, partial(actor.act, greedy=True), self.episodes, self.seed)
        metrics = {"eval/return": returns.mean(), "eval/length": lengths.mean()}
        return metrics | self.exact(actor)

    @torch.no_grad()
    def exact(self, actor: Actor) -> Metrics:
        """The regret of the policy that played, by the chances with which it draws; {} where it cannot be known."""
        if self.regret and not hasattr(actor, "probabilities"):
            self.say(f"eval/regret is left out: {type(actor).__name__} does not say its probabilities")
            self.regret = None
        return {"eval/regret": self.regret(actor.probabilities(self.env.all_observations()))} if self.regret else {}


LONG, ENDLESS = 30_000, 1_000_000  # steps of an episode that are told of, and beyond which it has no end


@torch.no_grad()
def play(env: VectorEnv, policy: Policy, episodes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns and lengths, both [E], of each env's first ceil(episodes / num_envs) episodes: no bias to short ones.

    An environment without a time limit may hold a policy for ever. From 30,000 steps of an episode on (a game of Atari
    has 27,000 at most) this is told, at each doubling, and at a million it is a UserError; whatever has a limit of its
    own, `env.time_limit`, is played to it.
    """
    quota = -(-episodes // env.num_envs)
    table = torch.zeros(2, quota + 1, env.num_envs, device=env.device)  # the last row takes what is not counted
    ids = torch.arange(env.num_envs, device=env.device)
    episode = torch.zeros_like(ids)
    obs, steps, tell = env.reset(seed), 0, LONG
    look = math.inf if getattr(env, "time_limit", None) else LONG
    while (episode < quota).any():
        step = env.step(policy(obs))
        table[:, episode, ids] += torch.stack([step.reward, torch.ones_like(step.reward)])
        episode = (episode + step.last).clamp(max=quota)
        obs, steps = step.obs, steps + 1
        if steps >= look:
            longest = int((table[1, episode, ids] * (episode < quota)).max())  # of those that go on
            if longest >= min(tell, ENDLESS):
                tell_of_long(longest)
                tell *= 2
            look = steps + min(tell, ENDLESS) - longest
    returns, lengths = table[:, :quota].flatten(1)
    return returns, lengths


def tell_of_long(steps: int) -> None:
    """Raises UserError where an episode of so many is taken for one without an end."""
    limit = "of Gymnasium's: +env.options.max_episode_steps=10000"
    if steps >= ENDLESS:
        raise UserError(f"an episode has lasted {steps:,} steps, and its environment has no time limit; give it one, "
                        f"{limit}")  # fmt: skip
    words = f"an episode has lasted {steps:,} steps and goes on; without a time limit ({limit})"
    print(f"evaluation: {words} it is given up after {ENDLESS:,}", file=sys.stderr)


class Episodes:
    """Mean return and length [steps] of the episodes that ended since the last `pop`, and mean return of the last 100.

    The last is how Machado et al. (2018) judge an agent: by how it fares while it learns. With `seeds` = (S,) these are
    the episodes of S learners side by side, each with so many envs; of several ranks those of all, and the last 100 of
    each.
    """

    def __init__(self, num_envs: int, device: torch.device, seeds: tuple[int, ...] = ()):
        self._zeros = torch.zeros(*seeds, num_envs, device=device)
        self._sums = torch.zeros(3, *seeds, device=device)  # episodes, returns, lengths
        self._latest = torch.zeros(*seeds, 101, device=device)  # a ring of returns; the last takes what did not end
        self._count = torch.zeros(seeds, dtype=torch.int64, device=device)  # of all episodes
        self.reset()

    def reset(self) -> None:
        self._return, self._length = self._zeros.clone(), self._zeros.clone()

    def add(self, reward: Tensor, last: Tensor) -> None:
        """Both [N], or [S, N], of one step of all envs."""
        self._return += reward
        self._length += 1
        place = torch.where(last, (self._count.unsqueeze(-1) + last.cumsum(-1) - 1) % 100, 100)
        self._latest.scatter_(-1, place, self._return)
        self._count += last.sum(-1)
        last = last.float()
        self._sums += torch.stack([last, last * self._return, last * self._length]).sum(-1)
        self._return *= 1 - last
        self._length *= 1 - last

    def pop(self) -> Metrics:
        return self.pops()[0]

    def pops(self) -> list[Metrics]:
        """Of each seed."""
        sums = distributed.total(self._sums)
        last_100 = distributed.total(self._latest[..., :100].sum(-1)) / distributed.total(self._count.clamp(max=100))
        table = torch.stack([*sums.double(), last_100.double()]).view(4, -1).T.tolist()
        self._sums.zero_()
        return [
            {"episode/return": returns / count, "episode/length": lengths / count, "episode/last_100": mean}
            if count else {} for count, returns, lengths, mean in table
        ]  # fmt: skip

    def state_dict(self) -> dict:
        return {"return": self._return, "length": self._length, "sums": self._sums, "latest": self._latest,
                "count": self._count}  # fmt: skip

    def load_state_dict(self, state: dict) -> None:
        if len(state["return"]) != len(self._zeros):
            raise ValueError(f"{len(state['return'])} envs, not {len(self._zeros)}")
        self._return, self._length, self._sums, self._latest, self._count = (
            state[k].to(self._zeros.device).clone() for k in ("return", "length", "sums", "latest", "count")
        )
