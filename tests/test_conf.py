"""Every YAML is composed, held against the signatures and built; every experiment's recipe runs a few steps."""

import inspect
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from stated import written
from tiers import later

from gen_lab.__main__ import COMMANDS as GEN
from rl_lab.__main__ import COMMANDS as RL
from rl_lab.core import calls
from rl_lab.core.launching import cli, composition
from rl_lab.core.launching.composed import complete_eval_env

CONF = composition.conf_dir()
TINY = {
    "rl_lab.loops.training.train": [
        "loop.total_steps=400",
        "loop.eval_every=null",
        "loop.eval_episodes=1",
        "loop.eval_drawn=0",
    ],
    "rl_lab.loops.overlapped.train": [
        "loop.total_steps=400",
        "loop.eval_episodes=1",
        "loop.eval_drawn=1",
        "agent.rollout_length=16",
        "agent.gather_steps=64",
    ],
    "rl_lab.loops.crew.train": ["loop.total_steps=400", "loop.eval_every=null", "loop.eval_episodes=1"],
    "rl_lab.loops.planning.plan": ["loop.eval_episodes=1", "loop.film=false"],
    "rl_lab.loops.sb3.train_sb3": ["loop.total_steps=200", "loop.eval_every=null", "loop.eval_episodes=1"],
    "rl_lab.loops.demonstrated.infer": ["loop.eval_episodes=1", "loop.demonstrations=2"],
    "rl_lab.loops.reward_design.design": ["loop.eval_episodes=1"],
    "rl_lab.loops.preferences.train": [
        "loop.total_steps=400",
        "loop.eval_every=null",
        "loop.eval_episodes=1",
        "loop.labels=4",
        "loop.clip=4",
        "loop.recent=400",
    ],
    "rl_lab.loops.fitting.fit_q": ["loop.random_steps=200", "loop.iterations=2", "loop.eval_episodes=1"],
    "gen_lab.fit.fit": ["loop.total_steps=3", "loop.eval_every=null"],
}
DOWNLOADED = {"gen_lab.data.mnist": (1, 28, 28), "gen_lab.data.fashion_mnist": (1, 28, 28),
              "gen_lab.data.cifar10": (3, 32, 32)}  # fmt: skip
SMALL_GAMES = {"atari": ["env.max_frames=80", "env.noop_max=1", "env.num_envs=2", "loop.total_steps=160"]}
# As others published them, or another experiment in other numbers: what they set is held against the signatures in
# seconds, below.
ALIKE = re.compile(
    r"(?!a2c_crew)(dqn|a2c|ppo|pqn|rainbow)_(\w+_)?pong|pong_(a2c|pqn|dqn|sticky)|sb3_(a2c|ppo)_pong|atari|boxing|breakout|crazy_climber|"
    r"assault(_\w+)?|road_runner|dqn_collect(_small)?|vpn3_collect|vpn1_collect_small|ppo_minatar_(?!breakout).*|(gated_pixelcnn|sngan|vqvae)_cifar10|(gated_pixelcnn|wgan_gp)_fashion|"
    r"(gated_pixelcnn|vae)_mnist_labels|(vae_conv|iwae)_mnist|sngan_cifar10_labels|(vqvae|vae)_fashion(_labels)?|(ppo|dqn)_acrobot|"
    r"dqn_mountain_car|dqn_lunar_lander|pixelrnn_diagonal_digits|vpn_pong|vpn_four_rooms|a2c_lunar_lander|pixelcnn_mnist|pixelcnnpp_cifar10|"
    r"(greedy|optimal)_collect|expected_sarsa_cliff_walking"
)
EXPERIMENTS = [
    pytest.param(root, name, marks=[pytest.mark.slow] * bool(ALIKE.fullmatch(name)))
    for root in ("rl", "gen")
    for name, _ in cli.experiments(root)
]


def noise_for(cfg, tmp_path: Path) -> list[str]:
    """A recipe for images that are downloaded runs on 16 of noise of their size, and a few at once."""
    rng, shape = np.random.default_rng(0), DOWNLOADED[cfg.data._target_]
    parts = {name: rng.integers(256, size=(16, *shape), dtype=np.uint8) for name in ("train", "test")}
    labels = {f"{name}_labels": np.arange(16) % 10 for name in parts}
    np.savez(tmp_path / "noise.npz", **parts, **labels, levels=256)
    arguments = ["data=npz", f"data.path={tmp_path}/noise.npz", "loop.batch_size=2", "loop.total_steps=2"]
    arguments += ["loop.eval_every=null", "loop.eval_images=2", "loop.pictured=0", "loop.iwae_samples=0", "threads=1"]
    if "protocol" in cfg.data:
        arguments += [f"data.protocol={cfg.data.protocol}"]
    if "components" in cfg.model:
        arguments += ["loop.batch_size=16"]
    if "autoencoder_steps" in cfg.model:
        arguments += ["model.autoencoder_steps=1"]
    return arguments


