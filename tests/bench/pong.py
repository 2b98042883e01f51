"""Seconds and steps to a score on Pong and other games, through the command line, seeds and contenders in turns.

python tests/bench/pong.py pong [a2c_fast_pong ...] [--seeds 0 1 2 3 4] [--set threads=1 ...] [--out runs/pong_bench]
python tests/bench/pong.py --read runs/pong_bench/*      tabulates run folders that are there already
python tests/bench/pong.py boxing --scores 12.1          of another game
python tests/bench/pong.py pong --ablations --scores 0 10        what the preset rests on, one setting at a time

A score is the mean training return of the last 20 games (episode/last_20); the seconds are those of the run, from its
first step, with everything it does in between. `--csv FILE` writes a row for each row of metrics that has a score, and
one for the last evaluation.
"""

import argparse
import csv
import json
import statistics
import subprocess
from pathlib import Path

ABLATIONS = {
    "preset": [],
    "raw": ["agent.network.standardise=false"],
    "px42": ["env.height=42", "env.width=42"],
    "px84": ["env.height=84", "env.width=84"],
    "nature": ["agent.network.layers=[[32,8,4],[64,4,2],[64,3,1]]", "agent.network.hidden=[512]"],
    "mb4": ["agent.minibatches=4"],
    "mb16": ["agent.minibatches=16"],
}
UNTIL_10 = ["loop.stop_at=10", "loop.total_steps=300_000", "loop.eval_episodes=1", "loop.eval_drawn=0",
            "loop.eval_env.num_envs=1"]  # fmt: skip


def train(experiment: str, seed: int, out: Path, settings: list[str], cell: str = "") -> Path:
    folder = out / f"{cell or experiment}_seed{seed}"
    command = ["rl-lab", "train", f"experiment={experiment}", f"seed={seed}", "tracker=none", "device=cpu"]
    subprocess.run([*command, f"hydra.run.dir={folder}", *settings], check=True)
    return folder


def read(folder: Path) -> tuple[dict, list[dict]]:
    summary = json.loads((folder / "summary.json").read_text())
    if (cell := folder.name.removesuffix(str(summary["seed"])).removesuffix("_seed")) in ABLATIONS:
        summary["name"] += f" {cell}"
    return summary, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def reached(rows: list[dict], scores: list[float]) -> dict[float, tuple[float, int] | None]:
    """Seconds and steps to each score; None where it was not reached."""
    known = [r for r in rows if "episode/last_20" in r]
    return {
        score: next(((r["seconds"], r["step"]) for r in known if r["episode/last_20"] >= score), None)
        for score in scores
    }


def table(folders: list[Path], scores: list[float]) -> None:
    print(f"{'who':24}{'seed':>5}", *(f"{f's to {score:g}':>12}{'steps':>10}" for score in scores), end="")
    print(f"{'greedy':>9}{'drawn':>7}{'steps/s':>9}  state")
    seconds: dict[str, list[float]] = {}
    for folder in folders:
        summary, rows = read(folder)
        found = reached(rows, scores)
        cells = (f"{s[0]:12.0f}{s[1]:10,}" if s else f"{'-':>12}{'-':>10}" for s in found.values())
        last = rows[-1]
        learned = [r for r in rows if "eval/return" not in r][-1]
        speed = learned["step"] / learned["seconds"]
        print(f"{summary['name']:24}{summary['seed']:5}", *cells, end="")
        print(f"{last.get('eval/return', float('nan')):9.1f}{last.get('eval/drawn_return', float('nan')):7.1f}", end="")
        print(f"{speed:9,.0f}  {summary['state']}")
        if last_of := found[scores[-1]]:
            seconds.setdefault(summary["name"], []).append(last_of[0])
    for name, all_seconds in seconds.items():
        print(f"{name}: {scores[-1]:g} in {len(all_seconds)} runs, {min(all_seconds):.0f} to {max(all_seconds):.0f} s, "
              f"median {statistics.median(all_seconds):.0f} s")  # fmt: skip


def write(path: Path, folders: list[Path]) -> None:
    names = ["seconds", "episode/last_20", "eval/return", "eval/drawn_return"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "seed", "step", *names])
        for folder in folders:
            summary, rows = read(folder)
            for row in rows:
                if names[1] in row or names[2] in row:
                    writer.writerow([summary["name"], summary["seed"], row["step"], *(row.get(x, "") for x in names)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--scores", type=float, nargs="+", default=[0, 10, 18], help="mean returns of 20 games")
    parser.add_argument("--set", nargs="*", default=[], help="settings of every run")
    parser.add_argument(
        "--ablations", action="store_true", help="other settings one at a time, until 10 or 300,000 steps"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/pong_bench"))
    parser.add_argument("--read", type=Path, nargs="*", default=[])
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    folders = [x for x in arguments.read if (x / "metrics.jsonl").exists()]
    for seed in arguments.seeds:
        for name in arguments.experiments:
            cells = {cell: UNTIL_10 + own for cell, own in ABLATIONS.items()} if arguments.ablations else {"": []}
            folders += [train(name, seed, arguments.out, own + arguments.set, cell) for cell, own in cells.items()]
    table(folders, arguments.scores)
    if arguments.csv:
        write(arguments.csv, folders)


if __name__ == "__main__":
    main()
