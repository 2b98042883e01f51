"""`rl-lab doctor env=...`: environments with one fault each, and which probe names it."""

import re
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_lab.__main__ import COMMANDS
from rl_lab.commands.doctor import OF_ENV
from rl_lab.core.launching import building, cli
from rl_lab.doctor import cost_probes, env_probes, report
from rl_lab.doctor.worlds import World
from rl_lab.envs.tabular.stepper import MDPEnv

FAULTS = {}


class Walk(gymnasium.Env):
    """A walk on a line from near 0: it ends at 5 (terminated) or, by its limit, after 12 steps. No fault in it."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space, action_space = spaces.Box(-20, 20, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def seen(self):
        return np.array([self.place, self.speed], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.speed = self.np_random.uniform(-0.5, 0.5, 2)
        return self.seen(), {}

    def step(self, action):
        self.speed = (2 * action - 1) + self.np_random.uniform(-0.1, 0.1)
        self.place += self.speed
        return self.seen(), -1.0, bool(abs(self.place) > 3), False, {}

    def render(self):
        picture = np.zeros((20, 40, 3), np.uint8)
        picture[:, int(self.place * 3) % 40] = 255
        return picture


def fault(probe):
    """The class has one fault, which this probe names."""

    def add(kind):
        FAULTS[kind] = probe
        return kind

    return add


@fault("seeding")
class IgnoresSeeds(Walk):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None)


@fault("seeding")
class TakesSeed0ForNone(Walk):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed or None)


@fault("seeding")
class KnowsOneSeed(Walk):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None if seed is None else 7)


@fault("determinism")
class Remembers(Walk):
    """It becomes easier with each episode, whatever the seed."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return super().reset(seed=seed)

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + 0.01 * self.episodes, *rest


@fault("buffers")
class OneBuffer(Walk):
    def seen(self):
        if not hasattr(self, "buffer"):
            self.buffer = np.zeros(2, np.float32)
        self.buffer[:] = self.place, self.speed
        return self.buffer


@fault("spaces")
class BeyondItsBounds(Walk):
    observation_space = spaces.Box(-2, 2, (2,), np.float32)


@fault("spaces")
class AnotherType(Walk):
    """After the first observation."""

    def step(self, action):
        obs, *rest = super().step(action)
        return obs.astype(np.float64), *rest


@fault("rewards")
class PaysNan(Walk):
    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float("nan" if abs(self.place) > 2.5 else "0"), *rest


@fault("ends")
class BeginsByItself(Walk):
    """What it shows at an end is the next episode's first observation."""

    def step(self, action):
        obs, reward, over, *rest = super().step(action)
        return self.reset()[0] if over else obs, reward, over, *rest


@fault("time limit")
class TerminatesAtItsLimit(Walk):
    def reset(self, **how):
        self.steps = 0
        return super().reset(**how)

    def step(self, action):
        self.steps += 1
        obs, reward, _, *rest = super().step(action)
        return obs.clip(-20, 20), reward, self.steps == 12, *rest


@fault("memory")
class Keeps(Walk):
    kept = []

    def step(self, action):
        self.kept.append(np.ones(2_000))
        return super().step(action)


@fault("left behind")
class LeavesAProcess(Walk):
    started = []

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))


@fault("left behind")
class LeavesFiles(Walk):
    opened = []

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.opened.append(open(__file__))


@fault("pictures")
class OnePicture(Walk):
    def render(self):
        return np.zeros((20, 40, 3), np.uint8)


@pytest.fixture
def examine(monkeypatch, capsys):
    """Runs the doctor; returns the exit code and each probe's outcome and words."""

    def run(*settings):
        code = cli.main("rl-lab", "rl", COMMANDS, ["doctor", *settings, "device=cpu"])
        out, err = capsys.readouterr()
        found = dict(re.findall(r"^  (?:pass|FAIL|late|-)\s+(\w+(?: \w+)?)  +(.*)$", out, re.MULTILINE))
        failing = re.findall(r"^  FAIL (\w+(?: \w+)?)  ", out, re.MULTILINE)
        return code, failing, found, err

    return run


@pytest.fixture
def cleared():
    yield
    for process in LeavesAProcess.started:
        process.kill()
        process.wait()
    for file in LeavesFiles.opened:
        file.close()
    for kept in (LeavesAProcess.started, LeavesFiles.opened, Keeps.kept):
        kept.clear()


