"""A person's own environments and agents, and those of installed packages; and what a stranger's run folder makes of it."""

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from stated import stated

from rl_lab.__main__ import COMMANDS
from rl_lab.core import imports, ownership
from rl_lab.core.errors import UserError
from rl_lab.core.launching import cli
from rl_lab.envs import wrapping
from rl_lab.loops.training import checked, made
from rl_lab.networks.heads import QNetwork
from rl_lab.networks.torsos import SMALL
from rl_lab.types import Spec

Gym = stated("env/gym")

ENV = '''
from pathlib import Path

import gymnasium
import numpy as np
from doors_physics import GOAL  # a neighbour

with open(Path(__file__).with_name("imported"), "a") as file:
    file.write("env ")


class Corridor(gymnasium.Env):
    """Right to the goal, which pays 1; the second action, 0, goes right."""

    observation_space, action_space = gymnasium.spaces.Discrete(GOAL + 1, start=3), gymnasium.spaces.Discrete(2, start=-1)
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.x = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = 0
        return 3, {}

    def step(self, action):
        self.x = max(0, self.x + (1 if action == 0 else -1))
        return 3 + self.x, float(self.x == GOAL), self.x == GOAL, False, {}

    def render(self):
        picture = np.zeros((10, 10 * GOAL + 10, 3), np.uint8)
        picture[:, 10 * self.x : 10 * self.x + 10] = 255
        return picture


class Longer(gymnasium.RewardWrapper):
    def __init__(self, env, pays: float):
        super().__init__(env)
        self.pays = pays

    def reward(self, reward):
        return self.pays * reward


gymnasium.register("Doors/Corridor-v0", Corridor, max_episode_steps=50)
'''

AGENT = '''
import torch

from rl_lab.core.learner import Learner
from rl_lab.core.randomness import generator
from rl_lab.core.settings import Unit
from rl_lab.types import View


class DynaQ(Learner):
    """Its model is left out, and nobody misses it: `act`, `update` and `view` are all that an agent needs."""

    saved = "q", "rng"

    def __init__(self, spec, device, seed, *, step_size: Unit, epsilon: Unit):
        self.q = torch.zeros(*spec.obs_shape, spec.num_actions, device=device)
        self.rng, self.step_size, self.epsilon = generator(seed, device), step_size, epsilon

    def act(self, obs, greedy=False):
        q = obs @ self.q
        best = (q + 1e-6 * torch.rand(q.shape, generator=self.rng)).argmax(-1)
        draw = torch.rand(2, len(obs), generator=self.rng)
        return best if greedy else torch.where(draw[0] < self.epsilon, (draw[1] * q.shape[1]).long(), best)

    def update(self, t):
        s = t.obs.argmax(-1)
        error = t.reward + 0.9 * t.discount * (t.next_obs @ self.q).max(-1).values - self.q[s, t.action]
        self.q.index_put_((s, t.action), self.step_size * error, accumulate=True)
        return {"dyna/error": error.abs().mean()}

    def view(self, obs):
        q = obs @ self.q
        return View(q, q.max(-1).values, "action values")


def function(spec, device, seed):
    raise AssertionError("called")


from os import system  # noqa
'''

TRAIN = ["env=gym", "env.id=doors_env:Doors/Corridor-v0", "agent=dyna", "--config-dir=conf", "env.num_envs=4",
         "env.wrappers=[{_target_: doors_env.Longer, pays: 3.0}, {TimeLimit: {max_episode_steps: 20}}]",
         "loop.total_steps=1_200", "loop.eval_every=null", "loop.eval_episodes=4", "tracker=none", "device=cpu"]  # fmt: skip
WANTED = ("this run folder wants doors_env, doors_agent.DynaQ, and no run of yours has written it so in this place (it was "
          "copied, changed or sent); where you trust it, type env.imports=[doors_env] agent._target_=doors_agent.DynaQ")  # fmt: skip
WORDS = ["env.imports=[doors_env]", "agent._target_=doors_agent.DynaQ"]
READ = [["train", "loop.total_steps=1_240"], ["evaluate", "episodes=4"], ["record", "episodes=2"],
        ["render", "episodes=1", "out=x.png", "tracker=none"], ["watch", "view=terminal", "episodes=1"]]  # fmt: skip
TWO_WAYS = READ[:2]  # in which a folder is opened: to train on, and to play what it learned


def lab(*arguments: str) -> int:
    return cli.main("rl-lab", "rl", COMMANDS, list(arguments))


