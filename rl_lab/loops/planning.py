"""The loop of planners: sweep, draw the plan, then play its policy."""

from collections.abc import Callable, Iterator
from time import perf_counter

import torch
from torch import Tensor

from rl_lab.agents.planned import Planned
from rl_lab.core import calls
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Metrics
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged
from rl_lab.envs.abilities import Tabular
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.looking import plan_pictures
from rl_lab.loops.judging import Judge
from rl_lab.loops.keeping import keep_arrays, keep_pictures
from rl_lab.planning import Plan
from rl_lab.types import VectorEnv


def plan(
    env: VectorEnv,
    planner: Callable[[MDP], Iterator[Plan]],
    run: Run,
    *,
    eval_episodes: Judged,
    log_every: Count,  # sweeps
    film: bool,  # of the sweeps
) -> Plan:
    """Sweep until the planner is done; leave plan.npz, pictures and a film; then play its policy in the same env."""
    if not isinstance(env, Tabular):
        name = calls.behind(planner).__name__
        raise UserError(
            f"{name} plans with a known model, and env={run.names.get('env')} has none; "
            "choose a gridworld, or a learning agent"
        )
    layout, actions = env.mdp.layout, env.mdp.actions
    run.anew("sweeps", _is_whole(run, layout is not None, film), free={"loop.film"} if film else ())
    if run.folder.before:
        run.say("planning starts from the beginning, and finds the same plan")
    judge = Judge(env, eval_episodes, run.stream("eval"), run.say)
    run.begin(None, "sweeps")
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
    with run.at_once():
        row |= judge(player)
    run.log(row, sweep, keep=True)
    tensors = {"q": plan.q, "value": plan.value.masked_fill(env.mdp.terminal, 0.0), "policy": plan.policy}
    found = keep_arrays(run, "plan", tensors)
    run.save(sweep, {"agent": player})
    keep_pictures(run, "plan", plan_pictures.draw(layout, actions, **found), sweep)
    if film and sweeps.snapshots:
        with run.at_once():
            sweeps.write(run.path("videos/sweeps.mp4"))
        run.media("plan/sweeps", run.path("videos/sweeps.mp4"), sweep)
    return plan


def _is_whole(run: Run, drawn: bool, film: bool) -> bool:
    """Whether a planner's folder has every file; if one is missing, planning starts again."""
    names = ["checkpoint.pt", "plan.npz", "pictures/values.png", *["pictures/q.png"] * drawn]
    names += [f"videos/sweeps.{kind}" for kind in ("mp4", "gif") if film]
    return all((run.dir / name).is_file() and (run.dir / name).stat().st_size for name in names)


def progress(plan: Plan, policy: Tensor, seconds: float) -> Metrics:
    """What a sweep changed, the value of the start and its bounds, and the seconds planned so far."""
    value = plan.mdp.start @ plan.value
    row: Metrics = {
        "plan/residual": plan.residual,
        "plan/policy_changes": (plan.policy != policy).sum(),
        "plan/start_value": value,
        "plan/seconds": seconds,
    }
    if plan.low.isfinite() and plan.high.isfinite():
        row |= {"plan/start_low": value + plan.low, "plan/start_high": value + plan.high}
    return row
