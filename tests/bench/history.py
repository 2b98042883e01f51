"""The history of the benchmarks, tests/bench/results/history.csv, as a chart: each figure beside its first, over time.

python tests/bench/history.py [--out runs/bench/history.svg]      figures of one machine share a panel
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

HISTORY = Path(__file__).parent / "results/history.csv"


def histories(path: Path = HISTORY) -> dict[str, dict[str, list[tuple[str, float]]]]:
    """machine -> figure -> its dates and revisions with the ratio to the first, above 1 where it is faster."""
    found: dict[str, dict[str, list[tuple[str, float]]]] = defaultdict(lambda: defaultdict(list))
    first: dict[tuple[str, str], float] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            figure, value = f"{row['benchmark']}: {row['figure']}", float(row["value"])
            base = first.setdefault((row["machine"], figure), value)
            ratio = base / value if row["unit"] in ("s", "ms") else value / base
            found[row["machine"]][figure].append((f"{row['date']} {row['revision']}", ratio))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/history.svg"))
    arguments = parser.parse_args()
    machines = histories()
    figure = Figure(figsize=(9, 4 * len(machines)), layout="constrained")
    for axes, (machine, figures) in zip(
        figure.subplots(len(machines), squeeze=False).flat, machines.items(), strict=True
    ):
        for points in figures.values():
            axes.plot(*zip(*points, strict=True), marker="o", color="tab:blue", alpha=0.4)
        axes.set(title=machine, ylabel="times as fast as at first", yscale="log")
        axes.tick_params(axis="x", rotation=30)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out)
    print(f"{arguments.out}: {sum(map(len, machines.values()))} figures")


if __name__ == "__main__":
    main()
