"""`rl-lab doctor agent=...`: sound agents pass every probe; of each fault the mutant fails the probe that is for it."""

import re

import pytest
import torch

from rl_lab.__main__ import COMMANDS
from rl_lab.agents.a2c import A2C
from rl_lab.agents.dqn import DQN
from rl_lab.agents.q_learning import QLearning
from rl_lab.core.launching import building, cli
from rl_lab.doctor import agent_probes, courses, problems, report
from rl_lab.doctor.courses import Candidate

QUICK = {  # settings with which a sound agent is right within 512 steps of all copies
    "q_learning": [],
    "a2c": ["agent.optimizer.lr=0.03", "agent.rollout_length=2", "agent.max_grad_norm=10"],
    "dqn": ["agent.optimizer.lr=0.02", "agent.batch_size=32", "agent.target_update_period=5", "agent.replay_ratio=8",
            "agent.learning_starts=32"],
}  # fmt: skip
ALL = [
    "q_learning",
    "sarsa",
    "dqn",
    "dqn_mlp",
    "a2c",
    "a2c_mlp",
    "ppo",
    "ppo_mlp",
    "pqn_mlp",
    "vpn_mlp",
    "reinforce",
    "sb3_dqn_mlp",
    "sb3_a2c",
    "sb3_ppo",
]
MUTANTS = []


def mutant(probe, words, agent="q_learning"):
    """The class fails this probe, which the agent that it is made of passes."""

    def add(kind):
        MUTANTS.append(pytest.param(kind, probe, words, agent, id=kind.__name__))
        return kind

    return add


def learns_from(**changes):
    """A method that updates with the transition's fields as the functions make them."""

    def update(self, transition):
        made = {name: change(transition) for name, change in changes.items()}
        return super(type(self), self).update(transition._replace(**made))

    return update


@mutant("interface", "act gives (16,) torch.float32 for 16 observations: ")
class GivesFloats(QLearning):
    def act(self, obs, greedy=False):
        return super().act(obs, greedy).float()


@mutant("interface", "act changes the observations that it is given: ")
class ChangesObservations(QLearning):
    def act(self, obs, greedy=False):
        action = super().act(obs, greedy)
        obs.mul_(2)
        return action


@mutant("constant_reward", "values -1.00 after ")
class SwapsTheSign(QLearning):
    update = learns_from(reward=lambda t: -t.reward)


@mutant("constant_reward", "values 0.00 after ")
class DropsLastSteps(QLearning):
    def update(self, transition):
        return {} if transition.last.any() else super().update(transition)


@mutant("two_observations", "values ")
class SeesNothing(QLearning):
    update = learns_from(obs=lambda t: torch.ones_like(t.obs), next_obs=lambda t: torch.ones_like(t.obs))

    def view(self, obs):
        return super().view(torch.ones_like(obs))


@mutant("reward_later", "values 0.00 1.00 after ", agent="dqn")
class NeverUpdatesItsTarget(DQN):
    def follow(self): ...


@mutant("discounting", "values 0.94 -0.25 -1.00 after ")
class DiscountsTwice(QLearning):
    update = learns_from(duration=lambda t: t.duration + 1)


@mutant("discounting", "values 0.00 -1.00 -1.00 after ")
class DoesNotDiscount(QLearning):
    update = learns_from(duration=lambda t: t.duration - 1)


@mutant("termination", "values 2.00 after ")
class LooksBeyondTheEnd(QLearning):
    update = learns_from(discount=lambda t: torch.ones_like(t.discount))


@mutant("truncation", "values 0.50 after ")
class TakesALimitForAnEnd(QLearning):
    update = learns_from(discount=lambda t: t.discount * ~t.last)


@mutant("rollout_seams", "values ", agent="a2c")
class BootstrapsFromWhereItStood(A2C):
    def learn(self, rollout):
        kept, final = rollout[-1]
        return super().learn([*rollout[:-1], (kept, final._replace(next_obs=final.obs))])


@mutant("rollout_seams", "values ", agent="dqn")
class DiscountsSeveralStepsOnce(DQN):
    def learn(self, batch, weight=1.0):
        return super().learn(batch._replace(discount=(batch.discount > 0).float()), weight)


