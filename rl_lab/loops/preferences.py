"""The loop for agents that are not told a reward: act, step, learn what is wanted, update by that."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rl_lab.agents.exploration import certain
from rl_lab.agents.random import Random
from rl_lab.agents.reinforce import Reinforce
from rl_lab.core import distributed
from rl_lab.core.bookkeeping import Book
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Metrics
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Judged, Natural, Unit
from rl_lab.envs.abilities import Normalising, Tabular, shared
from rl_lab.envs.tabular.mdp import MDP
from rl_lab.looking import reward_pictures, shown
from rl_lab.loops.episodes import Episodes
from rl_lab.loops.judging import Judge
from rl_lab.loops.keeping import keep_pictures
from rl_lab.loops.training import check_loop, checked, made, resumed
from rl_lab.memory import Replay
from rl_lab.planning import Regret
from rl_lab.types import Agent, Step, Transition, VectorEnv
from rl_lab.wanted.preferences.late import Late
from rl_lab.wanted.preferences.learner import Preferences
from rl_lab.wanted.preferences.people import People, Recorded
from rl_lab.wanted.preferences.predictors import Ensemble
from rl_lab.wanted.preferences.teachers import Oracle
from rl_lab.wanted.tables import exact_plan, starc

LARGEST = 100_000  # state, action and successor: what the learned reward is planned for,
DENSE = 20_000_000  # and state, action and state, as matrices hold them


def train(
    env: VectorEnv,
    agent: Callable[..., Agent],
    teacher: Oracle | People | Recorded,
    run: Run,
    *,
    eval_env: VectorEnv,
    predictor: Callable[..., Ensemble],
    labels: Count,  # in all
    first: Unit,  # share of them that are asked for before step 0, of random play
    kept: Count,  # the newest of them that are learned from
    clip: Count,  # steps at most
    hidden_ends: bool,  # whether nobody is told of ends, and episodes follow one another
    end_reward: float,  # what an end is worth to an oracle where it is hidden
    recent: Count,  # steps of all envs out of which clips are drawn
    select: Literal["random", "disagreement"],
    candidates: Count,  # pairs for each that is asked about, by disagreement
    total_steps: Count,  # one step is one action in one env
    eval_every: Count | None,  # steps; None: only after the last one
    eval_episodes: Judged,
    eval_drawn: Natural,  # episodes more, of actions drawn from the policy
    log_every: Count | None,  # steps; None: 200 rows a run
    stop_at: float | None,  # the mean true return of the last 20 episodes at which training ends
) -> Agent:
    """As `training.train`, except for what the agent learns from: the true reward reaches only the teacher and the
    rows.

    Raises UserError.
    """
    check_loop(agent, "train", "preferences")
    check(env, labels, first, None if hidden_ends else clip)
    if isinstance(teacher, People):
        shown.painter(env)  # what can be asked can be shown
    learner = checked(made(agent, env.spec, device=run.device, seed=run.stream("agent")))
    if hidden_ends and isinstance(learner, Reinforce):
        raise UserError("loop.hidden_ends=true joins episodes, and REINFORCE learns at the end of each; choose another "
                        "agent, or loop.hidden_ends=false")  # fmt: skip
    if hidden_ends and env.spec.frame_stack > 1 and isinstance(getattr(learner, "replay", None), Replay):
        raise UserError(f"loop.hidden_ends=true joins episodes, and {type(learner).__name__}'s replay tells stacks of "
                        "frames apart by their ends; choose agent=a2c or ppo, or loop.hidden_ends=false")  # fmt: skip
    if not isinstance(teacher, Oracle):
        teacher.sit(run)
    model = (Preferences if isinstance(teacher, Oracle) else Late)(
        predictor(env.spec, run.device, run.stream("predictor")), teacher, env.spec, env.num_envs, run.device,
        run.stream("preferences"), total_steps=total_steps, labels=labels, first=first, kept=kept, clip=clip,
        recent=recent, select=select, candidates=candidates,
    )  # fmt: skip
    judge = Judge(eval_env, eval_episodes, run.stream("eval"), run.say, eval_drawn)
    episodes = Episodes(env.num_envs, env.device)
    book = Book(
        run,
        {"agent": learner, "env": env, "preferences": model, **shared(env, eval_env)},
        lambda: judge(learner) | (believed(model, env, judge.regret) if not hidden_ends else {}),
        total=total_steps,
        eval_every=eval_every,
        log_every=log_every,
        episodes=episodes,
        stop_at=stop_at,
    )
    truly = partial(continued, worth=end_reward) if hidden_ends else told
    understood: Metrics = {}
    obs = resumed(env, book.step, episodes, run) if book.step else env.reset(run.stream("env"))
    if not env.state_dict():
        model.tape.cut()
    if words := learner.announce(env.num_envs):
        run.say(words)
    for _ in book.steps(env.num_envs, learner):
        if not model.begun:
            understood = watch_random(env, model, run, truly)
            model.tape.cut()
            obs = env.reset(run.stream("env"))
        action = learner.act(obs)
        step = env.step(action)
        transition = truly(obs, action, step)
        understood |= model.update(transition)
        book.add(understood | learner.update(model.rewarded(transition)), step.reward, step.last)
        obs, understood = step.obs, {}
    if not hidden_ends:
        draw(run, model, env)
    return learner


def check(env: VectorEnv, labels: int, first: float, clip: int | None) -> None:
    """Raises UserError where there is nothing to ask about. `clip` is that of clips which ends cut short."""
    if distributed.size() > 1:
        raise UserError("loop=preferences asks one teacher in one process; start it without torchrun")
    if isinstance(env, Normalising) and env.statistics.returns:
        raise UserError("env.normalise_reward is of the game's own reward, which loop=preferences tells no agent; "
                        "leave it out")  # fmt: skip
    if round(first * labels) < 1:
        raise UserError(
            f"loop.labels={labels} with loop.first={first:g} asks nothing before training; raise one of them"
        )
    if env.time_limit and clip and clip > env.time_limit:
        raise UserError(f"loop.clip={clip} is longer than an episode, which has {env.time_limit} steps at most; "
                        "choose a shorter clip")  # fmt: skip


def told(obs: Tensor, action: Tensor, step: Step) -> Transition:
    """What `action` [N] led to at obs [N, ...], with the game's own reward, by which the teacher judges."""
    return Transition.of(obs, action, step._replace(signal=None))