def compose(root: str, name: str):
    return composition.compose(CONF, root, [f"experiment={name}"])


@pytest.mark.parametrize(("root", "name"), EXPERIMENTS)
def test_experiments_run(root, name, tmp_path):
    cfg = compose(root, name)
    if "env" in cfg and cfg.env.get("id", "").startswith("LunarLander"):
        pytest.importorskip("Box2D")
    for module in cfg.env.get("imports", []) if "env" in cfg else []:
        pytest.importorskip(module)
    folder = tmp_path / "run"
    arguments = ["train", f"experiment={name}", "tracker=none", "device=cpu", f"hydra.run.dir={folder}"]
    arguments += TINY[cfg.loop._target_]
    if "env" in cfg and cfg.env._target_.endswith("Atari"):
        arguments += SMALL_GAMES["atari"]
    if cfg.loop.get("eval_env"):
        arguments += ["loop.eval_env.num_envs=1"]
    if "mazes" in (cfg.loop.get("eval_env") or ()):
        arguments += ["loop.eval_env.mazes=16"]
    learns = root == "rl" and "${agent}" in str(OmegaConf.to_container(cfg.loop, resolve=False))
    if learns and cfg.agent.get("random_steps"):
        arguments += ["env.num_envs=8", "agent.random_steps=100"]
    if learns and "learning_starts" in cfg.agent:
        arguments += ["agent.learning_starts=64"]
    if learns and "capacity" in (cfg.agent.get("replay") or ()):
        arguments += ["agent.replay.capacity=1000"]
    if root == "gen" and cfg.data._target_ in DOWNLOADED:
        arguments += [f"name={name}", *noise_for(cfg, tmp_path)]  # other data have another name
    if root == "gen" and "features" in cfg.judge:
        arguments += ["judge.features.updates=1", "judge.samples=8"]
    if root == "gen" and "importance_samples" in cfg.model:
        arguments += ["loop.iwae_samples=2"]
    if root == "gen" and cfg.loop.warm_up:
        arguments += ["loop.warm_up=1"]
    if root == "gen" and cfg.loop.pictured == 64:
        arguments += ["loop.pictured=4"]
    if root == "gen" and OmegaConf.is_missing(cfg.data, "path"):
        record = ["record", "env=atari", "env.num_envs=2", "env.max_frames=400", "episodes=2", "device=cpu"]
        assert cli.main("rl-lab", "rl", RL, [*record, f"out={tmp_path / 'recording'}"]) == 0
        arguments += [f"data.path={tmp_path / 'recording'}", "data.held_out=0.5"]
    assert cli.main(f"{root}-lab", root, RL if root == "rl" else GEN, arguments) == 0
    assert {"config.yaml", "metrics.jsonl", "summary.json", "checkpoint.pt"} <= {p.name for p in folder.iterdir()}
    assert "eval/" in (folder / "metrics.jsonl").read_text()
    assert OmegaConf.load(folder / "config.yaml").name == name


def tabular_worlds() -> list[str]:
    files = sorted((CONF / "env").glob("*.yaml"))
    bases = {path.stem: OmegaConf.load(path).get("defaults", []) for path in files}
    return [
        name
        for name, base in bases.items()
        if name not in ("mdp_file", "toy_text")
        and "base/tabular" in [*base, *(x for b in base for x in bases.get(b, []))]
    ]


@pytest.mark.parametrize("world", later(tabular_worlds(), *tabular_worlds()[1::2]))
def test_every_tabular_world_is_planned_without_an_experiment(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "train",
        "planner=value_iteration",
        f"env={world}",
        "tracker=none",
        "device=cpu",
        "loop.eval_episodes=1",
        "loop.film=false",
        "planner.gamma=0.5",
    ]
    assert cli.main("rl-lab", "rl", RL, arguments) == 0
    assert [path.parent.parent.name for path in Path("runs").glob("*/*/summary.json")] == [f"value_iteration_{world}"]


def test_collect_is_evaluated_in_its_own_world_but_for_what_the_loop_says():
    changes = ["loop=collect", "env=collect_small", "env.slip=0.1", "+loop.eval_env.drift=0.2"]
    cfg = composition.compose(CONF, "rl", changes)
    complete_eval_env(cfg, {})
    resolved = OmegaConf.to_container(cfg.loop.eval_env, resolve=True)
    own = {"num_envs": 500, "option_gamma": 1.0, "mazes": 4_096, "maze_seed": 1_000_000, "drift": 0.2}
    assert resolved == OmegaConf.to_container(cfg.env, resolve=True) | own and resolved["slip"] == 0.1
    written = OmegaConf.to_container(cfg.loop.eval_env, resolve=False)
    assert written["holes"] == "${env.holes}", "so that a run folder's env.holes=0 reaches the evaluation too"