@mutant("episode_seams", "values -0.", agent="a2c")
class GoesOnIntoTheNextEpisode(A2C):
    update = learns_from(last=lambda t: torch.zeros_like(t.last))


@mutant("action_decides", "0% of greedy actions are the best after ")
class TakesTheWorst(QLearning):
    def act(self, obs, greedy=False):
        return self.q(obs).argmin(-1) if greedy else super().act(obs)


@mutant("patience", "0% of greedy actions are the best after ")
class IsShortSighted(QLearning):
    update = learns_from(discount=lambda t: torch.zeros_like(t.discount))


@mutant("bandit", "mean rewards 0.50 0.00 after ")
class ExpectsTheBest(QLearning):
    update = learns_from(reward=lambda t: t.reward.abs())


@mutant("observation_suffices", "")
class ActsOnTheObservationBefore(QLearning):
    before = None

    def act(self, obs, greedy=False):
        now, self.before = self.before if self.before is not None else obs, obs
        return super().act(now, greedy)


def candidate(agent, kind=None, seconds=30):
    (node,), seed, device = building.parts("rl", [f"agent={agent}", *QUICK.get(agent, []), "device=cpu"], "agent")
    node |= {"_target_": f"{__name__}.{kind.__name__}"} if kind else {}
    typed = {setting.partition("=")[0].removeprefix("agent.") for setting in QUICK.get(agent, [])}
    return Candidate(node, typed - {"rollout_length", "batch_size"}, seed, device, seconds)


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(courses, "MOST", 512)


@pytest.mark.parametrize(("kind", "probe", "words", "agent"), MUTANTS)
def test_a_mutant_fails_the_probe_for_its_fault(brief, kind, probe, words, agent):
    probe = getattr(agent_probes, probe)
    found = report.probed(probe, candidate(agent, kind))
    assert found.outcome == report.FAIL and found.words.startswith(words), found
    if agent != "q_learning":  # which passes them all, below
        found = report.probed(probe, candidate(agent))
        assert found.outcome == report.PASS, found


@pytest.fixture
def examine(capsys):
    """Runs the doctor; returns the exit code, each probe's outcome and words, and what stands in the error stream."""

    def run(*settings):
        code = cli.main("rl-lab", "rl", COMMANDS, ["doctor", *settings, "device=cpu"])
        out, err = capsys.readouterr()
        found = re.findall(r"^  (pass|FAIL|-)\s+(\w+(?: \w+)?)  +(.*)$", out, re.MULTILINE)
        return code, {name: outcome for outcome, name, _ in found}, {name: words for _, name, words in found}, err

    return run


def test_a_sound_agent_passes_every_probe(examine):
    code, outcomes, found, _ = examine("agent=q_learning")
    assert code == 0 and len(outcomes) == 13 and set(outcomes.values()) == {"pass"}
    assert re.fullmatch(r"values 0.75 -0.50 -1.00 after [\d,]+ steps, exactly 0.75 -0.50 -1.00", found["discounting"])


@pytest.mark.slow
@pytest.mark.parametrize("agent", ALL)
def test_every_agent_passes(examine, agent):
    code, outcomes, found, _ = examine(f"agent={agent}", "seconds=1560")
    assert code == 0, found
    whole_episodes = {"truncation", "rollout seams", "episode seams"} if agent == "reinforce" else set()
    assert {name for name, outcome in outcomes.items() if outcome == "-"} == whole_episodes


def test_the_values_of_the_problems():
    values = lambda problem, gamma: problem.action_values(gamma).max(-1).values.tolist()
    assert values(problems.CONSTANT, 0.5) == values(problems.TERMINATED, 0.5) == [1.0]
    assert values(problems.LATER, 0.5) == [0.5, 1.0]
    assert values(problems.CHAIN, 0.9) == pytest.approx([1 - 0.81, -0.9, -1.0])
    assert values(problems.TRUNCATED, 0.5) == pytest.approx([1.0]) and values(problems.KINDS, 0.5) == pytest.approx(
        [-1.0, 1.0]
    )
    assert values(problems.CIRCLE, 0.5) == pytest.approx([8 / 7, 2 / 7, 4 / 7])
    assert problems.BANDIT.action_values(0.5).tolist() == [[0.25, 0.0]]
    assert problems.WORTH_WAITING.action_values(0.5)[0].tolist() == [pytest.approx(0.2), 0.5]
    assert problems.SHUFFLED.action_values(0.5).flatten().tolist() == pytest.approx([1.0, 0.0, 0.0, 1.0])


