"""A deeper classifier for large labelled sets, trained on all of their training images in minutes of one core."""

import contextlib
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen_lab.data.cache import cache
from gen_lab.data.images import Batches, Images
from gen_lab.judging.seeing import AT_ONCE, FEATURES, Seen
from gen_lab.types import Spec
from rl_lab.core import checkpoint, precision
from rl_lab.core.learner import Decay, descend
from rl_lab.core.randomness import generator, seeded, stream
from rl_lab.core.schedules import share

BATCH, RATE, MOMENTUM, DECAY, SMOOTHED = 128, 0.1, 0.9, 5e-4, 0.1
GREY, COLOUR = 7, 14  # epochs
WARM = 0.15  # of the updates
SHIFT = 2, 4  # pixels that a grey image is moved by at most, and one of colours
TOLD = 50  # updates


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    """x + two blocks of it."""

    def __init__(self, maps: int):
        super().__init__()
        self.f = nn.Sequential(block(maps, maps), block(maps, maps))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Deep(nn.Module):
    """Blocks of 3 x 3 convolutions that halve the image three times, photographs with residual ones between (He et
    al., 2016), then a layer of features, standardised, and one of the classes.

    Its features are bounded on one side, as those of the small net are.
    """

    mean: Tensor  # [F]
    scale: Tensor  # [F]
    name: str

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec, colours = spec, spec.shape[0]
        deeper = (lambda maps: Residual(maps)) if colours > 1 else (lambda maps: nn.Identity())
        self.body = nn.Sequential(
            block(colours, 32), nn.MaxPool2d(2),
            block(32, 64), deeper(64), nn.MaxPool2d(2),
            block(64, 128), deeper(128), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
            nn.Linear(512, FEATURES), nn.ELU(),
        )  # fmt: skip
        self.out = nn.Linear(FEATURES, spec.classes)
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Seen:
        raw = self.body(self.spec.centred(x).to(memory_format=torch.channels_last))
        return Seen((raw - self.mean) / self.scale, self.out(raw).argmax(1))

    @torch.no_grad()
    def standardise(self, images: Images) -> None:
        """Makes the features of the test images, which it has not learned from, have mean 0 and variance 1."""
        raw = torch.cat([self(x.to(images.device)).features for x in images.test.split(AT_ONCE)]).double()
        self.mean.copy_(raw.mean(0))
        self.scale.copy_(raw.std(0).clamp(min=1e-6))

    def ready(self) -> "Deep":
        """Named by the hash of parameters and statistics; from here on it learns no more."""
        state = b"".join(x.cpu().numpy().tobytes() for x in self.state_dict().values())
        self.name = hashlib.sha256(state).hexdigest()[:8]
        return self.eval().requires_grad_(False)


def classifier(images: Images, seed: int, root: str | None, told: Callable[[int, int], None]) -> Deep:
    """A net that has learned the labels of `images.train`, kept on disk under `root` or beside the data.

    Equal data make an equal net on one machine; on another, rounding makes it another one, and its name tells."""
    with seeded(seed, images.device):
        net = Deep(images.spec).to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    path = cache(root or images.root) / "judges" / f"{_key(net, images, seed)}.pt"
    if path.exists():
        net.load_state_dict({k: x for k, x in checkpoint.read(path).items() if k in net.state_dict()})
        return net.ready()
    learn(net, images._replace(flipped=images.spec.shape[0] > 1), seed, told)
    net.eval().standardise(images)
    with contextlib.suppress(OSError):  # what cannot be kept is learned again
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write(path, net.state_dict(), alone=False)
    return net.ready()


def learn(net: Deep, images: Images, seed: int, told: Callable[[int, int], None]) -> None:
    """By stochastic gradient descent with Nesterov's momentum, its rate up for a while and then down to 0 as a cosine;
    images shifted a little and, of photographs, mirrored.
    """
    batches = Batches(images, BATCH, stream(seed, "judge's batches"))
    rng = generator(stream(seed, "judge's shifts"), images.device)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in net.parameters() if p.ndim > 1]},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)
    rates, total = Decay(optimizer), (COLOUR if images.spec.shape[0] > 1 else GREY) * len(images.train) // BATCH
    fast = precision.has_bf16(images.device)
    net.train()
    for i in range(total):
        rates.scale(share("cosine", i, total, warm_up=round(WARM * total)))
        x, label = batches.draw()
        assert label is not None  # `features.classifier` has seen to it
        moved = shifted(net.spec.centred(x), rng).to(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=fast):
            logits = net.out(net.body(moved))
        descend(optimizer, F.cross_entropy(logits.float(), label, label_smoothing=SMOOTHED))
        if i % TOLD == 0:
            told(i, total)


def shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image [B, C, H, W] moved by up to a few pixels up or down, left or right; what it leaves is as its edge."""
    (b, _, h, w), most = x.shape, SHIFT[x.shape[1] > 1]
    padded = F.pad(x, (most,) * 4, mode="replicate")
    dy, dx = torch.randint(2 * most + 1, (2, b), generator=rng, device=x.device)
    rows = dy[:, None] + torch.arange(h, device=x.device)  # [B, H]
    columns = dx[:, None] + torch.arange(w, device=x.device)
    each = torch.arange(b, device=x.device)
    return padded[each[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _key(net: Deep, images: Images, seed: int) -> str:
    """A digest of everything that shapes what it learns."""
    recipe = BATCH, RATE, MOMENTUM, DECAY, SMOOTHED, WARM, GREY, COLOUR, SHIFT, seed
    digest = hashlib.sha256(repr((str(net), recipe, images.resampled, images.device.type)).encode())
    for x in images.train, images.train_labels, images.test:
        digest.update(b"" if x is None else x.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
