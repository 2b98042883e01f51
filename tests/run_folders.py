"""Run folders written by hand, for comparisons whose outcome is known."""

import json

import yaml


def write_run(folder, values=(0.0, 0.5, 1.0), *, metric="eval/return", name="dqn_four_rooms", seed=0, start=0,
              state="finished", choices=None, top=None, **agent):  # fmt: skip
    """A row for each value, ten steps and one second apart."""
    folder.mkdir(parents=True)
    config = {
        "name": name, "seed": seed, "choices": choices or {"agent": "dqn", "env": "four_rooms"},
        "agent": {"_target_": "rl_lab.agents.dqn.DQN", "gamma": 0.99, "optimizer": {"lr": 0.001}} | agent,
        "loop": {"agent": "${agent}", "total_steps": 20}, "device": "auto", "threads": 1,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config | (top or {}), sort_keys=False))
    rows = [{"step": start + 10 * i, "seconds": float(i), metric: v} for i, v in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if state:
        (folder / "summary.json").write_text(json.dumps({"name": name, "seed": seed, "state": state}))
    return folder