@pytest.mark.parametrize("name", ["pong_sticky", "preferences_pong", "dqn_four_rooms"])
def test_what_is_typed_of_the_world_reaches_the_evaluation_too(name):
    typed = ["env.num_envs=3", "env.time_limit=7"] if "four" in name else ["env.height=42", "env.game=breakout"]
    cfg = composition.compose(CONF, "rl", [f"experiment={name}", *typed, "++loop.eval_env.num_envs=2"])
    complete_eval_env(cfg, {})
    found, env = (OmegaConf.to_container(x, resolve=True) for x in (cfg.loop.eval_env, cfg.env))
    own = {"num_envs": 2} | {key: found[key] for key in ("num_threads",) if key in found}
    assert found == env | own and env.get("sticky") == (0.25 if name == "pong_sticky" else env.get("sticky"))


def test_an_evaluation_in_the_same_world_refers_to_it():
    cfg = composition.compose(CONF, "rl", ["experiment=dqn_four_rooms"])
    complete_eval_env(cfg, {})
    assert OmegaConf.to_container(cfg.loop, resolve=False)["eval_env"] == "${env}"


def test_every_experiment_says_what_it_is():
    assert all(text.endswith(".") and len(text) > 20 for root in ("rl", "gen") for _, text in cli.experiments(root))


def test_every_choice_begins_with_a_sentence():
    groups = "experiment", "env", "loop", "planner", "protocol", "study", "command", "tracker"
    for path in (path for group in groups for path in (CONF / group).rglob("*.yaml")):
        first = next(line for line in path.read_text().splitlines() if "@package" not in line)
        assert first.startswith("# ") and len(first) > 20, path


def test_yaml_files_are_short():
    assert all(len(path.read_text().splitlines()) <= 45 for path in CONF.rglob("*.yaml"))


@pytest.mark.parametrize(
    "path", sorted((CONF / "env").glob("*.yaml")) + sorted((CONF / "agent").glob("*.yaml")), ids=lambda p: p.stem
)
def test_groups_name_a_call(path: Path):
    node = OmegaConf.load(path)
    assert "_target_" in node or "defaults" in node


ONCE = sorted({path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"})
# Younger than run folders that lack them: the Python default is what those resume with.
OFF_SWITCHES = {("gen_lab.fit.fit", "judge")}


def our_calls(node):
    """Every call of the labs in plain settings, and in those inside them."""
    if isinstance(node, dict) and str(node.get("_target_")).startswith(("rl_lab.", "gen_lab.")):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from our_calls(value)


def test_what_a_yaml_states_has_no_default_in_python():
    """A default is for what some YAML of the call leaves out, and then none states that value."""
    names = [path.relative_to(CONF).with_suffix("") for group in ONCE for path in (CONF / group).rglob("*.yaml")]
    stated = defaultdict(list)
    for name in (str(name) for name in names if name.parent.name != "base"):
        for node in our_calls(OmegaConf.to_container(written(name), resolve=False)):
            stated[node["_target_"]].append(node)
    found = set()
    for call, nodes in stated.items():
        for key, parameter in inspect.signature(calls.locate(call)).parameters.items():
            values = [node[key] for node in nodes if key in node]
            if parameter.default is parameter.empty or not values:
                continue
            default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            if len(values) == len(nodes) or default in values:
                found.add((call, key))
    assert found == OFF_SWITCHES


@pytest.mark.parametrize(
    "choice",
    [
        "agent=rainbow",
        "agent=reinforce_mlp",
        "agent=vpn_atari",
        "env=bridge",
        "data=digits",
        "model=vqvae",
        "model=vae_iwae",
    ],
)
def test_what_tests_call_is_what_is_composed(choice):
    group, _, name = choice.partition("=")
    cfg = composition.compose(CONF, "gen" if group in ("data", "model") else "rl", [choice])
    assert OmegaConf.to_container(written(f"{group}/{name}")) == OmegaConf.to_container(cfg[group])


@pytest.mark.parametrize(("arguments", "spared"), [(["--help"], "hydra numpy torch"), (["render", "--help"], "hydra numpy torch"),
                                                   (["train", "--help"], "numpy torch")])  # fmt: skip
@pytest.mark.parametrize("lab", ["rl_lab", "gen_lab"])
def test_help_imports_little(lab, arguments, spared):
    if arguments[0] == "render" and lab == "gen_lab":
        arguments = ["sample", "--help"]
    code = f"import sys; from {lab}.__main__ import main; sys.argv[1:] = {arguments}; main(); print(); print(*({{*{spared.split()}}} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_composing_imports_no_torch():
    """Tab completion composes on every key press."""
    code = "import sys; from rl_lab.core.launching import composition; composition.compose(composition.conf_dir(), 'rl', ['experiment=dqn_pong']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
