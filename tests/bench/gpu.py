"""Ten minutes of a GPU: every path of CUDA checked, then measured. Needs torch; what else it lacks is in runs/gpu-wheels.

python tests/bench/gpu.py [--minutes 10] [--only graphs pong_ppo] [--out runs/gpu/results.csv]      make gpu
python tests/bench/gpu.py --rehearse      all of it, small, on a GPU that is not there (tests/pretend.py): make gpu-rehearse
python tests/bench/gpu.py --list

Each part is a process of its own that is ended when its seconds are over, so that neither a fault nor a hang takes the
rest along. Every figure is a row of the file as soon as it is known: part, name, value, unit, seconds since the start.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
import traceback
import zipfile
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WHEELS = ROOT / "runs/gpu-wheels"
GRACE = 1.5  # times its seconds that a part may take, for what it builds and compiles
LEAST = 20.0  # seconds, to import and build
# Its share of the seconds: what is checked comes first, then what is asked for most.
PARTS = {
    "agents": 4, "worlds": 1, "waits": 2, "graphs": 3, "bf16": 1, "models": 2, "plans": 1, "checkpoints": 1,
    "grid": 2, "collect": 2, "pong_a2c": 4, "pong_pqn": 4, "pong_ppo": 4, "vpn": 5, "million_states": 2, "pixelcnn": 3,
    "seeds": 2, "compiled": 6,
}  # fmt: skip


class Notes:
    """Rows of the file, each written at once, and shown."""

    def __init__(self, path: Path, part: str, begun: float):
        self.path, self.part, self.begun = path, part, begun

    def __call__(self, name: str, value: object, unit: str = "") -> None:
        shown = f"{value:.6g}" if isinstance(value, float) else value
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([self.part, name, shown, unit, f"{time.time() - self.begun:.1f}"])
        print(f"{self.part:<15}{name:<52}{shown!s:>14} {unit}", flush=True)


def carry_on() -> None:
    """What this machine lacks comes from the wheels: they are unpacked beside themselves, and looked into last."""
    place = WHEELS / "unpacked"
    for wheel in sorted(WHEELS.glob("*.whl")):
        if not (place / wheel.stem).exists():
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(place / wheel.stem)
        sys.path.append(str(place / wheel.stem))
    sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]


def of(part: str):
    from gpu_parts import checks, figures, pong

    return next(getattr(home, part) for home in (checks, figures, pong) if hasattr(home, part))


def one(part: str, seconds: float, note: Notes, small: bool) -> bool:
    """Whether it went well."""
    import torch

    torch.manual_seed(0)
    try:
        of(part)(torch.device("cuda"), seconds, note, small)
    except Exception as error:
        traceback.print_exc(limit=-6)
        note("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return False
    return True


def rehearse(parts: list[str], path: Path, begun: float) -> int:
    import pretend
    import torch

    torch.set_num_threads(1)
    well = 0
    for part in parts:
        start = time.time()
        with ExitStack() as stack:
            if part != "compiled":  # what the compiler would trace is the pretence
                stack.enter_context(pretend.gpu())
            fine = one(part, 0.2, Notes(path, part, begun), small=True)
        Notes(path, part, begun)("took", time.time() - start, "s")
        well += fine
    print(f"{well} of {len(parts)} parts went well")
    return int(well < len(parts))


def measure(parts: list[str], path: Path, begun: float, minutes: float) -> int:
    well, left = 0, 60 * minutes
    for number, part in enumerate(parts):
        left = begun + 60 * minutes - time.time()
        share = PARTS[part] / sum(PARTS[p] for p in parts[number:])
        seconds = max(left * share / GRACE - LEAST / 2, 1.0)
        command = [sys.executable, __file__, "--one", part, "--seconds", f"{seconds:.1f}", "--out", str(path)]
        note, start = Notes(path, part, begun), time.time()
        if left < LEAST:
            note("left out", "no time is left")
            continue
        try:
            subprocess.run(
                command, check=True, timeout=min(left, GRACE * seconds + LEAST), env=os.environ | {"BEGUN": str(begun)}
            )
            well += 1
        except subprocess.TimeoutExpired:
            note("ended", "its time was over")
        except subprocess.CalledProcessError as error:
            note("ended", f"with code {error.returncode}")
        note("took", time.time() - start, "s")
    print(f"{well} of {len(parts)} parts went well; the figures are in {path}")
    return int(well < len(parts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu/results.csv")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    carry_on()
    if arguments.list:
        from gpu_parts import stand_ins

        stand_ins.put()
        print("\n".join(f"{part:<15} {(of(part).__doc__ or '').splitlines()[0]}" for part in PARTS))
        return 0
    begun = float(os.environ.get("BEGUN", time.time()))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    from gpu_parts import stand_ins

    stand_ins.put()
    import torch

    if arguments.rehearse:
        return rehearse(arguments.only, arguments.out, begun)
    if not torch.cuda.is_available():
        print("torch sees no GPU here; --rehearse runs all of it, small, on one that is not there", file=sys.stderr)
        return 2
    if arguments.one:
        return int(not one(arguments.one, arguments.seconds, Notes(arguments.out, arguments.one, begun), small=False))
    note = Notes(arguments.out, "machine", begun)
    note("began", time.strftime("%Y-%m-%d %H:%M:%S"))
    note("device", torch.cuda.get_device_name())
    note(
        "torch",
        f"{torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}, {os.cpu_count()} cores",
    )
    return measure(arguments.only, arguments.out, begun, arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
