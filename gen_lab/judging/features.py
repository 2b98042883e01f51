"""What images are compared by: features of a small net, trained on images that no model trains on nor is held to.

A net for features is a callable of levels [B, C, H, W], built from `Images`, whose `train` it may learn from.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen_lab.data.cache import cache
from gen_lab.data.images import CPU, Batches, Images
from gen_lab.judging import deep
from gen_lab.judging.seeing import AT_ONCE, FEATURES, Features, NoLabels, Seen, ToldFn
from gen_lab.types import Spec
from rl_lab.core import checkpoint
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Natural, Place

ACTIVATIONS, WEIGHTS, GRADIENTS = GRIDS = 2.0**-10, 2.0**-16, 2.0**-20  # what they are multiples of as the net learns
BETAS = 0.9, 0.999
KEPT_FROM = 1_000  # images to learn from: on fewer the net learns anew in seconds
MANY, LEAST = 20_000, 16  # images that teach a deeper net, and pixels of their sides


class OnGrid(torch.autograd.Function):
    """The nearest multiple of `grid`; its gradient, of `slope`."""

    @staticmethod
    def forward(ctx, x: Tensor, grid: float, slope: float) -> Tensor:
        ctx.slope = slope
        return (x / grid).round_().mul_(grid)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient / ctx.slope).round_().mul_(ctx.slope), None, None


class Net(nn.Module):
    """Convolutions that halve an image until it is 4 wide, and a layer of features, standardised.

    It learns in float64 from numbers that are rounded to a few binary places after each layer, on the way back too: its
    sums have no rounding of their own, so that neither their order, nor threads, nor the library that takes them can
    change a bit. Equal data make an equal net on every machine; its features are computed in float32.

    Its features are bounded on one side, because otherwise a little noise moves them more than half of the classes do.
    """

    mean: Tensor  # [F]
    scale: Tensor  # [F]
    name: str

    def __init__(self, spec: Spec, seed: int):
        super().__init__()
        self.spec, (channels, height, width) = spec, spec.shape
        shapes: list[tuple[int, ...]] = [(32, channels, 3, 3)]
        maps, size = 32, min(height, width)
        while size > 4:
            shapes.append((64, maps, 3, 3))
            maps, size = 64, -(-size // 2)
        shapes.append((FEATURES, 4 * maps))
        shapes += [(spec.classes, FEATURES)] * bool(spec.classes)
        rng = np.random.Generator(np.random.PCG64(seed))
        self.weights, self.biases, self.classes = nn.ParameterList(), nn.ParameterList(), spec.classes
        for shape in shapes:
            reach = 1 / math.sqrt(math.prod(shape[1:]))
            for kept, full in (self.weights, shape), (self.biases, shape[:1]):
                kept.append(nn.Parameter(torch.from_numpy(reach * (2 * rng.random(full) - 1))))
        self.register_buffer("mean", torch.zeros(FEATURES, dtype=torch.double))
        self.register_buffer("scale", torch.ones(FEATURES, dtype=torch.double))

    def layer(self, i: int, x: Tensor) -> Tensor:
        weight, bias = (rounded(p[i], WEIGHTS) for p in (self.weights, self.biases))
        if weight.ndim == 2:
            return rounded(F.linear(x, weight, bias), ACTIVATIONS)
        return rounded(convolve(x, weight, bias, 1 if i == 0 else 2), ACTIVATIONS).relu()

    def body(self, x: Tensor) -> Tensor:
        """Features [B, F] of levels [B, C, H, W], not yet standardised."""
        x = 2 * self.spec.scaled(x).to(self.mean.dtype) - 1
        x, last = rounded(x, ACTIVATIONS), len(self.weights) - bool(self.classes) - 1
        for i in range(last):
            x = self.layer(i, x)
        x = self.layer(last, rounded(F.adaptive_avg_pool2d(x, 2), ACTIVATIONS).flatten(1))
        below = x.clamp(max=0)
        return rounded(x.clamp(min=0) + below / (1 - below), ACTIVATIONS)  # an ELU's shape, of exact operations alone

    def logits(self, x: Tensor) -> Tensor:
        """[B, K] of the classes."""
        return self.layer(len(self.weights) - 1, self.body(x))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Seen:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            raw = self.body(x)
            classes = self.layer(len(self.weights) - 1, raw).argmax(1) if self.classes else None
        return Seen((raw - self.mean) / self.scale, classes)

    @torch.no_grad()
    def standardise(self, images: Images) -> None:
        """Makes each feature of `images.train` have mean 0 and variance 1."""
        raw = torch.cat([self.body(x) for x in images.train.split(AT_ONCE)])
        count, total = len(raw), raw.sum(0)  # on a grid: exact, as the sum of squares is
        variance = (raw.square().sum(0) - total * total / count) / max(1, count - 1)
        self.mean.copy_(total / count)
        self.scale.copy_(roots(variance).where(variance > 0, 1.0))

    @property
    def hash(self) -> str:
        """A hash of parameters and statistics, 8 hexadecimal digits."""
        state = b"".join(x.cpu().numpy().tobytes() for x in self.state_dict().values())
        return hashlib.sha256(state).hexdigest()[:8]

    @torch.no_grad()
    def named(self, kind: str, device: torch.device) -> "Net":
        for p in self.parameters():
            p.copy_((p / WEIGHTS).round() * WEIGHTS)
        self.float()
        self.name = kind + self.hash
        return self.eval().requires_grad_(False).to(device)


def rounded(x: Tensor, grid: float) -> Tensor:
    """In float64; float32 is left as it is."""
    return OnGrid.apply(x, grid, GRADIENTS) if x.dtype == torch.double else x


def convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """3 x 3 with a border of zeros; in float64 as a product of matrices, for torch's own convolution is slow there."""
    if x.dtype != torch.double:
        return F.conv2d(x, weight, bias, stride, 1)
    h, w = (-(-size // stride) for size in x.shape[2:])
    patches = F.unfold(x, 3, padding=1, stride=stride)  # [B, 9 I, h w]
    return (weight.flatten(1) @ patches + bias[:, None]).unflatten(2, (h, w))


def roots(x: Tensor) -> Tensor:
    """Square roots by NumPy, whose last digit is the right one everywhere."""
    return torch.from_numpy(np.sqrt(x.clamp(min=0).numpy()))


def classifier(
    images: Images, *, updates: Count, seed: Natural, root: Place | None, told: ToldFn = lambda done, total: None
) -> Features:
    """A net that has learned the labels, kept on disk if it was slow: a deeper one of many images, of few a small one,
    always on the CPU. Raises NoLabels.
    """
    if not images.classes or images.train_labels is None:
        raise NoLabels(f"judge=classifier needs labels, and {images.name} has no labels; use judge=random")
    if is_large(images):
        return deep.classifier(images, seed, root, told)
    local = images.to(CPU)
    net = Net(images.spec, seed)
    path = cache(root or images.root) / "judges" / f"{_key(net, local, updates, seed)}.pt"
    if path.exists():
        net.float().load_state_dict({k: x for k, x in checkpoint.read(path).items() if k in net.state_dict()})
        return net.named("", images.device)
    with one_thread():
        learn(net, local, updates, seed)
        net.standardise(local)
    net.named("", CPU)
    if len(images.train) >= KEPT_FROM:
        with contextlib.suppress(OSError):  # what cannot be kept is learned again
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write(path, net.state_dict(), alone=False)
    return net.to(images.device)


def is_large(images: Images) -> bool:
    """Whether there are enough images for a deeper net."""
    return len(images.train) >= MANY and images.train_labels is not None and min(images.spec.shape[1:]) >= LEAST


def random(images: Images, *, seed: Natural, told: ToldFn | None = None) -> Net:
    """A net of random weights: fair without labels, but coarse."""
    net = Net(images.spec._replace(classes=0), seed)
    with one_thread():
        net.standardise(images.to(CPU))
    return net.named("random-", images.device)


def learn(net: Net, images: Images, updates: int, seed: int, rate: float = 2e-3) -> None:
    """Down the squared distance from the logits to 1 of the label and 0 of the others, by Adam (Kingma & Ba, 2015),
    each of whose operations stands alone, so that no two are fused into one that is rounded once.
    """
    batches, parameters = Batches(images, min(64, len(images.train)), seed), [*net.parameters()]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    (b1, b2), (left1, left2) = BETAS, (1.0, 1.0)
    for _ in range(updates):
        x, label = batches.draw()
        assert label is not None  # `classifier` has seen to it
        off = net.logits(x) - F.one_hot(label, images.classes)
        gradients = torch.autograd.grad((off * off).sum(), parameters)
        left1, left2 = left1 * b1, left2 * b2
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(b1).add_((1 - b1) * g)
                v.mul_(b2).add_((1 - b2) * (g * g))
                p.sub_((m / (1 - left1)) / (roots(v / (1 - left2)) + 1e-8) * rate)


def _key(net: Net, images: Images, *settings: object) -> str:
    """A digest of everything that shapes what a net learns: its layers, its images and labels, its settings."""
    digest = hashlib.sha256(repr(([p.shape for p in net.weights], settings, GRIDS, BETAS)).encode())
    for x in images.train, images.train_labels:
        digest.update(b"" if x is None else x.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A net this small learns fastest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Inception:
    """The features of the published FID and KID, 2,048 numbers that are left as they are.

    torch-fidelity fetches their weights (95 MB) once. Raises UserError where it, a torchvision that fits torch, or the
    weights are not to be had.
    """

    name = "inception"

    def __init__(self, spec: Spec, device: torch.device):
        self.spec = spec
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as extractor
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
            raise UserError(
                "judge=inception needs torch-fidelity and a torchvision that fits torch; "
                f"pip install 'rl-lab[fid]' ({error})"
            ) from error
        weights = Path(torch.hub.get_dir()) / "checkpoints" / extractor.URL_INCEPTION_V3.rpartition("/")[2]
        try:
            net = extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            raise UserError(
                f"judge=inception could not fetch its weights ({error}); put {extractor.URL_INCEPTION_V3} at {weights}"
            ) from error
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise UserError(f"{weights} is damaged; delete it, and judge=inception fetches it again") from error
        self.net = net.to(device)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Seen:
        greys = (255 * self.spec.scaled(x)).round().to(torch.uint8)
        (features,) = self.net(greys.expand(-1, 3, -1, -1))
        return Seen(features, None)


def inception(images: Images, told: ToldFn | None = None) -> Inception:
    """Learns nothing from the images. Raises UserError where torch-fidelity is not installed."""
    return Inception(images.spec, images.device)
