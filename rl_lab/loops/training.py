"""The loop for all of our agents: act, step, update."""

import inspect
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from rl_lab.core import calls, checkpoint, distributed, graphs, imports
from rl_lab.core.bookkeeping import Book
from rl_lab.core.errors import UserError, counted
from rl_lab.core.learner import Learner
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Natural
from rl_lab.envs.abilities import Replaying, shared
from rl_lab.loops.episodes import Episodes
from rl_lab.loops.judging import Judge
from rl_lab.networks.torsos import standardises
from rl_lab.types import Agent, Spec, Transition, VectorEnv

OWN, INHERITED = ("act", "update", "view"), ("announce", "settled", "state_dict", "load_state_dict")


def train(
    env: VectorEnv,
    agent: Callable[..., Agent],
    run: Run,
    *,
    eval_env: VectorEnv,
    total_steps: Count,  # one step is one action in one env
    eval_every: Count | None,  # steps; None: only after the last one
    eval_episodes: Judged,
    eval_drawn: Natural,  # episodes more, of actions drawn from the policy
    log_every: Count | None,  # steps; None: 200 rows a run
    stop_at: float | None,  # the mean return of the last 20 episodes at which training ends
) -> Agent:
    """Act, step, update; the book keeps rows, evaluations and checkpoints.

    Under torchrun each process has `env.num_envs` environments of its own, and the steps of all of them count. They
    learn together; the first process evaluates, while the others wait for its next gradient.
    """
    check_loop(agent, "train")
    learner = checked(made(agent, env.spec, device=run.device, seed=run.stream("agent")))
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say, eval_drawn)
    obs, episodes = env.reset(run.own_stream("env")), Episodes(env.num_envs, env.device)
    book = Book(
        run,
        {"agent": learner, "env": env, **shared(env, eval_env)},
        partial(judge, learner),
        total=total_steps,
        eval_every=eval_every,
        log_every=log_every,
        episodes=episodes,
        stop_at=stop_at,
    )
    if book.step:
        obs = resumed(env, book.step, episodes, run)
    if words := learner.announce(env.num_envs):
        run.say(words)
    if graphs.chosen() and not getattr(learner, "captures", False):
        run.say(f"compile=graphs: {type(learner).__name__} has nothing that is captured")
    for _ in book.steps(env.num_envs * distributed.size(), learner):
        action = learner.act(obs)
        step = env.step(action)
        book.add(learner.update(Transition.of(obs, action, step)), step.reward, step.last)
        obs = step.obs
    return learner


def made(agent: Callable[..., Agent], spec: Spec, **given: Any) -> Agent:
    """Builds the agent. Raises UserError where its constructor takes other arguments."""
    try:
        return agent(spec, **given)
    except TypeError as error:
        last = [*traceback.walk_tb(error.__traceback__)][-1][0].f_globals["__name__"]
        if last != __name__ and not last.startswith("hydra."):  # of its own code
            raise
        kind = calls.behind(agent)
        raise UserError(f"{kind.__name__} is no agent: {error}; its constructor is "
                        "__init__(self, spec, device, seed, *, ...), the settings by name") from error  # fmt: skip


def checked(learner: Agent) -> Agent:
    """Raises UserError where it lacks a method of an agent, would see by statistics that it never takes, or saves what
    could not be read back.
    """
    name = type(learner).__name__
    missing = [method for method in OWN if not callable(getattr(learner, method, None))]
    if inherited := [member for member in INHERITED if not hasattr(learner, member)]:
        also = f"; and it lacks {', '.join(missing)}" if missing else ""
        raise UserError(f"{name} is no agent: derive it from rl_lab.core.learner.Learner, which has "
                        f"{', '.join(inherited)}{also}")  # fmt: skip
    if missing:
        raise UserError(f"{name} is no agent: it lacks {', '.join(missing)}; see Agent in rl_lab/types.py")
    if not {"greedy", "kwargs"} & {*inspect.signature(learner.act).parameters}:
        raise UserError(f"{name} is no agent: evaluations call act(obs, greedy=True), and its act takes no greedy")
    check_statistics(learner)
    if isinstance(learner, Learner):
        _check_saved(learner, name)
    return learner


