"""What a stranger sends: run folders and studies that try to run code, send secrets, or write where they should not.

Each attempt is a folder, a command and a canary that must not sing: a module that writes a file when it is imported, a
shell command that does, a server that notes who calls, a file outside the folder that must stay as it is.
"""

import http.server
import inspect
import json
import os
import pickle
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiers import later

from gen_lab.__main__ import COMMANDS as GEN
from gen_lab.parts import PARTS as GEN_PARTS
from rl_lab.__main__ import COMMANDS as RL
from rl_lab.core import calls
from rl_lab.core.launching import cli, composition
from rl_lab.parts import PARTS as RL_PARTS

SECRET = "a-secret-of-this-machine"
RUNS = {
    "dqn": ["experiment=dqn_russell_norvig", "loop.total_steps=64", "loop.eval_episodes=1", "env.num_envs=2"],
    "gym": ["env=gym", "agent=a2c_mlp", "env.num_envs=2", "loop.total_steps=40", "loop.eval_episodes=1"],
    "toy": ["env=toy_text", "agent=a2c", "env.num_envs=2", "loop.total_steps=40", "loop.eval_episodes=1"],
    "sb3": ["env=russell_norvig", "agent=sb3_a2c", "env.num_envs=2", "loop.total_steps=40", "loop.eval_episodes=1"],
    "plan": ["experiment=value_iteration_russell_norvig", "loop.eval_episodes=1", "loop.film=false"],
    "vae": ["experiment=vae_digits", "loop.total_steps=2", "loop.iwae_samples=0"],
}  # fmt: skip
COMMANDS = {"vae": [["train", "loop.total_steps=4"], ["sample", "count=1", "tracker=none"], ["latents"],
                    ["evaluate", "judge=none", "iwae_samples=0"]]}  # fmt: skip
PLAYED = [["train", "loop.total_steps=128"], ["evaluate", "episodes=1"], ["render", "out=x.png", "tracker=none"],
          ["record", "episodes=1"], ["watch", "view=terminal", "episodes=1"]]  # fmt: skip


ATTEMPTS = []  # what was commanded


class Canary:
    """Sings when code of the stranger's ran, a secret was sent, or a file outside the folder was touched."""

    def __init__(self, here: Path):
        self.here, self.calls = here, []
        (here / "evilmod.py").write_text(
            "from pathlib import Path\nPath('sang').touch()\nf = C = lambda *a, **k: None\n"
        )
        (here / "precious.txt").write_text("years of work\n" * 100)
        np.save(here / "evil.npy", np.array([Evil(f"touch {here}/sang")], object), allow_pickle=True)
        calls = self.calls

        class Listener(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                calls.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_): ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def sings(self) -> bool:
        spoiled = (self.here / "precious.txt").read_text() != "years of work\n" * 100
        return spoiled or (self.here / "sang").exists() or bool(self.calls)


class Evil:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Iterator[Path]:
    """Run folders as they should be."""
    root = tmp_path_factory.mktemp("honest")
    for name, arguments in RUNS.items():
        usual = ["tracker=none", "device=cpu", f"hydra.run.dir={root / name}"]
        assert lab(name, "train", *arguments, *usual) == 0
    yield root
    print(f"\n{len(ATTEMPTS)} commands on strangers' folders, and no canary sang")  # with -s


@pytest.fixture
def canary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SECRET", SECRET)
    bird = Canary(tmp_path)
    yield bird
    bird.server.shutdown()
    bird.server.server_close()


def lab(name: str, *arguments: str) -> int:
    if name == "vae":
        return cli.main("gen-lab", "gen", GEN, list(arguments))
    return cli.main("rl-lab", "rl", RL, list(arguments))


def fresh(honest: Path, name: str, here: Path) -> Path:
    folder = here / "sent"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(honest / name, folder)
    return folder


def refused(name: str, folder: Path, canary: Canary, capsys, commands=None) -> list[str]:
    """What each command says: one line, in seconds, with exit code 2."""
    said = []
    for command, *rest in commands or COMMANDS.get(name, PLAYED):
        capsys.readouterr()
        began, computed = time.monotonic(), time.process_time()
        ATTEMPTS.append(command)
        code = lab(name, command, f"run={folder}", "device=cpu", *rest)
        spent, waited = time.process_time() - computed, time.monotonic() - began
        err = capsys.readouterr().err.strip()
        assert not canary.sings, (command, err)
        assert code == 2 and err.count("\n") == 0 and "Traceback" not in err, (command, err)
        assert spent < 4.0 and waited < 20.0, (command, spent, waited)  # others may use this machine too
        assert SECRET not in err and "\x1b" not in err
        said.append(err)
    return said


def altered(folder: Path, change) -> dict:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return config


def put(config: dict, where: str, value) -> None:
    *parents, last = where.split("/")
    for parent in parents:
        config = config[parent]
    config[last] = value


# -- interpolations

