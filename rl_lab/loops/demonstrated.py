"""The loop for learning from demonstrations in a known world: gather them, infer, plan, draw, play."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rl_lab.agents.exploration import certain
from rl_lab.agents.planned import Planned
from rl_lab.agents.tabled import Tabled
from rl_lab.core import calls
from rl_lab.core.errors import UserError, counted
from rl_lab.core.recording import Recording
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Place, Positive
from rl_lab.envs.abilities import Tabular
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.looking import reward_pictures
from rl_lab.loops.fitting import check_recorded
from rl_lab.loops.judging import Judge
from rl_lab.loops.keeping import keep_arrays, keep_pictures
from rl_lab.memory.episodes import play_episodes, quotas
from rl_lab.planning.soft import dynamics, soft_plan, visits
from rl_lab.types import VectorEnv
from rl_lab.wanted.demonstrations import Expert, Found, Walks, walks_of
from rl_lab.wanted.inverse import check_walks
from rl_lab.wanted.tables import below_one, exact_plan, paid, starc


def infer(
    env: VectorEnv,
    planner: Callable[[MDP, Expert], Found],
    run: Run,
    *,
    data: Place | None,  # a folder of rl-lab record or rl-lab play; None: the expert plays now
    expert: Literal["optimal", "soft"],
    temperature: Positive,  # alpha of the soft expert
    demonstrations: Count,  # episodes of the expert
    eval_episodes: Judged,
) -> Planned | Tabled:
    """Leaves inferred.npz and pictures, and an agent whose exact regret shows how much was understood."""
    name = calls.behind(planner).__name__
    if not isinstance(env, Tabular):
        raise UserError(f"{name} needs a world whose states are known, and env={run.names.get('env')} is none; "
                        "choose a gridworld, or another loop")  # fmt: skip
    run.anew("inferences", all((run.dir / made).is_file() for made in ("checkpoint.pt", "inferred.npz")))
    mdp, seed = env.mdp.to("cpu"), run.stream("demonstrations")
    judge = Judge(env, eval_episodes, run.stream("eval"), run.say)
    if judge.regret is None:
        raise UserError(f"{name} is judged by exact regret, which env={run.names.get('env')} does not have")
    play = partial(walks, env)
    if data:
        recording = Recording(data)
        episodes = list(recording.episodes())
        for episode in episodes:
            check_recorded(recording, torch.from_numpy(episode.obs), env.spec)
        found, policy = walks_of(episodes, env.states, env.device), None
    else:
        policy = certain(judge.regret.best.policy, len(mdp.actions))
        if expert == "soft":
            policy = soft_plan(paid(mdp), dynamics(mdp, float(mdp.gamma)), temperature).policy
        with run.at_once():
            found = play(policy, demonstrations, seed)
    check_walks(found, mdp)
    run.say(f"{counted(found.episodes, 'demonstrations')} of {counted(len(found.state), 'steps')}")
    with run.at_once():
        answer = planner(mdp, Expert(found, policy, play, seed + demonstrations))
    run.begin(1, "inferences")
    metrics: dict[str, Any] = {"wanted/demonstrations": found.episodes, **answer.metrics}
    agent: Planned | Tabled
    if answer.reward is None:
        assert answer.policy is not None, f"{name} found neither a reward nor a policy"
        agent = Tabled(answer.policy.to(env.device), env.states, env.device, run.stream("agent"))
    else:
        plan = exact_plan(answer.reward)
        agent = Planned(plan.q.to(env.device), plan.policy.to(env.device), env.states)
        metrics["wanted/starc"] = starc(answer.reward, mdp)
    with run.at_once():
        metrics |= judge(agent)
    run.log(metrics, 1, keep=True)
    run.save(1, {"agent": agent})
    _keep(run, mdp, found, answer, agent.probabilities(env.all_observations()).cpu())
    return agent


def walks(env: VectorEnv, policy: Tensor, episodes: int, seed: int) -> Walks:
    """This many episodes of a policy [S, A] in a known world."""
    assert isinstance(env, Tabular)
    actor = Tabled(policy.to(env.device), env.states, env.device, seed)
    played = play_episodes(env, actor.act, quotas(episodes, env.num_envs), seed % 2**31)
    return walks_of(played, env.states, env.device)


def _keep(run: Run, mdp: MDP, shown: Walks, answer: Found, policy: Tensor) -> None:
    """inferred.npz: both rewards [S, A]; how often each state was acted in [S], and would be, discounted; the policy
    [S, A].
    """
    world = dynamics(mdp, below_one(mdp, 0.95))
    arrays = {"policy": policy, "demonstrated": shown.counts(mdp).sum(-1).double() / shown.episodes,
              "visits": visits(world, policy), "true": paid(mdp)}  # fmt: skip
    if answer.reward is not None:
        arrays["reward"] = paid(answer.reward)
    keep_arrays(run, "inferred", arrays)
    if mdp.layout:
        keep_pictures(run, "wanted", reward_pictures.inferred(mdp, answer.reward, arrays["demonstrated"], policy), 1)