def continued(obs: Tensor, action: Tensor, step: Step, worth: float) -> Transition:
    """The same without ends: the next episode follows on, and the teacher is paid `worth` for the end (section 2.1:
    that an episode ends may give away what is wanted).
    """
    reward = step.reward + worth * (step.last & (step.discount == 0))
    never, always = torch.zeros_like(step.last), torch.ones_like(step.discount)
    return Transition(obs, action, reward, always, never, step.obs, step.duration)


def watch_random(env: VectorEnv, model: Preferences, run: Run, truly: Callable[..., Transition] = told) -> Metrics:
    """Asks the first questions, about random play: as many steps as the tape holds."""
    actor = Random(env.spec, env.device, run.stream("random"))
    obs = env.reset(run.stream("random/env"))
    for _ in range(model.tape.length):
        action = actor.act(obs)
        step = env.step(action)
        model.tape.add(truly(obs, action, step))
        obs = step.obs
    return model.ask(model.first)


def learned_world(model: Preferences, env: VectorEnv) -> MDP | None:
    """The world if it paid the learned reward; None where it is not known, or too large."""
    if not isinstance(env, Tabular):
        return None
    mdp = env.mdp.to("cpu")
    shape = mdp.next_state.shape
    if shape.numel() > LARGEST or shape[0] ** 2 * shape[1] > DENSE:
        return None
    sights = env.all_observations()
    state = torch.arange(shape[0])[:, None, None].expand(shape).flatten()
    action = torch.arange(shape[1])[:, None].expand(shape).flatten()
    fill = torch.zeros(len(state), device=env.device)
    t = Transition(
        sights[state], action.to(env.device), fill, fill, fill.bool(), sights[mdp.next_state.flatten()], fill
    )
    reward = model.ensemble.rewards(t).double().cpu().view(shape)
    return mdp._replace(reward=reward.masked_fill(mdp.terminal[:, None, None], 0.0))


def believed(model: Preferences, env: VectorEnv, regret: Regret | None) -> Metrics:
    """The true regret of the exact plan for the learned reward, and how far apart the two rewards are."""
    world = learned_world(model, env)
    if world is None or regret is None or not isinstance(env, Tabular):
        return {}
    return {"wanted/plan_regret": regret(exact_plan(world).policy), "wanted/starc": starc(world, env.mdp.to("cpu"))}


def draw(run: Run, model: Preferences, env: VectorEnv) -> None:
    """Draws the learned reward beside the true one, where the world is a map."""
    world = learned_world(model, env)
    if world is None or world.layout is None or not isinstance(env, Tabular):
        return
    true, policy = env.mdp.to("cpu"), certain(exact_plan(world).policy, len(world.actions))
    pictures = reward_pictures.inferred(true, world, torch.zeros_like(true.start), policy)
    keep_pictures(run, "wanted", {"wanted": pictures["wanted"]}, run.step)