CREATED = "${oc.create:{_target_:numpy.load,file:'evil.npy',allow_pickle:true}}"
LOOKS = {
    "an escaped one that makes a call": "\\" + CREATED,
    "twice escaped": "\\\\" + CREATED,
    "one that makes a call": CREATED,
    "a decoded one": "${oc.decode:'{_target_: numpy.load}'}",
    "a variable of the environment": "${oc.env:SECRET}",
    "one with a default": "${oc.env:NOTHING,${oc.env:SECRET}}",
    "another setting, by a setting": "${xx.${device}}",
    "Hydra's own": "${hydra:runtime.cwd}",
    "the time": "${now:%Y}",
    "a choice of ours": "${first:null,${oc.env:SECRET}}",
    "a relative one": "${.gamma}",
    "an index": "${choices[agent]}",
    "one inside words": "x-${oc.env:SECRET}-y",
    "one cut off": "${oc.env:SECRET",
}
PLACES = ["agent/gamma", "agent/network/_target_", "env/mdp/map", "loop/total_steps", "tracker/notes", "name", "extra",
          "choices/agent", "seed", "device"]  # fmt: skip


@pytest.mark.parametrize("what", LOOKS)
def test_an_interpolation_is_the_name_of_a_setting_and_nothing_else(honest, canary, tmp_path, capsys, what):
    for i, where in enumerate(PLACES, [*LOOKS].index(what)):
        folder = fresh(honest, "dqn", tmp_path)
        altered(folder, lambda config, where=where: put(config, where, LOOKS[what]))
        refused("dqn", folder, canary, capsys, [PLAYED[i % 2]])
    folder = fresh(honest, "vae", tmp_path)
    altered(folder, lambda config: put(config, "model/beta", LOOKS[what]))
    refused("vae", folder, canary, capsys)


def test_references_that_never_end_or_grow_without_bound(honest, canary, tmp_path, capsys):
    ring = {"a": "${b}", "b": "${a}"}
    laughs = {"x0": ["ha"] * 10} | {f"x{i}": [f"${{x{i - 1}}}"] * 10 for i in range(1, 12)}
    long = {"y0": "ha" * 1000} | {f"y{i}": f"${{y{i - 1}}}" * 10 for i in range(1, 9)}
    for extra in (ring, laughs, long, {"agent": "${agent}"}, {"agent": "${agent.network}"}, {"env": "${nowhere}"}):
        folder = fresh(honest, "dqn", tmp_path)
        altered(folder, lambda config, extra=extra: config.update(extra))
        refused("dqn", folder, canary, capsys, PLAYED[:2])


# -- calls

TARGETS = [
    "os.system", "subprocess.Popen", "builtins.exec", "builtins.eval", "builtins.open", "shutil.rmtree", "evilmod", "evilmod.f",
    "evilmod.C.__call__", "importlib.import_module", "runpy.run_path", "pickle.load", "numpy.load", "torch.load",
    "torch.hub.load", "torch.save", "torch.nn.Module.apply", "torch.nn.Module", "torch.nn.utils.skip_init",
    "torch.nn.modules.module.torch.load", "torch.nn.functional.torch.load", "torch.nn.parallel.DistributedDataParallel",
    "torch.optim.Optimizer", "torch.optim.swa_utils.AveragedModel", "torch.optim.lr_scheduler.LambdaLR",
    "hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method", "functools.partial", "operator.methodcaller",
    "stable_baselines3.DQN.load", "stable_baselines3.common.logger.JSONOutputFormat",
    "stable_baselines3.common.save_util.load_from_pkl", "stable_baselines3.common.env_util.make_vec_env",
    "gymnasium.make", "gymnasium.make_vec", "gymnasium.register", "wandb.init", "av.open", "yaml.unsafe_load",
    "rl_lab.playing.player._learner", "rl_lab.playing.player.load", "rl_lab.playing.player.hydra.utils.instantiate", "rl_lab.commands.evaluate.evaluate_runs",
    "rl_lab.commands.render.render", "rl_lab.commands.record.record", "rl_lab.commands.watch.watch", "rl_lab.commands.teach.teach", "rl_lab.commands.play.play", "rl_lab.playing.stage.of_world",
    "rl_lab.gymnasium_api.envs.build", "rl_lab.gymnasium_api.envs.World", "rl_lab.gymnasium_api.registration.register", "rl_lab.__main__.main",
    "rl_lab.core.tracking.reachable", "rl_lab.core.tracking.wandb_run", "rl_lab.core.tracking.nothing",
    "rl_lab.core.registry.fetch", "rl_lab.core.checkpoint.write", "rl_lab.core.files.write", "rl_lab.core.launching.launch.train",
    "rl_lab.core.launching.composition.compose", "rl_lab.core.calls.locate", "rl_lab.envs.gym.gymnasium.make_vec",
    "rl_lab.envs.atari.np.load", "rl_lab.agents.dqn.DQN.load_state_dict", "rl_lab.planning.value_iteration.__globals__",
    "rl_lab.looking.films.write", "rl_lab.looking.browser.Browser", "rl_lab.networks.torsos.getattr", "rl_lab.networks.torsos.nn.Linear",
    "gen_lab.trained.loading.load", "gen_lab.commands.sample.sample", "gen_lab.data.cache.fetch", "gen_lab.judging.pictures.write_sheet",
    "gen_lab.commands.compare.compare", "gen_lab.judging.features.contextlib.suppress", "..os.system", "", "rl_lab", 5, None, ["os.system"],
]  # fmt: skip
POSITIONS = {
    "agent": lambda config, call: config.update(agent=call),
    "deep inside": lambda config, call: put(config, "agent/optimizer", call),
    "in a list": lambda config, call: put(config, "env/mdp/rewards", [0, [call]]),
    "among the loop's": lambda config, call: put(config, "loop/eval_env", call),
    "where nothing is called": lambda config, call: config.update(extra={"x": call}),
    "as positional arguments": lambda config, call: put(config, "env/_args_", [call]),
    "the loop": lambda config, call: config.update(loop=call),
}  # fmt: skip


