"""The benchmarks of `make bench`, in at most half an hour: what they print, and its figures in a csv and in the history.

python tests/bench/all.py [--minutes 30] [--only collect vpn] [--out runs/bench] [--keep]

runs/bench/<name>.txt holds what a benchmark printed, runs/bench/figures.csv its figures. With --keep each figure is a
line of tests/bench/results/history.csv too, with date, revision and machine; history.py draws them over time.
"""

import argparse
import csv
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from rl_lab.core import provenance

HERE = Path(__file__).parent
HISTORY = HERE / "results/history.csv"
COLUMNS = "date", "revision", "machine", "load", "benchmark", "figure", "value", "unit"
NUMBER = r"([\d,]+(?:\.\d+)?)"


class Bench(NamedTuple):
    arguments: str
    unit: str
    line: str  # of its output: name, then value
    minutes: float = 2.0  # at most


BENCHES = {
    "gridworld": Bench("--rounds 3 --seconds 0.4", "M steps/s", rf"^(\S.{{31}}) *{NUMBER}\s", 3),
    "collect": Bench("--rounds 3 --seconds 0.3", "M actions/s", rf"^(\S.{{51}}) *{NUMBER}$", 3),
    "vpn": Bench("--envs 1 64 --depths 1 3 --seconds 1 --learning 16", "decisions/s", rf"^ +(\d+ +\d+) +{NUMBER} ", 3),
    "pixelcnn": Bench("--sizes 28 --batches 16", "s", rf"^(.+batch +\d+): .* cached +{NUMBER} s", 6),
    "images": Bench("--rounds 3", "ms", rf"^(\S.{{33}}) +{NUMBER} ms", 3),
    "planning": Bench("--rounds 1 --sides 10 100", "s", rf"^  (\S.{{41}}) *{NUMBER} s", 4),
    "replay": Bench("--capacity 100000 --peer 5000 --rounds 2", "batches of 32/s", rf"^((?:SB3|ours|sum|running).{{0,31}}?) {{2,}}{NUMBER} ", 3),
    "seeds": Bench("--seeds 16 --rounds 1", "steps/s", rf"^(agent=.{{74}}) *[\d,]+ +{NUMBER} ", 4),
    "atari": Bench("--rounds 1 --steps 2400", "steps/s", rf"^((?:sb3|ours) .{{13}}) *{NUMBER} ", 8),
}  # fmt: skip


def run(name: str, seconds: float, folder: Path) -> list[tuple[str, float]] | str:
    """Its figures, by name; or why there are none."""
    bench = BENCHES[name]
    command = [sys.executable, str(HERE / f"{name}.py"), *bench.arguments.split()]
    with (folder / f"{name}.txt").open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
        try:
            code = process.wait(min(seconds, 60 * bench.minutes))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            code = 0
            print(f"{name}: its time was over", flush=True)
    printed = (folder / f"{name}.txt").read_text()
    found = figures(bench, printed)
    return found or f"no figures; code {code}: {printed.strip().splitlines()[-1:] or 'it printed nothing'}"


def figures(bench: Bench, printed: str) -> list[tuple[str, float]]:
    """Of each line that is one: its name and the number, a later line of the same name under the name of its table."""
    return [
        (" ".join(name.split()), float(value.replace(",", ""))) for name, value in re.findall(bench.line, printed, re.M)
    ]


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.exists() else []
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=[*BENCHES], metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--keep", action="store_true", help="add the figures to the history")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = time.strftime("%Y-%m-%d"), provenance.revision() or "", machine()
    end, faults, rows = time.time() + 60 * arguments.minutes, 0, []
    for name in arguments.only:
        if (left := end - time.time()) < 5:
            print(f"{name}: left out, no time is left")
            continue
        found = run(name, left, arguments.out)
        if isinstance(found, str):
            faults += 1
            print(f"{name}: {found}", file=sys.stderr, flush=True)
            continue
        load = f"{os.getloadavg()[0]:.1f}"  # of the machine in the last minute, this process included
        for figure, value in found:
            rows.append((*about, load, name, figure, f"{value:g}", BENCHES[name].unit))
            print(f"{name:<11}{figure:<55}{value:>12,.2f} {BENCHES[name].unit}", flush=True)
        for path in [arguments.out / "figures.csv", *[HISTORY] * arguments.keep]:
            write(path, rows if path != HISTORY else rows[-len(found) :], anew=path != HISTORY)
    return int(faults > 0)


def write(path: Path, rows: list, anew: bool) -> None:
    begin = anew or not path.exists()
    with path.open("w" if anew else "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS] * begin + rows)


if __name__ == "__main__":
    sys.exit(main())
