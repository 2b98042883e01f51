"""Training steps of our VAE and DCGAN beside PyTorch's examples and pythae, on equal nets and noise for images.

python tests/bench/images.py [--rounds 5] [--device cpu] [--pythae FOLDER]        one thread; medians of interleaved rounds
The examples are retold: loader by item, sigmoid and binary cross entropy, a number read every step; their own loader
(torchvision's, through Pillow) is slower than the one here. --pythae: where `pip install --no-deps --target FOLDER
pythae imageio cloudpickle` put it, for its dependencies fix older versions.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import hydra
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from gen_lab.data import Batches, Images
from gen_lab.models.gan.networks import dcgan_discriminator, dcgan_generator
from rl_lab.core.launching.composition import compose, conf_dir

BATCH, STEPS = 128, {"vae": 60, "dcgan": 3}
VAE, GAN = "model=vae_pytorch_example", "model=dcgan"  # of the sizes of the examples


class ByItem(Dataset):
    """Bytes to floats, an image at a time."""

    def __init__(self, pixels: Tensor):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[i].float() / 255


def endless(pixels: Tensor, device: torch.device) -> Iterator[Tensor]:
    while True:
        for x in DataLoader(ByItem(pixels), BATCH, shuffle=True, drop_last=True):
            yield x.to(device)


def noise(size: int) -> Images:
    pixels = torch.randint(256, (10_000, 1, size, size), dtype=torch.uint8)
    return Images("noise", pixels, pixels[:1], 256)


def ours(settings: str, data: Images, device: torch.device) -> Callable[[], object]:
    """The model that gen-lab trains with these settings."""
    model = hydra.utils.instantiate(compose(conf_dir(), "gen", settings.split()).model)(data.spec, device, 0)
    batches = Batches(data, BATCH, 0)
    return lambda: model.update(*batches.draw())


# -- 784-400-20-400-784


class ExampleVAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.code = nn.Linear(784, 400), nn.ModuleList(nn.Linear(400, 20) for _ in range(2))
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x.flatten(1)).relu()
        mu, log_var = (layer(h) for layer in self.code)
        return self.decoder(mu + (0.5 * log_var).exp() * torch.randn_like(mu)), mu, log_var


def vae_example(data: Images, device: torch.device) -> Callable[[], object]:
    net, batches = ExampleVAE().to(device), endless(data.train, device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> float:
        x = next(batches)
        optimizer.zero_grad()
        pixels, mu, log_var = net(x)
        loss = F.binary_cross_entropy(pixels, x.flatten(1), reduction="sum")
        loss = loss - 0.5 * (1 + log_var - mu.square() - log_var.exp()).sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def vae_pythae(data: Images, device: torch.device) -> Callable[[], object]:
    """Its model and default networks on the resident images; of its trainer only what a step needs."""
    from pythae.models import VAE as Theirs
    from pythae.models import VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.body, self.mean, self.log_var = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)

        def forward(self, x):
            h = self.body(x.flatten(1)).relu()
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())

        def forward(self, z):
            return ModelOutput(reconstruction=self.body(z).view(-1, 1, 28, 28))

    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    net, batches = Theirs(config, encoder=Encoder(), decoder=Decoder()).to(device), Batches(data, BATCH, 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = net({"data": data.spec.scaled(batches.draw()[0])}).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


# -- DCGAN, 32 x 32 grey, 64 channels


def dcgan_example(data: Images, device: torch.device) -> Callable[[], object]:
    """Equal nets, in contiguous memory; sigmoid and cross entropy, gradients of D in G's step too."""
    torch.manual_seed(0)
    g = dcgan_generator(data.spec, 100, channels=64).to(device)
    score = dcgan_discriminator(data.spec, channels=64, norm="batch", spectral=False)
    d = nn.Sequential(score, nn.Sigmoid()).to(device)
    g_optimizer, d_optimizer = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (g, d))
    batches, one, zero = (
        endless(data.train, device),
        torch.ones(BATCH, device=device),
        torch.zeros(BATCH, device=device),
    )

    def step() -> tuple[float, ...]:
        x = 2 * next(batches) - 1
        d.zero_grad()
        on_real = F.binary_cross_entropy(d(x), one)
        on_real.backward()
        fake = g(torch.randn(BATCH, 100, device=device))
        on_fake = F.binary_cross_entropy(d(fake.detach()), zero)
        on_fake.backward()
        d_optimizer.step()
        g.zero_grad()
        deceived = F.binary_cross_entropy(d(fake), one)
        deceived.backward()
        g_optimizer.step()
        return on_real.item(), on_fake.item(), deceived.item()

    return step


def clock(device: torch.device) -> float:
    """Seconds of this process on a CPU, which a busy machine does not stretch; of the wall on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def compared(steps: dict[str, Callable[[], object]], count: int, rounds: int, device: torch.device) -> None:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = clock(device)
            for _ in range(count):
                step()
            if turn:  # the first is for warming up
                times[name].append((clock(device) - start) / count)
    base = statistics.median(next(iter(times.values())))
    for name, spent in times.items():
        median = statistics.median(spent)
        print(f"{name:<34} {1e3 * median:>9.2f} ms {BATCH / median:>11,.0f} {base / median:>6.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pythae")
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {device}; batches of {BATCH}")
    print(f"{'a step':<34} {'':>12} {'images/s':>11}")
    data = noise(28).to(device)
    vaes = {"VAE as PyTorch's example": vae_example(data, device), "ours": ours(VAE, data, device)}
    if arguments.pythae:
        sys.path.insert(0, arguments.pythae)
        vaes["pythae"] = vae_pythae(data, device)
    if arguments.bf16:
        vaes["ours, bf16"] = ours(f"{VAE} model.bf16=true", data, device)
    compared(vaes, STEPS["vae"], arguments.rounds, device)
    data = noise(32).to(device)
    gans = {"DCGAN 32 x 32 as PyTorch's example": dcgan_example(data, device), "ours": ours(GAN, data, device)}
    if arguments.bf16:
        gans["ours, bf16"] = ours(f"{GAN} model.bf16=true", data, device)
    compared(gans, STEPS["dcgan"], arguments.rounds, device)


if __name__ == "__main__":
    main()
