"""Drawing images cached against naive, and training steps beside pytorch-generative's PixelCNN on equal nets.

python tests/bench/pixelcnn.py [--sizes 28 84] [--batches 16 64] [--peer FOLDER] [--device cpu] [--bf16]    one thread.
A naive drawing is one whole forward pass a pixel: a few are timed, and multiplied. That both draw the same images is
checked in float64 on 12 x 12. --peer: a copy of github.com/EugenHotaj/pytorch-generative, which pip does not have.
"""

import argparse
import importlib
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hydra
import torch
from torch import nn
from torch.nn import functional as F

from gen_lab.models.gated_pixelcnn import GatedPixelCNN
from gen_lab.models.pixelcnn import PixelCNN
from gen_lab.models.pixelcnnpp.network import PixelCNNPP
from gen_lab.networks.causal import sampling
from gen_lab.networks.causal.heads import LogisticMixture, softmax
from gen_lab.types import Spec
from rl_lab.core.launching.composition import compose, conf_dir

MIXTURE = partial(LogisticMixture, mixtures=10)
NETWORKS = {
    "PixelCNN h32 n5": (partial(PixelCNN, channels=32, blocks=5, head_channels=32), 2, softmax),
    "Gated p32 n7": (partial(GatedPixelCNN, channels=32, blocks=6, head_channels=32), 2, softmax),
    "PixelCNN++ f32 n2": (partial(PixelCNNPP, channels=32, blocks=2, resolutions=3, dropout=0.5), 256, MIXTURE),
}


def clock(device: torch.device) -> float:
    """Seconds of this process on a CPU, which a busy machine does not stretch; of the wall on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    start = clock(device)
    call()
    return clock(device) - start


def built(network: Callable, levels: int, head: Callable, size: int) -> tuple[nn.Module, object]:
    spec = Spec((1, size, size), levels)
    torch.manual_seed(0)
    return network(spec, head(spec)).eval(), head(spec)


def drawn(net: nn.Module, head, count: int, method: str) -> torch.Tensor:
    rng = torch.Generator(next(net.parameters()).device).manual_seed(0)
    *_, x = sampling.draw(net, head, count, rng, method=method)
    return x


def identical(kind: tuple) -> bool:
    net, head = built(*kind, 12)
    torch.set_default_dtype(torch.float64)
    one, other = (drawn(net.double(), head, 2, method) for method in ("naive", "cached"))
    torch.set_default_dtype(torch.float32)
    return torch.equal(one, other)


@torch.inference_mode()
def drawing(kind: tuple, size: int, batch: int, device: torch.device) -> tuple[float, float]:
    """Seconds for `batch` images: naive and cached, the best of a few each, in turns."""
    net, head = built(*kind, size)
    net = net.to(device, memory_format=torch.channels_last)
    x = torch.randint(2, (batch, 1, size, size), device=device, dtype=torch.uint8)
    net(x)
    naive, cached = [], []
    for _ in range(3 if size < 50 else 1):
        naive.append(min(seconds(lambda: net(x), device) for _ in range(2)) * size * size)
        cached.append(seconds(lambda: drawn(net, head, batch, "cached"), device))
    return min(naive), min(cached)


def peer(folder: Path) -> nn.Module:
    """Its PixelCNN of the size of ours, read without the package's own imports (torchvision, tensorboard)."""
    for name in "pytorch_generative", "pytorch_generative.models":
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    theirs = importlib.import_module("pytorch_generative.models.autoregressive.pixel_cnn")
    return theirs.PixelCNN(n_residual=5, residual_channels=32, head_channels=32)


def their_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    """What its trainer does with a batch, on a batch that is already there."""
    optimizer.zero_grad()
    logits = model(x)
    F.binary_cross_entropy_with_logits(logits.flatten(1), x.flatten(1), reduction="none").sum(1).mean().backward()
    optimizer.step()


def training(folder: Path | None, bf16: bool, device: torch.device, batch: int = 128, rounds: int = 9) -> None:
    """Median seconds a step, the variants in turns."""
    x = torch.bernoulli(torch.full((batch, 1, 28, 28), 0.5, device=device))
    given = "model=pixelcnn", "model.network.head_channels=32"
    ours = {name: hydra.utils.instantiate(compose(conf_dir(), "gen", [*given, f"model.bf16={'bf16' in name}"]).model)(
                Spec((1, 28, 28), 2), device, 0)
            for name in ["ours, float32"] + ["ours, bf16"] * bf16}  # fmt: skip
    steps = {name: partial(model.update, x) for name, model in ours.items()}
    if folder:
        model = peer(folder).to(device)
        steps["pytorch-generative"] = partial(their_step, model, torch.optim.Adam(model.parameters(), lr=1e-3), x)
        print("parameters:", *(sum(p.numel() for p in m.parameters()) for m in (ours["ours, float32"].network, model)))
    times = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            spent = seconds(step, device)
            times[name] += [spent] if i else []
    for name, spent in times.items():
        print(f"training step, batch {batch}, {name:20} {1e3 * statistics.median(spent):8.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 84])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    print(f"{platform.machine()}, torch {torch.__version__}, {device}")
    for name, kind in NETWORKS.items():
        print(f"{name}: identical images {identical(kind)}")
        for size in arguments.sizes:
            for batch in arguments.batches if size < 50 else arguments.batches[:1]:
                naive, cached = drawing(kind, size, batch, device)
                print(f"{name:18} {size} x {size}, batch {batch:3}: naive {naive:9.1f} s, cached {cached:6.2f} s, "
                      f"{naive / cached:7.0f} times", flush=True)  # fmt: skip
    training(arguments.peer, arguments.bf16, device)


if __name__ == "__main__":
    main()