# -- one's own class

OWN = """
import torch

class Table:
    def __init__(self, spec, gamma=0.9, alpha=0.2):
        self.q, self.gamma, self.alpha = torch.zeros(*spec.obs_shape, spec.num_actions), gamma, alpha

    def act(self, obs, greedy=False):
        best = (obs @ self.q).argmax(-1)
        return best if greedy else torch.where(torch.rand(len(obs)) < 0.3, torch.randint(2, best.shape), best)

    def update(self, t):
        state, target = t.obs.argmax(-1), t.reward + self.gamma * t.discount * (t.next_obs @ self.q).max(-1).values
        for s, a, g in zip(state, t.action, target):
            self.q[s, a] += self.alpha * (g - self.q[s, a])

class Seen(Table):
    def view(self, obs):
        from rl_lab.types import View
        q = obs @ self.q
        return View(q, q.max(-1).values, "action values")

class Still:
    def act(self, obs):
        return torch.zeros(len(obs), dtype=torch.int64)

class Deaf:
    def update(self, transition): ...

class Needs(Table):
    def __init__(self, spec, layers): ...

class Falls(Table):
    def __init__(self):
        raise RuntimeError("no such file")

class Blind(Table):
    def view(self, obs):
        return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch, brief):
    (tmp_path / "my_agents.py").write_text(OWN)
    (tmp_path / "my_broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_ones_own_class_is_examined_as_far_as_it_goes(own, examine):
    code, outcomes, found, _ = examine("agent=my_agents:Seen", "agent.alpha=0.1")
    assert code == 0 and set(outcomes.values()) == {"pass"}, found
    _, outcomes, found, _ = examine("agent=my_agents:Table")
    assert found["constant reward"] == "it has no view, so its values are not known"
    assert outcomes["action decides"] == outcomes["patience"] == outcomes["observation suffices"] == "pass"
    code, outcomes, found, _ = examine("agent=my_agents:Blind")
    assert code == 1 and outcomes["interface"] == "FAIL" and outcomes["constant reward"] == "-"
    assert found["interface"] == "view gives int, and must give rl_lab.types.View(bars, value, kind)"
    code, outcomes, found, _ = examine("agent=my_agents:Still")
    assert code == 0 and found["action decides"] == "it has no update, and learns nothing"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["agent=my_agents:Deaf"], "agent=my_agents:Deaf: Deaf has no act(obs), which gives an action for each of N observations"),
        (["agent=my_agents:Tabel"], "agent=my_agents:Tabel: my_agents has no Tabel; did you mean Table?"),
        (["agent=my_broken:Q"], "agent=my_broken:Q: my_broken needs no_such_package; pip install no_such_package"),
        (["agent=my_agent:Q"], "agent=my_agent:Q: no module my_agent, neither installed nor in "),
        (["agent=my_agents:Table", "agent.alhpa=1"], "no setting 'agent.alhpa'; did you mean alpha?"),
        (["agent=my_agents:Needs"], "agent.layers is missing; give it a value: agent.layers=..."),
        (["agent=my_agents:Falls"], "the agent cannot be built (RuntimeError: no such file, "),
        (["agent=my_agents:Table:Seen"], "agent=my_agents:Table:Seen names no class; "),
        (["agent=dqn_cnn"], "agent.network=nature_cnn needs frames of at least 36 x 36, not observations (2,); choose agent/network=mlp or agent/network=linear"),
        (["agent=sb3_dqn_cnn"], "DQN cannot be built for observations (2,): You should use NatureCNN only with images"),
        (["agent=fitted_q_linear"], "this agent is fitted to recordings and acts in no world while it learns; choose another"),
        (["agent=dqn", "agent.gama=1"], "no setting 'agent.gama'; did you mean agent.gamma?"),
        (["agent=dqn", "seconds=no"], "seconds=no must be a number"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_line_and_exit_code_2(own, examine, settings, line):
    code, outcomes, _, err = examine(*settings)
    assert code == 2 and not outcomes and err.startswith(f"rl-lab: {line}") and err.count("\n") == 1