def called(honest: Path, canary: Canary, tmp_path: Path, capsys, targets: list, position: str) -> None:
    for i, target in enumerate(targets):
        folder = fresh(honest, "dqn", tmp_path)
        call = {
            "_target_": target,
            "file": "evil.npy",
            "allow_pickle": True,
            "url": canary.url,
            "command": "touch sang",
        }
        altered(folder, lambda config, call=call: POSITIONS[position](config, call))
        refused("dqn", folder, canary, capsys, [PLAYED[i % 2]])


@pytest.mark.parametrize("position", POSITIONS)
def test_only_what_experiments_are_made_of_is_called(honest, canary, tmp_path, capsys, position):
    """Each target in one of the places, where the slow test has each in all of them."""
    place = [*POSITIONS].index(position)
    called(honest, canary, tmp_path, capsys, TARGETS[place :: len(POSITIONS)], position)


@pytest.mark.slow
@pytest.mark.parametrize("position", POSITIONS)
def test_wherever_it_stands(honest, canary, tmp_path, capsys, position):
    called(honest, canary, tmp_path, capsys, TARGETS, position)


@pytest.mark.parametrize(("name", "parts"), [("rl", RL_PARTS), ("gen", GEN_PARTS)])
def test_what_is_allowed_is_there_and_neither_writes_nor_starts_anything(name, parts):
    """Each is a class or a function of a module that experiments are made of, by the name it has there."""
    outward = "core", "playing", "commands", "looking", "loading", "cache", "judging.pictures", "gymnasium_api"
    assert {*parts.moved.values()} <= {*parts.allowed} and not {*parts.moved} & {*parts.allowed}
    for target in parts.allowed:
        found = calls.locate(target)
        home = found.__module__
        assert home.startswith(("rl_lab.", "gen_lab.", "torch.", "stable_baselines3.")), target
        assert not any(f".{room}." in f".{home}." for room in outward) or home.startswith("torch."), target


@pytest.mark.parametrize("parts", [RL_PARTS, GEN_PARTS])
def test_what_older_folders_leave_out_is_a_setting_without_a_default(parts):
    for target, settings in parts.younger.items():
        parameters = inspect.signature(calls.locate(target)).parameters
        assert target in parts.allowed and all(parameters[key].default is inspect.Parameter.empty for key in settings)


@pytest.mark.parametrize("root", ["rl", "gen"])
def test_every_preset_is_made_of_what_is_allowed(root):
    """Else a run of it could be trained, and not be evaluated."""
    parts = RL_PARTS if root == "rl" else GEN_PARTS
    for group in composition.groups(root):
        for path in (composition.conf_dir() / group).rglob("*.yaml"):
            text = path.read_text()
            if group in ("tracker", "study", "experiment") or ("gen_lab." in text) != (root == "gen"):
                continue
            for target in {
                line.split("_target_:")[1].split(",")[0].strip(" }")
                for line in text.splitlines()
                if "_target_:" in line
            }:
                assert target in parts.allowed or target.startswith("${"), (path, target)