def check_statistics(learner: Any) -> None:
    """Raises UserError where a network of its own, or of its parts, sees by statistics that it never takes."""
    parts = [*vars(learner).values()]
    ours = [part for part in parts if type(part).__module__.startswith("rl_lab.") and hasattr(part, "__dict__")]
    parts += [x for part in ours for x in vars(part).values()]
    networks = [part for part in parts if isinstance(part, nn.Module)]
    if any(map(standardises, networks)) and not getattr(learner, "gather_steps", 0):
        raise UserError(f"{type(learner).__name__} gathers no statistics of frames, by which its network standardises "
                        "them; leave out standardise=true")  # fmt: skip


def _check_saved(learner: Learner, name: str) -> None:
    if not learner.saved:
        raise UserError(f"{name} would save nothing: name the attributes of its checkpoint in `saved`")
    if unknown := [attribute for attribute in learner.saved if not hasattr(learner, attribute)]:
        raise UserError(f"{name}.saved names {', '.join(unknown)}, and it has no such attribute")
    if type(learner).__module__.partition(".")[0] not in imports.OURS:
        for attribute, state in learner.state_dict(without=learner.memory).items():
            if kind := checkpoint.foreign(state):
                raise UserError(f"{name}.{attribute} holds a {kind}, and a checkpoint holds tensors, numbers, texts, "
                                "and lists, tuples and dicts of them; keep it as a tensor")  # fmt: skip


def resumed(env: VectorEnv, step: int, episodes: Episodes, run: Run) -> Tensor:
    """The observations [N, ...] to continue from: those of the restored state, or of new episodes."""
    if taken_up([env], run):
        return env.observe()
    episodes.reset()
    return env.reset(run.own_stream(f"env/{step}"))


def taken_up(envs: Sequence[VectorEnv], run: Run) -> bool:
    """Whether the envs stand where the checkpoint left them; says so where that took time, or failed."""
    if not all(env.state_dict() for env in envs):
        run.say("this environment's state cannot be saved: its episodes start anew")
        return False
    if played := [env.replayed for env in envs if isinstance(env, Replaying)]:
        steps, seconds = map(sum, zip(*played, strict=True))
        run.say(f"games taken up where they stood ({counted(steps, 'steps')} replayed in {seconds:.1f} s)")
    return True


def check_loop(agent: Callable[..., Any], loop: str, typed: str = "") -> None:
    """Raises UserError where the agent is for another loop than `loop`, or than the one of its kind that was typed."""
    kind = calls.behind(agent)
    foreign = {"stable_baselines3": "sb3", "rl_lab.agents.fitted_q": "fit_q"}
    own = next((name for home, name in foreign.items() if f"{kind.__module__}.".startswith(f"{home}.")), "train")
    if isinstance(kind, type) and own != loop:
        raise UserError(f"loop={typed or loop} is not for {kind.__module__.partition('.')[0]}'s {kind.__name__}; "
                        f"choose loop={own}, or another agent")  # fmt: skip


def check_alone(agent: Callable[..., Any], own: type, loop: str, theirs: str) -> None:
    """Raises UserError under torchrun, or where the agent is not of the class that this loop is for; `theirs` is what
    to choose in place of Stable-Baselines3's.
    """
    if distributed.size() > 1:
        raise UserError(f"loop={loop} learns in one process; start it without torchrun, or choose loop=train")
    if (kind := calls.behind(agent)) is not own:
        home = kind.__module__.partition(".")[0]
        raise UserError(f"loop={loop} is for rl_lab's {own.__name__}, and this agent is {home}'s {kind.__name__}; "
                        f"choose {theirs if home == 'stable_baselines3' else 'loop=train'}")  # fmt: skip
