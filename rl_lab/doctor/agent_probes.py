"""What an agent learns where the answer is known: values, discounts, both kinds of end, seams, choices."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rl_lab.core.errors import kind
from rl_lab.doctor import problems
from rl_lab.doctor.courses import SEAMS, Candidate, Course
from rl_lab.doctor.problems import Problem
from rl_lab.doctor.report import Finding, failed, not_applicable, passed
from rl_lab.types import View

CLOSE = 0.1  # to the exact value; what a fault changes is at least twice as much

# -- what an agent is


def interface(candidate: Candidate) -> Finding:
    """`act` gives an action for each observation, and shows by `view` and `probabilities` what it goes by."""
    course = Course(candidate, problems.SHUFFLED)
    obs, copies = course.env.reset(0), problems.COPIES
    kept = obs.clone()
    for action in (torch.as_tensor(course.agent.act(obs)), torch.as_tensor(course.greedy(obs))):
        if action.shape != (copies,) or action.is_floating_point() or action.is_complex():
            shown = f"{tuple(action.shape)} {action.dtype}"
            return failed(f"act gives {shown} for {copies} observations: steps need as many whole numbers")
        if not ((action >= 0) & (action < 2)).all():
            return failed(f"act gives {sorted(set(action.tolist()))}, and there are actions 0 and 1")
    if not torch.equal(obs, kept):
        return failed("act changes the observations that it is given: what is learned from is not what was seen")
    if not course.learns:
        return passed("act gives an action for each observation; it has no update, so it learns nothing")
    course.go_on(16)
    words = ["act gives an action for each observation"]
    if callable(getattr(course.agent, "probabilities", None)):
        chances = course.agent.probabilities(obs)
        if chances.shape != (copies, 2) or not torch.allclose(chances.sum(-1), torch.ones_like(chances[:, 0])):
            return failed("probabilities are no distribution over the actions: the exact regret would be wrong")
        words.append("probabilities sum to 1")
    if course.has_view:
        if not isinstance(shown := course.shown(), View):
            return failed(f"view gives {kind(shown)}, and must give rl_lab.types.View(bars, value, kind)")
        view = course.view()
        if view.bars.shape != (len(course.env.sights), 2) or view.value.shape != (len(course.env.sights),):
            return failed(f"view gives bars {tuple(view.bars.shape)} and values {tuple(view.value.shape)} for "
                          f"{len(course.env.sights)} observations of 2 actions")  # fmt: skip
        words.append(f"view shows {view.kind}")
    return passed(", ".join(words))


# -- values


def constant_reward(candidate: Candidate) -> Finding:
    """Each episode is one step, which pays 1."""
    return valued(candidate, problems.CONSTANT, "a last step is lost, or a reward has another sign or size")


def two_observations(candidate: Candidate) -> Finding:
    """What one sees pays 1, what the other sees -1."""
    return valued(candidate, problems.TWO, "observations are mixed up, or one is not seen")


def reward_later(candidate: Candidate) -> Finding:
    """The second of two steps pays 1."""
    return valued(candidate, problems.LATER, "a value is not built on the next one: is a target network never updated?")


def discounting(candidate: Candidate) -> Finding:
    """Three steps pay 1, 0 and -1."""
    return valued(candidate, problems.CHAIN, "gamma is applied too often or not often enough")


def termination(candidate: Candidate) -> Finding:
    """One step pays 1, and its end looks like its start: there is no future nevertheless."""
    return valued(candidate, problems.TERMINATED, "a future is counted beyond a terminated end")


def truncation(candidate: Candidate) -> Finding:
    """Each step pays the same and ends the episode by a time limit: the future counts, though it is cut off."""
    return valued(candidate, problems.TRUNCATED, "a truncated end is taken for a terminated one", ends=True)


def rollout_seams(candidate: Candidate) -> Finding:
    """An endless circle of three steps, of which one pays, learned from in pieces of two or three steps."""
    words = "where a rollout or an n-step return is cut, another state's value or power of gamma stands for the rest"
    return valued(candidate, problems.CIRCLE, words, changes=SEAMS)


def episode_seams(candidate: Candidate) -> Finding:
    """Episodes of two kinds follow each other, each cut off after a step: one pays, one costs."""
    words = "what the next episode brings is counted in the one before"
    return valued(candidate, problems.KINDS, words, changes=SEAMS, ends=True)


def valued(candidate: Candidate, problem: Problem, fault: str, changes: Mapping[str, Any] = {}, ends: bool = False
           ) -> Finding:  # fmt: skip
    """`ends`: the values of an agent that counts the future beyond a truncated end."""
    course = Course(candidate, problem, changes)
    if lacking := has_no_values(course, ends):
        return not_applicable(lacking)
    assert course.gamma is not None
    exact = problem.action_values(course.gamma).max(-1).values

    return compared(course, lambda view: (view.value, exact), "values", fault)


def has_no_values(course: Course, ends: bool = False) -> str:
    """Why no values can be compared, in words; '' where they can."""
    if not course.learns:
        return "it has no update, and learns nothing"
    if not course.has_view:
        return "it has no view, so its values are not known"
    if course.gamma is None:
        return "it has no attribute gamma, so its values are not known"
    if not getattr(getattr(course.learner, "baseline", None), "valued", True):
        return "its baseline is not the value of a state"
    if ends and getattr(course.learner, "bootstrap", True) is False:
        return "agent.bootstrap=false: a time limit ends the return, as it is set"
    return ""


def compared(course: Course, of: Callable[[View], tuple[Tensor, Tensor]], what: str, fault: str) -> Finding:
    """Passes where values are right after some steps and after twice as many; fails where they are wrong to the end."""
    close, steps, found, exact = 0, 0, torch.zeros(1), torch.zeros(1)
    for steps, view in course.trained():
        assert view is not None
        if steps > 1_000 and getattr(course.learner, "settled", True) is False and course.is_idle(view):
            return not_applicable("it learns from whole episodes alone, and here none ends")
        found, exact = of(view)
        close = close + 1 if float((found - exact).abs().max()) < CLOSE else 0
        if close == 2:
            return passed(f"{what} {listed(found)} after {steps * problems.COPIES:,} steps, exactly {listed(exact)}")
        if not close and course.stops:
            break
    seen = f"{what} {listed(found)} after {steps * problems.COPIES:,} steps{out_of_time(course)}"
    return failed(f"{seen}, exactly {listed(exact)}: {fault}")


def out_of_time(course: Course) -> str:
    return " (no time for more, which a larger seconds=... gives)" if course.stops else ""


def listed(x: Tensor) -> str:
    return " ".join(f"{v:.2f}" for v in x.flatten().tolist())


# -- choices


def action_decides(candidate: Candidate) -> Finding:
    """One step; what one sees decides which action pays 1 and which -1."""
    return chosen(candidate, problems.OPPOSITE, (0, 1), "the worse action is taken for the better, or all are alike")


def patience(candidate: Candidate) -> Finding:
    """One action pays 0.2 now, the other 1 after one more step."""
    return chosen(candidate, problems.WORTH_WAITING, (1,), "an action is not credited with what comes after it")


def observation_suffices(candidate: Candidate) -> Finding:
    """Observations follow each other at random, and each says which action pays: earlier ones say nothing."""
    return chosen(candidate, problems.SHUFFLED, (0, 1), "actions follow from something else than what is seen now")


def chosen(candidate: Candidate, problem: Problem, best: tuple[int, ...], fault: str) -> Finding:
    """The greedy actions in the first states, asked for in several orders."""
    course = Course(candidate, problem)
    if not course.learns:
        return not_applicable("it has no update, and learns nothing")
    right, steps, share = 0, 0, 0.0
    for steps, _ in course.trained():
        share = course.share(best)
        right = right + 1 if share > 0.95 else 0
        if right == 2:
            return passed(f"{share:.0%} of greedy actions are the best after {steps * problems.COPIES:,} steps")
        if not right and course.stops:
            break
    seen = f"{share:.0%} of greedy actions are the best after {steps * problems.COPIES:,} steps{out_of_time(course)}"
    return failed(f"{seen}: {fault}")


def bandit(candidate: Candidate) -> Finding:
    """One action pays 0.5 three times of four and else -0.5, the other always 0."""
    course, exact = Course(candidate, problems.BANDIT), problems.BANDIT.action_values(0.0)
    if lacking := has_no_values(course):
        return not_applicable(lacking)

    def found(view: View) -> tuple[Tensor, Tensor]:
        if view.kind == "action values":
            return view.bars, exact
        return view.value, (view.bars * exact).sum(-1)  # of the policy as it is

    return compared(course, found, "mean rewards", "the mean of a reward is not learned, but its best or its last")