ODD = {
    "another package in the header": ("dqn", lambda text: "# @package hydra.callbacks.evil\n" + text),
    "the same, later": ("dqn", lambda text: "\n  # @package _global_\n" + text),
    "settings of Hydra": ("dqn", lambda text: text + "\nhydra: {callbacks: {x: {_target_: os.system, command: touch sang}}}\n"),
    "defaults": ("dqn", lambda text: text + "\ndefaults: [evil]\n"),
    "a tag": ("dqn", lambda text: text + "\nx: !!python/object/apply:os.system ['touch sang']\n"),
    "a short tag": ("dqn", lambda text: text + "\nx: !evil 5\n"),
    "a bomb of aliases": ("dqn", lambda text: text + "\n" + bomb()),
    "one alias": ("dqn", lambda text: text + "\nx: &a 5\ny: *a\n"),
    "levels without end": ("dqn", lambda text: text + "\nx: " + "[" * 5000 + "]" * 5000),
    "too many values": ("dqn", lambda text: text + "\nx: [" + "1," * 100_000 + "1]"),
    "too large": ("dqn", lambda text: text + "\n# " + "x" * 5_000_000),
    "no mapping": ("dqn", lambda text: "- 1\n- 2\n"),
    "no YAML": ("dqn", lambda text: "{{{{" + text),
    "no text": ("dqn", lambda text: "\x00\x01" + text),
    "nothing": ("dqn", lambda text: ""),
    "a name that moves the cursor": ("dqn", lambda text: text.replace("name: dqn", 'name: "\\e[2Jx')),
    "a key that is a list": ("dqn", lambda text: text + "\n? [a, b]\n: 5\n"),
    "not called as it is": ("dqn", lambda text: text.replace("_partial_: true", "_recursive_: false", 1)),
    "a module for an environment": ("gym", lambda text: text.replace("id: CartPole-v1", "id: evilmod:X-v0")),
    "a module for a table": ("toy", lambda text: text.replace("id: FrozenLake-v1", "id: evilmod:X-v0")),
    "a world by its path": ("gym", lambda text: text.replace("id: CartPole-v1", "id: rl_lab/FourRooms-v0").replace("options: {}", "options: {world: /elsewhere/evil}")),
    "a path among the options": ("gym", lambda text: text.replace("options: {}", "options: {xml_file: /etc/passwd}")),
    "wrappers": ("gym", lambda text: text.replace("options: {}", "options: {wrappers: [{_target_: evilmod.f}]}")),
    "an environment of SB3's choice": ("sb3", lambda text: text.replace("policy: MlpPolicy", "policy: MlpPolicy\n  env: evilmod:X-v0")),
    "a place for SB3's logs": ("sb3", lambda text: text.replace("policy: MlpPolicy", "policy: MlpPolicy\n  tensorboard_log: /elsewhere/evil")),
    "a policy by its module": ("sb3", lambda text: text.replace("policy: MlpPolicy", "policy: evilmod:f")),
    "a policy's parts": ("sb3", lambda text: text.replace("policy_kwargs: {}", "policy_kwargs: {features_extractor_class: evilmod.f}")),
    "another tracker": ("dqn", lambda text: text.replace("rl_lab.core.tracking.nothing", "evilmod.f")),
    "a helper as tracker": ("dqn", lambda text: text.replace("rl_lab.core.tracking.nothing", "rl_lab.core.tracking.reachable")),
}  # fmt: skip


def bomb() -> str:
    return "\n".join(["x0: &x0 [ha, ha]", *(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, 40))])


@pytest.mark.parametrize("what", ODD)
def test_a_config_that_is_more_than_settings(honest, canary, tmp_path, capsys, what):
    name, change = ODD[what]
    folder = fresh(honest, name, tmp_path)
    path = folder / "config.yaml"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    commands = PLAYED[:1] if "tracker" in what else PLAYED if what == "a module for an environment" else PLAYED[:2]
    refused(name, folder, canary, capsys, commands)


def test_what_a_folder_says_of_its_tracker_is_names(honest, canary, tmp_path, monkeypatch, capsys):
    """Neither where W&B writes, nor how long it is waited for, nor a variable among the notes."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = fresh(honest, "dqn", tmp_path)
    wandb = {"_target_": "rl_lab.core.tracking.wandb_run", "_partial_": True, "project": "theirs", "tags": ["a"], "dir": "/elsewhere/evil-wandb",
             "init_timeout": 1e9, "notes": "plain words"}  # fmt: skip
    altered(folder, lambda config: config.update(tracker=wandb))
    assert lab("dqn", "train", f"run={folder}", "loop.total_steps=128") == 0
    written = yaml.safe_load((folder / "config.yaml").read_text())["tracker"]
    assert written["project"] == "theirs" and written["notes"] == "plain words" and "dir" not in written
    assert written["init_timeout"] == 10 and not Path("/elsewhere/evil-wandb").exists()
    assert list(tmp_path.glob("runs/wandb/offline-run-*"))


# -- files that are something else

KINDS = {
    "a pipe": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a folder": lambda path: path.mkdir(),
    "a link into nothing": lambda path: path.symlink_to("/nowhere/at/all"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["config.yaml", "checkpoint.pt"])
def test_files_that_are_something_else(honest, canary, tmp_path, capsys, kind, file):
    folder = fresh(honest, "dqn", tmp_path)
    (folder / file).unlink()
    KINDS[kind](folder / file)
    refused("dqn", folder, canary, capsys, PLAYED[:2])


def pickled(path: Path, thing: object) -> None:
    """A checkpoint whose index is `thing`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(thing))
        archive.writestr("archive/version", "3\n")


