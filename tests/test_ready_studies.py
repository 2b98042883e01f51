"""conf/study and conf/sweep: every job of every ready study composes to settings that fit; one small one runs whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from rl_lab.__main__ import COMMANDS
from rl_lab.core import checking
from rl_lab.core.folders import read_run
from rl_lab.core.launching import cli, composition
from rl_lab.core.launching.composed import complete_eval_env
from rl_lab.core.studies.study import Study

CONF = composition.conf_dir()
JOBS = {"gridworlds": 420, "classic_control": 75, "atari": 105, "collect": 30, "digits": 51}


def jobs(name: str, *overrides: str) -> list[tuple[list[str], DictConfig]]:
    """Each job's settings, and a call that composes it, as Hydra's sweeper and launchers do it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().hydra
        root = "gen" if name == "digits" else "rl"
        study = loader.compose_config(root, [f"study={name}", *overrides], run_mode=RunMode.MULTIRUN)
        assert study.hydra.mode == RunMode.MULTIRUN
        lines = [f"{key}={value}" for key, value in study.hydra.sweeper.params.items()] + [f"study={name}", *overrides]
        parsed = OverridesParser.create(config_loader=loader.config_loader).parse_overrides(lines)
        (batch,) = BasicSweeper.split_arguments(parsed, None)
        return [(job, lambda job=job: loader.config_loader.load_sweep_config(study, job)) for job in batch]


def check(cfg: DictConfig) -> DictConfig:
    complete_eval_env(cfg, {})
    checking.check(cfg.loop, "loop")
    assert cfg.loop.eval_every < cfg.loop.total_steps and cfg.loop.total_steps % cfg.loop.eval_every == 0
    return cfg


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow) if x in ("gridworlds", "atari") else x for x in JOBS]
)
def test_every_value_of_every_parameter_composes(name):
    """So many of the jobs that each value is among them."""
    everything, seen = jobs(name), set()
    assert len(everything) == JOBS[name]
    for job, compose in everything:
        if not seen.issuperset(job):
            seen.update(job)
            check(compose())


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_every_job_composes(name):
    found = [OmegaConf.to_container(check(compose())) for _, compose in jobs(name)]
    assert len({json.dumps(cfg | {"hydra": None}) for cfg in found}) == JOBS[name]


def test_steps_and_worlds_are_right_for_each_combination():
    (dqn, vpn), (book, rooms) = ("agent=dqn", "agent=vpn2"), ("env=book", "env=four_rooms")
    found = {}
    for job, compose in jobs("gridworlds", "agent=dqn,vpn2", "env=book,four_rooms", "seed=0"):
        cfg = compose()
        found[job[0], job[1]] = (cfg.loop.total_steps, cfg.agent.gamma, cfg.env.obs, cfg.env.num_envs)
    assert found == {(dqn, book): (150_000, 0.9, "one_hot", 32), (dqn, rooms): (400_000, 0.99, "one_hot", 32),
                     (vpn, book): (100_000, 0.9, "planes", 16), (vpn, rooms): (100_000, 0.99, "planes", 16)}  # fmt: skip
    shorter = [
        compose() for _, compose in jobs("gridworlds", "agent=vpn2", "env=book", "seed=7", "loop.total_steps=500")
    ]
    assert [(cfg.seed, cfg.loop.total_steps) for cfg in shorter] == [(7, 500)]
    atari = [compose() for _, compose in jobs("atari", "experiment=a2c_pong", "env.game=qbert", "seed=0")]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert [(cfg.env.game, cfg.threads, cfg.env.num_envs) for cfg in atari] == [("qbert", "auto", 16)]


def test_a_small_ready_study_runs_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = [
        "agent=q_learning,vpn2",
        "env=book",
        "seed=0",
        "loop.total_steps=400",
        "loop.eval_every=400",
        "loop.eval_episodes=1",
    ]
    arguments = ["train", "study=gridworlds", *tiny, "tracker=none", "device=cpu", "hydra/launcher=basic"]
    assert cli.main("rl-lab", "rl", COMMANDS, arguments) == 0
    (path,) = Path("runs/studies/gridworlds").glob("*/study.yaml")
    study = Study(path.parent)
    assert [job.state for job in study.jobs()] == ["finished"] * 2
    assert [study.label(n) for n in (0, 1)] == ["agent=q_learning", "agent=vpn2"]
    run = read_run(study.folder / study.job(1).folder)
    assert run.choices == {"agent": "vpn2", "env": "book"} and run.name == "vpn2_book"
    assert study.job(1).value[0] == "eval/return" and "eval/regret" in run.curves


# -- W&B's sweeps


def agents_command(path: Path, chosen: dict) -> list[str]:
    """What `wandb agent` would run for these values, by W&B's own code."""
    sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = OmegaConf.to_container(OmegaConf.load(path))
    known = {"program": [sweep["program"]], **sweeps.create_sweep_command_args({"args": chosen})}
    words = [
        known.get(w[2:-1], []) if w.startswith("${") else [w] for w in sweeps.create_sweep_command(sweep["command"])
    ]
    return [word for group in words for word in group]


def one_of_each(path: Path) -> dict:
    parameters = OmegaConf.to_container(OmegaConf.load(path)).get("parameters")
    return {
        k: {"value": p.get("value", p["values"][0] if "values" in p else p.get("min"))} for k, p in parameters.items()
    }


@pytest.mark.parametrize("path", sorted((CONF / "sweep").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_a_sweeps_agent_runs_composes(path):
    chosen = one_of_each(path)
    program, verb, *overrides = agents_command(path, chosen)
    assert (program, verb) == ("rl-lab", "train")
    cfg = check(composition.compose(CONF, "rl", overrides))
    assert {key: OmegaConf.select(cfg, key) for key in chosen if key != "experiment"} == {
        key: value["value"] for key, value in chosen.items() if key != "experiment"
    }


@pytest.mark.slow
def test_in_a_sweep_neither_groups_nor_settings_are_lost(tmp_path):
    """W&B locks the keys it sweeps: with `agent` among them its config would hold no setting of the agent."""
    config_util = pytest.importorskip("wandb.sdk.lib.config_util")
    chosen = {
        "agent": {"value": "q_learning"},
        "agent.optimizer.lr": {"value": 0.25},
        "loop.total_steps": {"value": 400},
    }
    config_util.save_config_file_from_dict(str(tmp_path / "parameters.yaml"), chosen)
    overrides = agents_command(CONF / "sweep/dqn_cartpole.yaml", chosen)[2:]
    environ = os.environ | {"WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "WANDB_MODE": "offline",
                            "WANDB_SWEEP_PARAM_PATH": str(tmp_path / "parameters.yaml")}  # fmt: skip
    command = [sys.executable, "-m", "rl_lab", "train", *overrides, "env=book", "device=cpu", "loop.eval_episodes=1"]
    assert subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True).returncode == 0
    (folder,) = tmp_path.glob("runs/wandb/offline-run-*")
    assert folder.name.endswith("-r1"), "the run that the sweep asked for"
    read = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)], capture_output=True, text=True
    )
    records = [json.loads(line) for line in read.stdout.splitlines()]
    config = next(record["run"] for record in records if record["type"] == "run")["config"]["update"]
    assert config["agent"] == "q_learning" and config["settings"]["agent"]["optimizer"]["lr"] == 0.25