def said(capsys, *arguments: str) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert lab(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "Traceback" not in error and error.startswith("rl-lab: "), error
    return error.removeprefix("rl-lab: ")


def forget() -> None:
    """As a process that has not imported them."""
    for name in ("doors_env", "doors_agent", "doors_physics"):
        sys.modules.pop(name, None)
    imports.FINDER.places.clear()
    gymnasium.registry.pop("Doors/Corridor-v0", None)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """The folder of a person with an environment, an agent, and a run of both."""
    path, before = tmp_path_factory.mktemp("home"), os.getcwd()
    (path / "conf/agent").mkdir(parents=True)
    (path / "doors_physics.py").write_text("GOAL = 4\n")
    (path / "doors_env.py").write_text(ENV)
    (path / "doors_agent.py").write_text(AGENT)
    (path / "conf/agent/dyna.yaml").write_text(
        "_target_: doors_agent.DynaQ\n_partial_: true\nstep_size: 0.2\nepsilon: 0.2\n"
    )
    os.chdir(path)
    try:
        assert lab("train", *TRAIN, "hydra.run.dir=own") == 0
    finally:
        os.chdir(before)
    return path


@pytest.fixture
def elsewhere(home, tmp_path, monkeypatch):
    """Another directory; the modules are to be found anew."""
    forget()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in (str(home), "")])
    yield tmp_path
    forget()


# -- one's own


def test_one_s_own_run_is_read_from_anywhere_without_more_words(home, elsewhere, capsys):
    """Three rewards of 1 by the wrapper, four steps to the goal, and the seal names where the modules lie."""
    assert json.loads((home / "own/seal.json").read_text())["places"] == dict.fromkeys(
        ("doors_env", "doors_agent"), str(home)
    )
    key = ownership.config_home() / "rl_lab/key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    for command, *rest in READ[:4]:
        assert lab(command, f"run={home / 'own'}", "device=cpu", *rest) == 0, command
        forget()
    scores = json.loads((home / "own/evaluation.json").read_text())["scores"]
    assert scores["eval/return"] == 3.0 and scores["eval/length"] == 4.0
    assert "of 4 steps" in capsys.readouterr().err and Path("x.png").exists()
    assert "view=terminal needs a terminal" in said(capsys, "watch", f"run={home / 'own'}", *READ[4][1:])