@pytest.fixture
def register(monkeypatch):
    def add(kind, **settings):
        spec = gymnasium.envs.registration.EnvSpec("Doctored-v0", kind, max_episode_steps=12, **settings)
        monkeypatch.setitem(gymnasium.registry, "Doctored-v0", spec)
        return "env.id=Doctored-v0"

    return add


def test_a_sound_environment_passes_every_probe(register, examine):
    code, failing, found, _ = examine("env=gym", register(Walk), "seconds=10")
    assert (code, failing) == (0, [])
    assert found["tables"] == "it is no known MDP" and len(found) == 17
    assert re.fullmatch(
        r"\d+ ends: by hand, NextStep, SameStep, Disabled give the same transitions", found["autoreset"]
    )
    assert re.fullmatch(
        r"\d+ episodes have the return, length and end of a twin driven by hand; \d+ ends are both .*", found["returns"]
    )
    assert re.match(r"\d+ episodes had all 12 steps, and \d+ of them were truncated there", found["time limit"])
    assert "its time runs at 20 a second" in found["pictures"]


BROKEN = IgnoresSeeds, BeyondItsBounds


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in BROKEN else pytest.mark.slow) for k in FAULTS])
def test_each_fault_is_named_by_its_probe_alone(register, examine, cleared, kind):
    code, failing, found, _ = examine("env=gym", register(kind), "seconds=5")
    assert (code, [name for name in failing if name != "interface"]) == (1, [FAULTS[kind]]), found


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (TakesSeed0ForNone, "seed 0 shows something else each time, other seeds do not: is it taken for no seed?"),
        (KnowsOneSeed, "every seed begins alike, and later episodes do not: "),
        (Remembers, "after other episodes a seed shows something else: "),
        (AnotherType, "step 0: an observation is float64 (2,), and its space says float32 (2,); "),
        (TerminatesAtItsLimit, "all 3 episodes are terminated at the limit of 12 steps, not truncated: "),
        (Keeps, "the process grows by "),
        (LeavesAProcess, "4 processes are left after close() (such as "),
        (LeavesFiles, "4 more files are open after two were closed: "),
        (OnePicture, "100 pictures of 100 steps are all the same: "),
    ],
)
def test_a_fault_is_told_in_a_line(register, cleared, kind, words):
    world = World(written("env=gym", register(kind)), 0, 0.5)
    (probe,) = [probe for probe in OF_ENV if report.name(probe) == FAULTS[kind]]
    outcome, found = report.probed(probe, world)
    assert outcome == report.FAIL and found.startswith(words) and "\n" not in found
    assert report.probed(probe, World(written("env=gym", register(Walk)), 0, 0.5)).outcome == report.PASS


class Endless(Walk):
    def step(self, action):
        obs, reward, _, *rest = super().step(action)
        return obs, reward, False, *rest


@pytest.mark.parametrize(
    ("probe", "kind", "words"),
    [
        (cost_probes.pictures, OnePicture, r"there was time for \d+ pictures? alone"),
        (
            env_probes.time_limit,
            Endless,
            r"it states none, and no episode ended in \d+ steps, for which there was time",
        ),
    ],
)
def test_what_there_was_no_time_for_is_no_fault(monkeypatch, probe, kind, words):
    spec = gymnasium.envs.registration.EnvSpec("Doctored-v0", kind)
    monkeypatch.setitem(gymnasium.registry, "Doctored-v0", spec)
    found = report.probed(probe, World(written("env=gym", "env.id=Doctored-v0"), 0, 0.001))
    assert found.outcome == report.LATE and re.fullmatch(words, found.words)


def written(*settings):
    (node,), *_ = building.parts("rl", [*settings, "device=cpu"], "env")
    return node


# -- worlds of ours


class Table(MDPEnv):
    """Pays twice what its tables say."""

    def advance(self, *how):
        found = super().advance(*how)
        return found._replace(reward=2 * found.reward)


