"""The loop of every agent of ours: act, step, update."""

from collections.abc import Callable

from torch import Tensor

from rl_lab.core import distributed
from rl_lab.core.errors import NotFinite, UserError
from rl_lab.core.meters import Every, Means
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged
from rl_lab.loops.bookkeeping import Episodes
from rl_lab.loops.judging import Judge
from rl_lab.types import Agent, Transition, VectorEnv


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
    if words := agent.announce(env.num_envs):
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
            means.add(agent.update(Transition.of(obs, action, answer)), step)
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