def test_what_lies_in_the_working_directory_is_not_taken_for_one_s_own(home, elsewhere):
    """A run's modules come from where it was trained, whatever has their names here."""
    for name in ("doors_env", "doors_agent", "doors_physics"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit('of a stranger')\n")
    sys.path.insert(0, str(elsewhere))  # as python -m has it
    assert lab("evaluate", f"run={home / 'own'}", "episodes=4", "device=cpu") == 0


def test_a_new_run_says_in_a_line_what_it_cannot_import(home, elsewhere, capsys):
    env = ["train", "env=gym", "agent=random", "tracker=none", "device=cpu", "loop.total_steps=8"]
    assert (
        said(capsys, *env, "env.id=no_such:X-v0")
        == f"env.id=no_such:X-v0: no module no_such, neither installed nor in {elsewhere}"
    )
    (elsewhere / "doors_broken.py").write_text("x = 1\nx.y\n")
    (elsewhere / "doors_wrong.py").write_text("x = = 1\n")
    (elsewhere / "doors_needy.py").write_text("import no_such\n")
    (elsewhere / "doors_leaving.py").write_text("raise SystemExit(3)\n")
    for module, words in {
        "broken": "importing doors_broken failed (AttributeError: 'int' object has no attribute 'y', doors_broken.py line 2)",
        "wrong": "importing doors_wrong failed (SyntaxError: invalid syntax, doors_wrong.py line 1)",
        "needy": "doors_needy needs no_such; pip install no_such",
        "leaving": "importing doors_leaving failed (SystemExit: 3, doors_leaving.py line 1)",
    }.items():
        assert said(capsys, *env, f"env.imports=[doors_{module}]") == f"env.imports=[doors_{module}]: {words}"
    assert said(capsys, *env, "env.imports=[5]") == "env.imports=[5] must be a list of modules, such as [minigrid]"
    assert not [*elsewhere.glob("runs/*/*")]
    agent = ["train", "env=four_rooms", "tracker=none", "device=cpu", "agent._target_=doors_broken.X"]
    assert "doors_broken.X: importing doors_broken failed (AttributeError: " in said(capsys, *agent)
    (elsewhere / "doors_small.py").write_text("class Small:\n    def act(self, obs): ...\n")
    small = [
        "train",
        "env=four_rooms",
        "tracker=none",
        "device=cpu",
        "agent=random",
        "agent._target_=doors_small.Small",
    ]
    assert said(capsys, *small).startswith(
        "Small is no agent: Small() takes no arguments; its constructor is __init__("
    )


@pytest.mark.slow
def test_the_command_itself_finds_what_lies_where_it_is_called(home):
    """The script of an installed package has not the working directory among its paths."""
    code = "import sys; sys.path = [p for p in sys.path if p]; from rl_lab.__main__ import main; sys.exit(main())"
    start, folder = [sys.executable, "-c", code], "runs/by_hand"
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[3])}
    for arguments in (["train", *TRAIN, "loop.total_steps=40", f"hydra.run.dir={folder}"],
                      ["evaluate", f"run={folder}", "episodes=1", "device=cpu"],
                      ["doctor", *TRAIN[:2], "seconds=2", "device=cpu"]):  # fmt: skip
        done = subprocess.run([*start, *arguments], cwd=home, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# -- a stranger's


def attempts(folder: Path, capsys, *typed: str, commands=READ) -> set[str]:
    """What each command says of it, nothing having been imported."""
    forget()
    lines = {said(capsys, command, f"run={folder}", *rest, *typed) for command, *rest in commands}
    assert not {"doors_env", "doors_agent", "doors_evil"} & set(sys.modules)
    return lines


def sent(home: Path, here: Path, change=lambda text: text) -> Path:
    shutil.rmtree(here / "sent", ignore_errors=True)
    shutil.copytree(home / "own", here / "sent")
    path = here / "sent/config.yaml"
    path.write_text(change(path.read_text()))
    return here / "sent"


@pytest.fixture
def resealed():
    """Leaves the person's own folder as it was."""
    kept = {}

    def of(folder: Path) -> Path:
        kept.update({folder / name: (folder / name).read_bytes() for name in ("config.yaml", "seal.json")})
        return folder

    yield of
    for path, was in kept.items():
        path.unlink(missing_ok=True)
        path.write_bytes(was)


def test_a_folder_that_was_copied_names_what_it_wants_and_what_allows_it(home, elsewhere, monkeypatch, capsys):
    folder = sent(home, elsewhere)
    assert attempts(folder, capsys) == {WANTED}
    assert attempts(folder, capsys, WORDS[0]) == {WANTED.replace("doors_env, ", "", 1)}
    assert attempts(folder, capsys, WORDS[1]) == {WANTED.replace(", doors_agent.DynaQ", "", 1)}
    assert "no module doors_" in said(capsys, "evaluate", f"run={folder}", *WORDS)  # allowed, and not to be found here
    monkeypatch.chdir(home)
    assert lab("evaluate", f"run={folder}", "episodes=4", "device=cpu", *WORDS) == 0
    forget()
    assert attempts(folder, capsys) == {WANTED}  # for that once
    assert lab("train", f"run={folder}", "loop.total_steps=1_300", *WORDS) == 0
    forget()
    assert lab("evaluate", f"run={folder}", "episodes=4", "device=cpu") == 0  # a run of this user's has written it


CHANGES = {
    "a setting": lambda text: text.replace("epsilon: 0.2", "epsilon: 0.3"),
    "a comment": lambda text: text + "# harmless\n",
    "a space": lambda text: text + " ",
    "one agent more": lambda text: text.replace("doors_agent.DynaQ", "doors_evil.DynaQ"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_folder_of_one_s_own_that_was_changed_is_a_stranger_s(home, elsewhere, resealed, capsys, what):
    path = resealed(home / "own") / "config.yaml"
    text = path.read_text()
    path.write_text(CHANGES[what](text))
    assert path.read_text() != text
    (line,) = attempts(home / "own", capsys, commands=TWO_WAYS)
    assert (
        line.startswith("this run folder wants doors_env, doors_") and "where you trust it, type env.imports=" in line
    )


def noted(folder: Path, **changes) -> None:
    path = folder / "seal.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def by_another_key(folder: Path, here: Path) -> None:
    theirs = here / "theirs"
    theirs.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(theirs))
        assert ownership.seal(folder, (folder / "config.yaml").read_text(), {"doors_env": str(here)})


def by_a_link(folder: Path, here: Path) -> None:
    (folder / "seal.json").rename(here / "seal.json")
    (folder / "seal.json").symlink_to(here / "seal.json")


SEALS = {
    "none": lambda folder, here: (folder / "seal.json").unlink(),
    "places that were changed": lambda folder, here: noted(
        folder, places={"doors_env": str(here), "doors_agent": str(here)}
    ),
    "places that were left out": lambda folder, here: noted(folder, places={}),
    "no digest": lambda folder, here: noted(folder, digest=""),
    "a digest of another kind": lambda folder, here: noted(folder, digest=None),
    "a digest of odd letters": lambda folder, here: noted(folder, digest="\ud800"),
    "places of another kind": lambda folder, here: noted(folder, places=[["doors_env", 5]]),
    "another user's": by_another_key,
    "a link": by_a_link,
    "no json": lambda folder, here: (folder / "seal.json").write_text("{" * 90_000),
    "a folder": lambda folder, here: ((folder / "seal.json").unlink(), (folder / "seal.json").mkdir()),
}


@pytest.mark.parametrize("what", SEALS)
def test_a_seal_that_proves_nothing(home, elsewhere, resealed, capsys, what):
    folder = resealed(home / "own")
    SEALS[what](folder, elsewhere)
    try:
        assert attempts(folder, capsys, commands=TWO_WAYS) == {WANTED}
    finally:
        if (folder / "seal.json").is_dir():
            (folder / "seal.json").rmdir()


KEYS = {
    "that others can read": lambda key: key.chmod(0o644),
    "that others can write": lambda key: key.chmod(0o620),
    "that is a link": lambda key: (key.rename(key.with_name("there")), key.symlink_to("there")),
    "that has a second name": lambda key: os.link(key, key.with_name("there")),
    "that is too short": lambda key: key.write_bytes(b"x" * 31),
    "that is too long": lambda key: key.write_bytes(key.read_bytes() + b"x"),
    "that is gone": lambda key: key.unlink(),
    "that is another": lambda key: key.write_bytes(b"x" * 32),
}


def test_what_stands_there_stays_ones_own_until_it_is_replaced(tmp_path):
    """A run that is resumed with changes, and killed between its seal and its config.yaml."""
    first, second, third = (f"steps: {i}" for i in range(3))
    assert ownership.seal(tmp_path, first, {"mine": "here"})
    assert ownership.seal(tmp_path, second, {}, standing=first.encode())
    assert ownership.of(tmp_path, first.encode()) == ownership.Seal({"mine": "here"})
    assert ownership.of(tmp_path, second.encode()) == ownership.Seal({})
    assert ownership.seal(tmp_path, third, {}, standing=first.encode())
    assert ownership.of(tmp_path, first.encode()) and ownership.of(tmp_path, third.encode())
    assert ownership.of(tmp_path, second.encode()) is None


@pytest.mark.parametrize("what", KEYS)
def test_a_key_that_proves_nothing(home, elsewhere, monkeypatch, what):
    config = elsewhere / "config"
    shutil.copytree(ownership.config_home(), config)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    text = (home / "own/config.yaml").read_bytes()
    assert ownership.of(home / "own", text) is not None
    KEYS[what](config / "rl_lab/key")
    assert ownership.of(home / "own", text) is None
    if what == "that is gone":
        assert not (config / "rl_lab/key").exists(), "reading makes none"


def test_the_key_does_not_lie_where_a_stranger_could_put_it(monkeypatch, tmp_path):
    """A relative place would be one in the working directory: the standard has it ignored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    assert ownership.config_home().is_relative_to(tmp_path / "person")


EVIL = "from pathlib import Path\nfrom os import system\nPath('sang').touch()\nclass C:\n    pass\nf = lambda *a, **k: None\n"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        # what could be a person's own is named; what could not is refused as ever
        ({"agent": "doors_evil.C"}, "wants doors_evil.C"),
        ({"agent": "doors_evil.system"}, "wants doors_evil.system"),
        ({"agent": "os.system"}, "agent._target_=os.system is refused: a run folder may call only what"),
        ({"agent": "torch.load"}, "agent._target_=torch.load is refused: a run folder may call only what"),
        ({"agent": "joblib.load"}, "agent._target_=joblib.load is refused: a run folder may call only what"),
        ({"agent": "doors_evil.C.__init__"}, "is refused: a run folder may call only what"),
        ({"id": "doors_evil:X-v0"}, "wants doors_evil,"),
        ({"id": "doors_evil.x:X-v0"}, "wants doors_evil.x,"),
        ({"id": "doors_evil.:X-v0"}, "env.id=doors_evil.:X-v0 is refused in a run folder: it must be the name of"),
        ({"id": "doors_evil..x:X-v0"}, "env.id=doors_evil..x:X-v0 is refused in a run folder: it must be the name of"),
        ({"id": "doors_evil:doors_evil:X-v0"}, "is refused in a run folder: it must be the name of"),
        ({"id": "os:rl_lab/FourRooms-v0"}, "is refused in a run folder: it must be the name of"),
        ({"wrappers": ["doors_evil..f"]}, "is refused in a run folder: a wrapper is one of"),
        ({"id": "../doors_evil:X-v0"}, "env.id=../doors_evil:X-v0 is refused in a run folder: it must be the name of"),
        ({"imports": ["doors_evil"]}, "wants doors_evil,"),
        ({"imports": "doors_evil"}, "env.imports=doors_evil is refused in a run folder: it must be a list of modules"),
        ({"imports": ["./doors_evil.py"]}, "is refused in a run folder: it must be a list of modules"),
        ({"wrappers": ["doors_evil.f"]}, "wants doors_evil,"),
        ({"wrappers": [{"doors_evil.f": {"x": 1}}]}, "wants doors_evil,"),
        ({"wrappers": [{"_target_": "doors_evil.f"}]}, "env.wrappers[0]._target_=doors_evil.f is refused: a run folder may"),
        ({"wrappers": [{"_target_": "os.system", "command": "touch sang"}]}, "env.wrappers[0]._target_=os.system is refused"),
        ({"wrappers": [{"RecordVideo": {"video_folder": "x"}}]}, "is refused in a run folder: a wrapper is one of"),
        ({"wrappers": [{"TimeLimit": {"max_episode_steps": "/etc/passwd"}}]}, "an option may be a name, and no path"),
        ({"wrappers": [{"TimeLimit": {"max_episode_steps": {"_target_": "os.system"}}}]}, "_target_=os.system is refused"),
        ({"wrappers": [{"TimeLimit": {}, "os.system": {}}]}, "is refused in a run folder: a wrapper is one of"),
        ({"wrappers": "doors_evil.f"}, "is refused in a run folder: a wrapper is one of"),
        ({"wrappers": [5]}, "is refused in a run folder: a wrapper is one of"),
    ],
)  # fmt: skip
def test_a_stranger_imports_nothing(elsewhere, monkeypatch, capsys, honest, config, line):
    """And the folder of an honest run, which wants nothing, stays free of words."""
    monkeypatch.syspath_prepend(str(elsewhere))
    (elsewhere / "doors_evil.py").write_text(EVIL)
    folder = elsewhere / "theirs"
    shutil.copytree(honest, folder)
    path = folder / "config.yaml"
    held = yaml.safe_load(path.read_text())
    if "agent" in config:
        held["agent"]["_target_"] = config["agent"]
    else:
        held["env"].update(config)
    path.write_text(yaml.safe_dump(held))
    assert {line in words for words in attempts(folder, capsys, commands=TWO_WAYS)} == {True}
    assert not Path("sang").exists()


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "run"
    assert lab("train", "env=gym", "agent=random", "tracker=none", "device=cpu", "loop.total_steps=16", "loop.eval_episodes=1",
               "env.wrappers=[FlattenObservation]", f"hydra.run.dir={folder}") == 0  # fmt: skip
    assert not (folder / "seal.json").exists()
    return folder


@pytest.mark.parametrize(
    ("target", "typed", "line"),
    [
        ("doors_evil.system", "agent._target_=doors_evil.system", "it is no class of doors_evil's"),
        ("doors_evil.f", "agent._target_=doors_evil.f", "it is no class of doors_evil's"),
        ("doors_evil.C", "agent._target_=doors_agent.DynaQ", "wants doors_evil.C"),
        ("doors_evil.C", "env.imports=[doors_evil]", "wants doors_evil.C"),
        ("os.system", "agent._target_=os.system", "agent._target_=os.system is refused: a run folder may call only"),
        (
            "joblib.load",
            "agent._target_=joblib.load",
            "agent._target_=joblib.load is refused: a run folder may call only",
        ),
    ],
)
def test_what_is_typed_allows_a_class_of_one_s_own_and_no_more(elsewhere, capsys, honest, target, typed, line):
    (elsewhere / "doors_evil.py").write_text(EVIL)
    folder = elsewhere / "theirs"
    shutil.copytree(honest, folder)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("rl_lab.agents.random.Random", target))
    assert line in said(capsys, "evaluate", f"run={folder}", "episodes=1", typed)
    sys.modules.pop("doors_evil", None)


def test_a_checkpoint_of_one_s_own_folder_is_data_too(home, elsewhere, capsys):
    """The seal is of config.yaml: whoever changes the checkpoint runs nothing."""
    path = home / "own/checkpoint.pt"
    was = path.read_bytes()
    try:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
            archive.writestr("archive/version", "3\n")
        assert "is refused: it holds more than tensors" in said(capsys, "evaluate", f"run={home / 'own'}", "episodes=1")
    finally:
        path.write_bytes(was)
    assert not Path("sang").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch sang",)


# -- agents


def test_an_agent_says_in_a_line_what_it_lacks():
    spec = Spec((3,), torch.float32, ("0", "1"))

    class Bare:
        def __init__(self, spec, device, seed): ...
        def act(self, obs): ...
        def update(self, transition): ...
        def view(self, obs): ...

    with pytest.raises(UserError) as error:
        checked(made(Bare, spec, device="cpu", seed=0))
    assert str(error.value) == (
        "Bare is no agent: derive it from rl_lab.core.learner.Learner, which has announce, settled, state_dict, load_state_dict"
    )
    from rl_lab.core.learner import Learner

    class Blind(Learner):
        def act(self, obs): ...
        def update(self, transition): ...

    with pytest.raises(UserError, match="^Blind is no agent: it lacks view; see Agent in rl_lab/types.py$"):
        checked(Blind())
    Blind.view = lambda self, obs: None
    with pytest.raises(UserError, match=r"evaluations call act\(obs, greedy=True\), and its act takes no greedy$"):
        checked(Blind())
    Blind.act = lambda self, obs, greedy=False: None
    with pytest.raises(UserError, match="^Blind would save nothing: "):
        checked(Blind())
    Blind.saved = "q", "rgn"
    Blind.q = np.zeros(3)
    with pytest.raises(UserError, match="^Blind.saved names rgn, and it has no such attribute$"):
        checked(Blind())
    Blind.saved = ("q",)
    with pytest.raises(
        UserError, match="^Blind.q holds a numpy.ndarray, and a checkpoint holds tensors, .*; keep it as a tensor$"
    ):
        checked(Blind())
    Blind.q = {(0, 1): [torch.zeros(3), None, "x", 5.0]}
    assert isinstance(checked(Blind()), Blind)
    with pytest.raises(
        UserError, match=r"^Blind is no agent: .*; its constructor is __init__\(self, spec, device, seed, \*"
    ):
        made(Blind, spec, device="cpu", seed=0)


# -- observations, actions, wrappers


class Odd(gymnasium.Env):
    """Observations of any kind, and actions -1, 0, 1, which are the reward."""

    action_space = spaces.Discrete(3, start=-1)

    def __init__(self, space, render_mode=None):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action), False, False, {}


@pytest.fixture
def odd(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("Doors/Odd-v0", Odd, max_episode_steps=9)
    monkeypatch.setitem(gymnasium.registry, "Doors/Odd-v0", spec)
    return lambda space, **settings: Gym("Doors/Odd-v0", 2, options={"space": space}, **settings)


FLAT = "; choose env.wrappers=[FlattenObservation]"
KINDS = {
    "dict": (spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(0, 1, (2,))), 4, FLAT),
    "tuple": (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), 5, FLAT),
    "multi-discrete": (spaces.MultiDiscrete([2, 3]), 5, FLAT),
    "multi-binary": (spaces.MultiBinary(3), 3, FLAT),
    "text": (spaces.Text(4), 4, FLAT),
    "graph": (spaces.Graph(spaces.Discrete(2), None), None, "; a wrapper of yours, named in env.wrappers, can make them a Box"),
    "dict of what is not flat": (
        spaces.Dict(a=spaces.Discrete(2), g=spaces.Sequence(spaces.Discrete(2))),
        None,
        "; choose 'env.wrappers=[{FilterObservation: {filter_keys: [a]}}, FlattenObservation]'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_observations_come_with_the_wrapper_that_helps(odd, kind):
    space, size, advice = KINDS[kind]
    with pytest.raises(UserError) as error:
        odd(space)
    assert str(error.value).endswith(f" are neither a Box nor a Discrete{advice}") and "\n" not in str(error.value)
    if size:
        env = odd(space, wrappers=["FlattenObservation"])
        assert env.reset(0).shape == (2, size) and env.spec.obs_dtype == torch.float32
    elif "Filter" in advice:
        env = odd(space, wrappers=[{"FilterObservation": {"filter_keys": ["a"]}}, "FlattenObservation"])
        assert env.reset(0).shape == (2, 2)


def test_numbers_that_begin_elsewhere(odd):
    env = odd(spaces.Discrete(4, start=-7))
    assert env.spec.obs_shape == (4,) and (env.reset(0).sum(1) == 1).all()
    assert env.step(torch.tensor([0, 2])).reward.tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("shape", "dtype", "seen"),
    [
        ((10, 10, 4), bool, (4, 10, 10)), ((10, 10, 4), np.float32, (4, 10, 10)), ((3, 40, 30), np.float64, (3, 40, 30)),
        ((7, 7, 3), np.uint8, (3, 7, 7)), ((7, 9, 3), np.int64, (3, 7, 9)), ((96, 64, 1), np.uint8, (1, 96, 64)),
    ],
)  # fmt: skip
def test_images_of_any_kind_come_channels_first(odd, shape, dtype, seen):
    env = odd(spaces.Box(0, 1, shape, dtype))
    dtypes = torch.uint8 if dtype == np.uint8 else torch.float32
    obs = env.reset(0)
    assert env.spec.obs_shape == seen and env.spec.obs_dtype == obs.dtype == dtypes and obs.shape == (2, *seen)
    assert env.step(torch.tensor([0, 1])).next_obs.shape == (2, *seen)
    assert min(seen[1:]) >= SMALL and QNetwork(env.spec, small()).forward(obs).shape == (2, 3, 1)
    older = odd(spaces.Box(0, 1, shape, dtype), planes=False)  # as runs before this have it
    assert older.spec.obs_shape == (seen if dtype == np.uint8 else shape)


def small():
    return lambda spec: stated("agent/network/cnn_small")(spec)


def test_planes_as_many_as_they_are_long_say_so(odd):
    line = (r"^env.id=Doors/Odd-v0: any side of its images \(10, 10, 10\) may count the channels; set env.channels=first or "
            "env.channels=last, or env.planes=false$")  # fmt: skip
    with pytest.raises(UserError, match=line):
        odd(spaces.Box(0, 1, (10, 10, 10)))


def test_wrappers_stand_around_each_environment_in_order():
    env = Gym("CartPole-v1", 3, wrappers=[{"TimeLimit": {"max_episode_steps": 5}}, {"FrameStackObservation": {"stack_size": 2}},
                                          {"_target_": "gymnasium.wrappers.FlattenObservation", "_partial_": True}])  # fmt: skip
    assert env.spec.obs_shape == (8,) and env.time_limit == 5
    env.reset(0)
    ends = [env.step(torch.ones(3, dtype=torch.int64)) for _ in range(5)]
    assert ends[4].last.all() and not ends[3].last.any() and ends[4].discount.tolist() == [1, 1, 1]
    assert wrapping.named("FlattenObservation", "w") == ["FlattenObservation"]
    assert wrapping.named([{"_target_": "a.B", "x": 1}, {"TimeLimit": {}}, "C"], "w") == [
        {"a.B": {"x": 1}},
        "TimeLimit",
        "C",
    ]


@pytest.mark.parametrize(
    ("wrapper", "line"),
    [
        ("FlattenObservations", "env.wrappers[0]=FlattenObservations: gymnasium.wrappers has no wrapper FlattenObservations; did you mean FlattenObservation?"),
        ("no_such.Wrapper", f"env.wrappers[0]=no_such.Wrapper: no module no_such, neither installed nor in {os.getcwd()}"),
        ("doors_nowhere", "env.wrappers[0]=doors_nowhere: gymnasium.wrappers has no wrapper doors_nowhere"),
        ("os.system", "env.wrappers[0]=os.system: os has no wrapper system"),
        ({"TimeLimit": {"max_steps": 5}}, "env.wrappers[0]={TimeLimit: {max_steps: 5}}: missing a required argument: 'max_episode_steps'; it takes max_episode_steps"),
        ({"TimeLimit": {"max_episode_steps": -1}}, "env.wrappers[0]={TimeLimit: {max_episode_steps: -1}} does not fit env.id=CartPole-v1 ("),
        ("GrayscaleObservation", "env.wrappers[0]=GrayscaleObservation does not fit env.id=CartPole-v1 ("),
        (5, "env.wrappers[0]=5 is no wrapper; give its name, or {TimeLimit: {max_episode_steps: 200}}"),
        ({"a": {}, "b": {}}, "is no wrapper; give its name, or {TimeLimit: {max_episode_steps: 200}}"),
    ],
)  # fmt: skip
def test_a_wrapper_that_is_none_or_does_not_fit(wrapper, line):
    with pytest.raises(UserError) as error:
        Gym("CartPole-v1", 2, wrappers=[wrapper])
    assert line in str(error.value) and "\n" not in str(error.value)


def test_actions_without_number_come_with_the_wrapper_that_counts_them():
    with pytest.raises(
        UserError, match=r"need discrete ones; 'env.wrappers=\[\{DiscretizeAction: \{bins: 5\}\}\]' makes them so$"
    ):
        Gym("Pendulum-v1", 1)
    assert Gym("Pendulum-v1", 1, wrappers=[{"DiscretizeAction": {"bins": 5}}]).spec.num_actions == 5


# -- packages


@pytest.mark.parametrize("package", wrapping.KNOWN, ids=lambda package: package.module)
def test_an_id_of_a_package_that_is_not_imported_names_it(monkeypatch, package):
    """`import minigrid` as it is before anyone has said it."""
    id = {"minigrid": "MiniGrid-Empty-5x5-v0", "highway_env": "highway-fast-v0", "minatar": "MinAtar/Breakout-v1"}.get(
        package.module
    )
    id = id or f"{package.ids}X-v0"
    monkeypatch.setattr(gymnasium, "registry", {"CartPole-v1": None})
    monkeypatch.setattr(wrapping.importlib.util, "find_spec", lambda name: None)
    assert wrapping.unknown(id) == (
        f"no Gymnasium environment '{id}'; {package.module} registers it: pip install {package.pip}, then env.id={package.module}:{id}"
    )
    with pytest.raises(
        UserError, match=f"^env.id={package.module}:{id} needs {package.module}; pip install {package.pip}$"
    ):
        wrapping.register([], f"{package.module}:{id}")


def test_an_id_that_nobody_knows_says_how_to_name_a_module():
    with pytest.raises(UserError) as error:
        Gym("Nowhere/Corridor-v0", 1)
    assert str(error.value) == (
        "no Gymnasium environment 'Nowhere/Corridor-v0'; env.id=<module>:Nowhere/Corridor-v0 imports the package that registers it"
    )


WORLDS = {
    "minigrid": ("MiniGrid-Empty-5x5-v0", (3, 7, 7), torch.uint8, ["minigrid.wrappers.ImgObsWrapper"]),
    "minatar": ("MinAtar/Breakout-v1", (4, 10, 10), torch.float32, []),
    "highway_env": ("highway-fast-v0", (5, 5), torch.float32, []),
}


@pytest.mark.parametrize("form", ["id", "imports"])
@pytest.mark.parametrize("module", WORLDS)
def test_an_installed_package(module, form):
    pytest.importorskip(module)
    id, shape, dtype, wrappers = WORLDS[module]
    named = {"id": f"{module}:{id}"} if form == "id" else {"id": id, "imports": [module]}
    env = Gym(**named, num_envs=1, wrappers=wrappers)
    assert env.reset(0).shape == (1, *shape) and env.spec.obs_dtype == dtype
    env.step(torch.zeros(1, dtype=torch.int64))
    env.close()
    with pytest.raises(UserError, match=rf"^no Gymnasium environment '{id[:-4]}x{id[-3:]}'; did you mean {id[:6]}"):
        Gym(f"{module}:{id[:-4]}x{id[-3:]}", num_envs=1)


def test_a_run_in_a_package_remembers_it_and_a_copy_asks(elsewhere, capsys):
    pytest.importorskip("minigrid")
    usual = ["env.num_envs=2", "agent=ppo_cnn", "agent/network=cnn_small", "loop.total_steps=64", "loop.eval_episodes=1", "tracker=none",
             "device=cpu", "agent.rollout_length=16"]  # fmt: skip
    wrappers = "env.wrappers=[{_target_: minigrid.wrappers.ImgObsWrapper}, {TimeLimit: {max_episode_steps: 20}}]"
    assert (
        lab(
            "train",
            "env=gym",
            "env.id=MiniGrid-Empty-5x5-v0",
            "env.imports=[minigrid]",
            wrappers,
            *usual,
            "hydra.run.dir=own",
        )
        == 0
    )
    assert json.loads(Path("own/seal.json").read_text())["places"] == {}
    assert lab("evaluate", "run=own", "episodes=1", "device=cpu") == 0
    assert lab("train", "run=own", "loop.total_steps=128") == 0
    shutil.copytree("own", "copy")
    line = said(capsys, "evaluate", "run=copy", "episodes=1", "device=cpu")
    assert line.endswith("type env.imports=[minigrid,minigrid.wrappers]"), line
    assert lab("evaluate", "run=copy", "episodes=1", "device=cpu", "env.imports=[minigrid,minigrid.wrappers]") == 0