class Forgets(MDPEnv):
    """A restored state is another one."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.rng.manual_seed(0)


@pytest.mark.parametrize(
    ("kind", "probe", "words"),
    [
        (Table, env_probes.tables, "step 0 is none that its tables allow: a planner solves another world"),
        (Forgets, env_probes.determinism, "a restored state goes on otherwise: a resumed run is another run"),
    ],
)
def test_a_tabular_world_is_held_against_its_tables_and_its_state(kind, probe, words):
    node = written("env=russell_norvig")
    assert probe(World(node, 0, 1.0)).outcome == report.PASS
    assert probe(World(node | {"_target_": f"{__name__}.{kind.__name__}"}, 0, 1.0)).words == words


def test_memory_is_watched_from_the_first_fifth_of_a_thousand_episodes_however_fast_they_are():
    found = cost_probes.memory(World(written("env=russell_norvig"), 0, 2.0))
    episodes = re.search(r"in ([\d,]+) episodes", found.words)
    assert found.outcome == report.PASS and episodes and int(episodes[1].replace(",", "")) >= 500


@pytest.mark.parametrize(
    ("lengths", "seen", "tells"),
    [
        ([1, 2, 3, 1, 2, 3], [[9, 0.3], [5, 0.2], [7, 0.1], [4, 0.3], [2, 0.2], [1, 0.1]], True),
        ([1, 2, 3, 1, 2, 3], [[9, 0.3], [5, 0.3], [7, 0.3], [4, 0.3], [2, 0.3], [1, 0.3]], False),
        ([1, 2, 3, 1, 2, 3], [[1, 0.3], [2, 0.2], [3, 0.1], [1.5, 0.3], [2, 0.2], [3, 0.2]], False),
    ],
)
def test_a_clock_among_the_observations_is_seen(lengths, seen, tells):
    assert env_probes.tells_time(torch.tensor(lengths), torch.tensor(seen)) is tells


# -- what is typed


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ([], "the doctor sees one environment, rl-lab doctor env=<name>, or one agent, rl-lab doctor agent=<name>"),
        (["env=four_rooms", "agent=dqn"], "the doctor sees one environment, "),
        (["env=gym", "env.id=CartPoel-v1"], "no Gymnasium environment 'CartPoel-v1'; did you mean CartPole-v1?"),
        (["env=gym", "env.id=Pendulum-v1"], "env.id=Pendulum-v1 is refused: its actions are Box("),
        (["env=four_room"], "no choice 'four_room' for env; did you mean env=four_rooms?"),
        (["env=four_rooms", "env.size=3"], "no setting 'env.size'"),
        (["env=four_rooms", "seconds=0"], "seconds=0 must be above 0"),
    ],
)
def test_a_mistake_is_a_line_and_exit_code_2(examine, settings, line):
    code, _, found, err = examine(*settings)
    assert code == 2 and not found and err.startswith(f"rl-lab: {line}") and err.count("\n") == 1


def test_an_environment_that_fails_is_not_asked_further(register, examine):
    class Fails(Walk):
        def step(self, action):
            raise RuntimeError("out of order")

    code, failing, found, _ = examine("env=gym", register(Fails))
    assert (code, failing) == (1, ["runs"])
    assert found["runs"] == "raises RuntimeError: out of order; nothing can be learned like that"
    assert found["speed"] == "not tried: runs fails"


def test_a_probe_that_does_not_come_back_is_left_out_and_named(capsys):
    def runs(_):
        return report.passed("it does")

    def draws(_):
        while True:
            pass

    def closes(_):
        return report.passed("it does")

    assert report.examined("an environment", [runs, draws, closes], None, 1.0) == 0
    title, *lines, counts = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pass", "late", "pass"]
    assert lines[1].endswith("draws   left out: it takes more than 0.5 s")
    assert counts.endswith("2 pass, 0 not applicable, 1 left out for time (draws; seconds=3 gives more), 0 fail")


def test_an_environment_that_does_not_begin_is_told_from_one_that_is_slow(register, examine):
    class Waits(Walk):
        def step(self, action):
            time.sleep(60)

    begun = time.monotonic()
    code, failing, found, _ = examine("env=gym", register(Waits), "seconds=1")
    assert (code, failing) == (1, ["runs"]) and time.monotonic() - begun < 20
    assert found["runs"] == "a few steps take more than 0.5 s: nothing can be learned like that"


def test_an_environment_whose_own_constructor_fails_fails_the_first_probe(register, examine):
    class Unlicensed(Walk):
        def __init__(self, render_mode=None):
            raise RuntimeError("no licence")

    code, failing, found, _ = examine("env=gym", register(Unlicensed))
    assert (code, failing) == (1, ["runs"])
    assert found["runs"] == "raises RuntimeError: no licence; nothing can be learned like that"


@pytest.mark.parametrize(
    ("command", "takes"), [("doctor", ""), ("evaluate", "run=<folder> "), ("compare", "<folder> ... "),
                           ("study", "<folder> ... ")]
)  # fmt: skip
def test_its_help_says_what_it_takes(capsys, command, takes):
    assert cli.main("rl-lab", "rl", COMMANDS, [command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"rl-lab {command} {takes}[setting=value ...]")
