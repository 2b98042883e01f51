"""Images a second in training and in drawing, and memory, of each recipe of real images; each in a process of its own.

python tests/bench/recipes.py [names of experiments] [--seconds 20] [--threads 1] [--root FOLDER] [--csv FILE]

Updates are those of the recipe, of its batches and in its precision, by one thread unless --threads says otherwise, and
so is a batch of 64 drawn samples, in float32; a model of two phases, such as a VQ-VAE, is in its first. Memory is the
most that the process held.
"""

import argparse
import csv
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gen_lab.data import Batches
from rl_lab.core import conf_dir, room
from rl_lab.core.launching.building import built
from rl_lab.core.launching.composition import compose

RECIPES = ("vae_mnist", "vae_conv_mnist", "iwae_mnist", "pixelcnn_mnist", "gated_pixelcnn_mnist", "vae_fashion", "vqvae_fashion",
           "dcgan_fashion", "wgan_gp_fashion", "gated_pixelcnn_fashion", "vqvae_cifar10", "sngan_cifar10",
           "gated_pixelcnn_cifar10", "pixelcnnpp_cifar10")  # fmt: skip
SAMPLES, WARM = 64, 3  # images drawn at once; updates before the clock
HEAD = "recipe", "batch", "ms_an_update", "images_a_second", "seconds_of_64_samples", "peak_gb"


def one(name: str, settings: list[str], seconds: float) -> list[Any]:
    room.keep_freed_memory()
    words = [f"experiment={name}", *settings]
    (data, make), seed = built("gen", words, "data", "model")
    size = compose(conf_dir(), "gen", words).loop.batch_size
    model, batches = make(data.spec, device=torch.device("cpu"), seed=seed), Batches(data, size, seed)
    for _ in range(WARM):
        model.update(*batches.draw())
    updates, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        model.update(*batches.draw())
        updates += 1
    start = time.process_time()
    with torch.no_grad():
        model.sample(SAMPLES, torch.Generator().manual_seed(0))
    drawing, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = 1e3 * spent / updates, size * updates / spent, drawing, peak
    return [name, size, *(f"{x:.2f}" if x < 10 else f"{x:.0f}" for x in figures)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=RECIPES)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the processor, of updates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", help="where the data sets are, if not in data.root's own place")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--one", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(*one(arguments.names[0], [f"data.root={arguments.root}"] if arguments.root else [], arguments.seconds))
        return
    rows = []
    print(("{:26}" + "{:>23}" * 5).format(*HEAD))
    for name in arguments.names:
        command = [sys.executable, __file__, name, "--one", f"--seconds={arguments.seconds}",
                   f"--threads={arguments.threads}", *([f"--root={arguments.root}"] if arguments.root else [])]  # fmt: skip
        rows.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1].split())
        print(("{:26}" + "{:>23}" * 5).format(*rows[-1]), flush=True)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEAD, *rows])


if __name__ == "__main__":
    main()