def zipped(path: Path, size: int) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w", force_zip64=True) as file,
    ):
        for _ in range(size // 2**24):
            file.write(bytes(2**24))


def with_state(**numbers):
    def change(path: Path) -> None:
        torch.save(torch.load(path, weights_only=True) | numbers, path)

    return change


def older(path: Path, **numbers) -> None:
    state = torch.load(path, weights_only=True)
    state.pop("written")
    torch.save(state | numbers, path)


def spoiled(value: float):
    def change(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for weights in state["agent"]["online"].values():
            weights.view(-1)[0] = value
        torch.save(state, path)

    return change


CHECKPOINTS = {
    "a pickle that runs a command": lambda path: pickled(path, Evil("touch sang")),
    "a bomb": lambda path: zipped(path, 2**28),
    "bytes of a full disk": with_state(written={"bytes": int(5e10)}),
    "the same, as older runs have it": lambda path: older(path, bytes=int(5e10)),
    "bytes below nothing": with_state(bytes=-1),
    "half a byte": with_state(bytes=0.5),
    "a step before the first": with_state(step=-5),
    "a step that is none": with_state(step="many"),
    "an endless step": with_state(step=float("inf")),
    "a step of truth": with_state(step=True),
    "time that runs back": with_state(seconds=-1.0),
    "no time": with_state(seconds=float("nan")),
    "a tensor far larger than what is stored of it": with_state(episodes={"return": torch.zeros(1).expand(10**12)}),
    "a sparse one": with_state(episodes={"return": torch.sparse_coo_tensor([[0]], [1.0], (10**12,))}),
    "one that is nowhere": with_state(episodes={"return": torch.zeros(10**12, device="meta")}),
    "weights of nan": spoiled(float("nan")),
    "endless weights": spoiled(float("inf")),
}


@pytest.mark.parametrize("what", CHECKPOINTS)
def test_checkpoints_that_no_run_has_written(honest, canary, tmp_path, capsys, what):
    folder = fresh(honest, "dqn", tmp_path)
    CHECKPOINTS[what](folder / "checkpoint.pt")
    rows = (folder / "metrics.jsonl").read_bytes()
    of_the_run = what.startswith(("bytes", "the same", "half", "time", "no time"))
    refused("dqn", folder, canary, capsys, PLAYED[:1] if of_the_run else PLAYED[:2])
    assert (folder / "metrics.jsonl").read_bytes() == rows


# -- links that would be written through

WRITTEN = {
    "dqn": (["config.yaml.new", "summary.new", "summary.json", "checkpoint.new", "metrics.jsonl", ".new.checkpoint.pt", ".new.summary.json",
             ".new.config.yaml"], ["train", "loop.total_steps=128"]),
    "dqn evaluated": (["evaluation.json", "evaluation.json.new", ".new.evaluation.json"], ["evaluate", "episodes=1"]),
    "dqn filmed": (["videos", "videos/dqn_russell_norvig_step64.mp4", "videos/dqn_russell_norvig_step64.gif"],
                   ["render", "tracker=none", "episodes=1", "max_steps=2"]),
    "dqn recorded": (["recordings"], ["record", "episodes=1"]),
    "vae": (["pictures", "pictures/samples_00000004.png", "videos", "videos/training.gif", "summary.json"], ["train", "loop.total_steps=4"]),
    "vae sampled": (["samples_seed0_count1.png", "samples_seed0_count1.npz"], ["sample", "count=1", "tracker=none"]),
    "vae evaluated": (["evaluation.json", "neighbours.png"], ["evaluate", "judge=random", "judge.samples=300", "iwae_samples=0"]),
    "vae explained": (["pictures", "pictures/traversals.png", "pictures/interpolations.png", "pictures/latent_map.png"], ["latents"]),
}  # fmt: skip
LINKS = [(case, name, hard) for case, (names, _) in WRITTEN.items() for name in names for hard in (False, True)]


@pytest.mark.parametrize(("case", "name", "hard"), LINKS)
def test_no_link_is_written_through(honest, canary, tmp_path, capsys, case, name, hard):
    """The command refuses, or the link gives way to a file of the folder's own; what it pointed at stays as it is."""
    run, (_, command) = case.split()[0], WRITTEN[case]
    folder, target = fresh(honest, run, tmp_path), tmp_path / "precious.txt"
    place, is_folder = folder / name, name in ("videos", "pictures", "recordings")
    if is_folder:
        target = tmp_path / "elsewhere"
        target.mkdir()
        if hard:
            pytest.skip("folders have one name")
    if place.is_dir():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    os.link(target, place) if hard else place.symlink_to(target)
    ATTEMPTS.append(command[0])
    code = lab(run, command[0], f"run={folder}", "device=cpu", *command[1:])
    err = capsys.readouterr().err
    assert not canary.sings and code in (0, 2) and "Traceback" not in err
    assert not is_folder or not list(target.iterdir())
    if code == 0 and place.is_file():
        assert (
            not place.is_symlink()
            and place.stat().st_nlink == 1
            or (place.samefile(target) and not place.name.endswith("json"))
        )


# -- studies

REPLAYED = [
    "+hydra.callbacks.evil._target_=os.system", "hydra.run.dir=/elsewhere/evil", "hydra.job.env_set.PATH=/elsewhere", "--config-dir=/elsewhere/evil", "-cd=/elsewhere",
    "+experiment=../../../elsewhere/evil", "experiment=/elsewhere/evil", "+env@hydra.callbacks.x=four_rooms", "hydra/launcher=../evil",
    "name=${oc.env:SECRET}", "agent.gamma=${oc.decode:0.5}", "agent.network._target_=evilmod.f", "tracker.notes='\\${oc.env:SECRET}'",
    "hydra.sweeper.params.seed=${oc.env:SECRET}", "~hydra.launcher", "hydra.launcher.evil=1", "+hydra/callbacks=evil",
]  # fmt: skip


@pytest.mark.parametrize("argument", later(REPLAYED, *REPLAYED[3::2]))
def test_a_study_is_gone_on_with_by_its_settings_alone(canary, tmp_path, capsys, argument):
    folder = tmp_path / "runs/studies/theirs/1"
    (folder / "jobs").mkdir(parents=True)
    arguments = ["-m", *RUNS["dqn"], "seed=0", "tracker=none", "device=cpu", "hydra.launcher.n_jobs=1", argument]
    about = {
        "name": "theirs",
        "command": "x",
        "arguments": arguments,
        "directory": str(tmp_path),
        "begun": "1",
        "git": None,
        "jobs": [],
    }
    (folder / "study.yaml").write_text(json.dumps(about))
    code = lab("dqn", "study", "resume", str(folder))
    said = capsys.readouterr().err
    assert not canary.sings and not Path("/elsewhere/evil").exists() and SECRET not in said and "Traceback" not in said
    assert code == 2 or argument in said.splitlines()[0], "refused, or said not to be followed"


# -- what is shown, and what is read beside a folder's own files


def test_nothing_that_is_shown_moves_the_cursor(honest, canary, tmp_path, capsys):
    """A name in config.yaml is refused; what summary.json and a study's notes say is shown without it."""
    folder = fresh(honest, "dqn", tmp_path)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("name: dqn_russell_norvig", 'name: "\\e]0;x\\adqn"'))
    refused("dqn", folder, canary, capsys, [*PLAYED[:2], ["compare"]])
    study = tmp_path / "runs/studies/theirs/1"
    (study / "jobs").mkdir(parents=True)
    about = {"name": "x", "command": "x", "arguments": [], "directory": ".", "git": None, "jobs": [["seed=0"]]}
    (study / "study.yaml").write_text(json.dumps(about))
    (study / "jobs/0.json").write_text(json.dumps({"folder": None, "state": "mistake", "reason": "\x1b[2Jgone\x07"}))
    assert lab("dqn", "study", str(study)) == 0
    shown = capsys.readouterr().out
    assert "?[2Jgone?" in shown and "\x1b[2J" not in shown and "\x07" not in shown


def test_a_study_names_no_run_outside_its_folders(honest, canary, tmp_path, capsys):
    """Else its evaluation would be written into somebody's own run."""
    own = fresh(honest, "dqn", tmp_path)
    study = tmp_path / "theirs/runs/studies/theirs/1"
    (study / "jobs").mkdir(parents=True)
    about = {"name": "x", "command": "x", "arguments": [], "directory": "/", "git": None, "jobs": [["seed=0"]]}
    (study / "study.yaml").write_text(json.dumps(about))
    (study / "jobs/0.json").write_text(json.dumps({"folder": os.path.relpath(own, study), "state": "finished"}))
    assert lab("dqn", "evaluate", str(study), "episodes=1", "device=cpu") == 2
    assert "names a run outside its own folders" in capsys.readouterr().err and not (own / "evaluation.json").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_a_world_is_not_read_from_something_else(honest, canary, tmp_path, capsys, kind):
    folder, odd = fresh(honest, "dqn", tmp_path), tmp_path / "odd.txt"
    KINDS[kind](odd)
    altered(folder, lambda config: put(config, "env/mdp/map", str(odd)))
    refused("dqn", folder, canary, capsys, PLAYED[:2])
    mdp = {"_target_": "rl_lab.envs.tabular.tables.mdp_file", "path": str(odd)}
    altered(folder, lambda config: put(config, "env/mdp", mdp))
    refused("dqn", folder, canary, capsys, PLAYED[:2])


def test_a_bomb_of_arrays(honest, canary, tmp_path, capsys):
    folder, bomb = fresh(honest, "dqn", tmp_path), tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("next_state.npy", "w", force_zip64=True) as file,
    ):
        file.write(
            b"\x93NUMPY\x01\x00v\x00"
            + f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({2**25}, 1, 1), }}".ljust(117).encode()
            + b"\n"
        )
        for _ in range(16):
            file.write(bytes(2**24))
    altered(
        folder,
        lambda config: put(config, "env/mdp", {"_target_": "rl_lab.envs.tabular.tables.mdp_file", "path": str(bomb)}),
    )
    refused("dqn", folder, canary, capsys, PLAYED[:2])


def test_walkers_where_no_state_is(honest, canary, tmp_path, capsys):
    folder = fresh(honest, "dqn", tmp_path)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    state["env"]["state"][:] = 10**9
    torch.save(state, folder / "checkpoint.pt")
    refused("dqn", folder, canary, capsys, PLAYED[:1])


# -- files of a few bytes that would take for ever, or all memory


def indexed(path: Path, pickled: bytes, parts: int = 0) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for i in range(parts):
            archive.writestr(f"archive/data/{i}", b"")


def doubled(levels: int) -> bytes:
    """The orders that make a tuple of two tuples of two tuples ..."""
    return b"(K\x01\x85q\x00" + b"".join(
        b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(levels)
    )


class Filled:
    def __reduce__(self):
        return bytearray, (1_500_000_000,)


def named_badly(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arch\x1b[2Jive/data.pkl", b"hello world")
    path.write_bytes(path.read_bytes().replace(b"hello world", b"hellO world"))


BOMBS = {
    "a key that takes for ever to hash": lambda path: indexed(path, b"\x80\x02}q\xf0" + doubled(40) + b"t" + b"K\x01s."),
    "a value that takes for ever to show": lambda path: with_state(written={"fault": nested(26)})(path),
    "lists in lists": lambda path: indexed(path, b"\x80\x02" + b"]" * 3_000_000 + b"."),
    "a hundred thousand parts": lambda path: indexed(path, b"\x80\x02}.", parts=100_000),
    "bytes out of nothing": lambda path: pickled(path, {"format": "rl_lab checkpoint 1", "x": Filled()}),
    "a part whose name moves the cursor": named_badly,
    "figures by numbers": lambda path: with_state(final={(1, 2): 3.0})(path),
}  # fmt: skip


def nested(levels: int) -> tuple:
    x = (1,)
    for _ in range(levels):
        x = (x, x)
    return x


@pytest.mark.parametrize("what", later(BOMBS, "lists in lists", "a hundred thousand parts"))
def test_small_checkpoints_that_would_grow(honest, canary, tmp_path, capsys, what):
    folder = fresh(honest, "dqn", tmp_path)
    BOMBS[what](folder / "checkpoint.pt")
    refused("dqn", folder, canary, capsys, PLAYED[:1] if what == "figures by numbers" else PLAYED[:2])


def test_a_map_of_a_million_cells_and_a_folder_of_everything(honest, canary, tmp_path, capsys):
    folder = fresh(honest, "dqn", tmp_path)
    altered(folder, lambda config: put(config, "env/mdp/map", "S" * 400_000))
    refused("dqn", folder, canary, capsys, PLAYED[:2])
    folder = fresh(honest, "vae", tmp_path)
    many = tmp_path / "many"
    many.mkdir()
    for i in range(10_100):
        (many / str(i)).touch()
    altered(folder, lambda config: config.update(data={"_target_": "gen_lab.data.folder", "path": str(many)}))
    refused("vae", folder, canary, capsys, COMMANDS["vae"][:2])


@pytest.mark.parametrize(
    "name",
    ["eval/a\x1b[2Jb[digits-binarised]", "eval/nll_nats[\x1b]0;x]", "eval/[red]x[/b][digits]", "eval/\ud800[digits]"],
)
def test_names_of_measures_are_shown_as_they_are(honest, canary, tmp_path, capsys, name):
    folder = fresh(honest, "vae", tmp_path)
    (folder / "evaluation.json").write_text(json.dumps({"scores": {name: 5.0}, "step": 99}))
    assert lab("vae", "compare", f"run={folder}", "tracker=none", "resamples=10") == 0
    shown = capsys.readouterr()
    assert "\x1b[2J" not in shown.out and "\x1b]0" not in shown.out and "Traceback" not in shown.err


STUDIES = {
    "a link in the way": (lambda root, victim: (root / "dqn_russell_norvig").symlink_to(victim), "is a link"),
    "W&B's folder as a link": (lambda root, victim: (root / "wandb").symlink_to(victim), "is a link"),
    "a link that W&B makes": (lambda root, victim: ((root / "wandb").mkdir(), (root / "wandb/latest-run").symlink_to(victim)), "no setting 'agent.gama'"),
    "a study that lies elsewhere": (lambda root, victim: shutil.move(root / "studies", root / "x"), "is not in a folder studies/<name>"),
    "jobs without end": (lambda root, victim: added(root, "agent.gamma=range(0,100000000)"), "makes more than 10,000 jobs"),
    "more jobs at once than there are cores": (lambda root, victim: added(root, "hydra.launcher.n_jobs=100000"), "not repeated from study.yaml"),
    "a directory with an endless name": (lambda root, victim: noted(root, directory="x" * 5000), ""),
    "figures that are none": (lambda root, victim: (root / "studies/theirs/1/jobs/0.json").write_text('{"value": ["a", "b"], "state": "finished"}'), ""),
}  # fmt: skip


def noted(root: Path, **changes) -> None:
    path = root / "studies/theirs/1/study.yaml"
    path.write_text(json.dumps(yaml.safe_load(path.read_text()) | changes))


def added(root: Path, argument: str) -> None:
    noted(root, arguments=[*yaml.safe_load((root / "studies/theirs/1/study.yaml").read_text())["arguments"], argument])


@pytest.mark.parametrize("what", STUDIES)
def test_a_study_writes_within_its_own_folders(canary, tmp_path, capsys, what):
    root, victim = tmp_path / "theirs/runs", tmp_path / "victim"
    victim.mkdir()
    (root / "studies/theirs/1/jobs").mkdir(parents=True)
    arguments = ["-m", *RUNS["dqn"], "seed=0", "agent.gamma=0.5,0.6", "tracker=none", "device=cpu", "agent.gama=1"]
    about = {
        "name": "theirs",
        "command": "x",
        "arguments": arguments,
        "directory": str(root),
        "begun": "1",
        "git": None,
        "jobs": [],
    }
    (root / "studies/theirs/1/study.yaml").write_text(json.dumps(about))
    change, words = STUDIES[what]
    change(root, victim)
    where = root / ("x" if "elsewhere" in what else "studies") / "theirs/1"
    assert lab("dqn", "study", "resume", str(where)) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and not list(victim.iterdir()) and not canary.sings


TYPES = {
    "choices of a number": {"choices": 5}, "choices that are another name": {"choices": {"name": "../../x"}}, "a seed of words": {"seed": "x"},
    "a seed of truth": {"seed": True}, "a name that climbs": {"name": "../../x"}, "a name that is a list": {"name": ["a"]},
    "threads of nothing": {"threads": None}, "a checkpoint of a number": {"checkpoint": 5}, "a tracker that is a list": {"tracker": []},
    "an env of words": {"env": "x"}, "an env that is nothing": {"env": None}, "an agent that is a layer": {"agent": {"_target_": "torch.nn.Linear", "_partial_": True, "in_features": 1, "out_features": 1}},
}  # fmt: skip


@pytest.mark.parametrize("what", TYPES)
def test_settings_of_another_kind(honest, canary, tmp_path, capsys, what):
    folder = fresh(honest, "dqn", tmp_path)
    altered(folder, lambda config: config.update(TYPES[what]))
    refused("dqn", folder, canary, capsys, PLAYED[:1])


def test_whose_account_takes_the_runs_is_not_for_a_folder_to_say(honest, canary, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = fresh(honest, "dqn", tmp_path)
    theirs = {"_target_": "rl_lab.core.tracking.wandb_run", "_partial_": True, "entity": "attacker", "mode": "online"}
    altered(folder, lambda config: config.update(tracker=theirs))
    assert lab("dqn", "train", f"run={folder}", "loop.total_steps=128", "device=cpu") == 0
    written = yaml.safe_load((folder / "config.yaml").read_text())["tracker"]
    assert written["entity"] is None and written["mode"] is None and list(tmp_path.glob("runs/wandb/offline-run-*"))
    assert "sets tracker.entity=attacker, which is ignored" in capsys.readouterr().err


def test_a_cache_of_a_folders_choice_is_followed_only_where_it_is_typed(canary, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 2, (64, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", train=images, test=images, levels=2)
    npz = [
        "data=npz",
        f"data.path={tmp_path / 'x.npz'}",
        f"data.root={tmp_path / 'mine'}",
        "model=vae",
        "loop.batch_size=16",
    ]
    assert (
        lab(
            "vae",
            "train",
            *npz,
            "loop.total_steps=2",
            "loop.iwae_samples=0",
            "tracker=none",
            "device=cpu",
            "hydra.run.dir=own",
        )
        == 0
    )
    assert lab("vae", "evaluate", "run=own", "device=cpu", "judge=none", "iwae_samples=0") == 0
    assert "is ignored" not in capsys.readouterr().err
    shutil.copytree("own", "sent")
    judged = ["evaluate", "run=sent", "device=cpu", "judge=none", "iwae_samples=0"]
    assert lab("vae", *judged) == 0
    assert (
        f"sets data.root={tmp_path / 'mine'}, which is ignored; type data.root=... to use it" in capsys.readouterr().err
    )
    assert lab("vae", *judged, "data.resident_gb=0", f"data.root={tmp_path / 'mine'}") == 0 and list(
        (tmp_path / "mine").rglob("*.npy")
    )
    assert "changes" not in json.loads(Path("sent/evaluation.json").read_text()), "the same images, in another place"
