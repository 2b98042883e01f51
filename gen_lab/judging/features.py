"""What images are compared by: features of a small net, trained on images that no model trains on nor is held to.

A net for features is a callable of images [B, C, H, W] in [0, 1], built from `Images` of which it may learn `train`.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen_lab.data.cache import cache
from gen_lab.data.images import CPU, Batches, Images
from gen_lab.types import Spec
from rl_lab.core import checkpoint
from rl_lab.core.errors import UserError
from rl_lab.core.learner import descend, seeded
from rl_lab.core.settings import Count, Natural

FEATURES = 64
AT_ONCE = 256  # images
KEPT_FROM = 1_000  # images to learn from: on fewer the net learns anew in seconds


class Seen(NamedTuple):
    """What a net makes of N images."""

    features: Tensor  # [N, F] float32
    classes: Tensor | None  # [N], as a classifier sees them


class Features(Protocol):
    name: str  # with the hash of the net's parameters: distances under different ones do not compare

    def __call__(self, x: Tensor) -> Seen: ...


class NoLabels(UserError):
    """A classifier is asked for, of images without labels."""


class Net(nn.Module):
    """Convolutions that halve an image until it is 4 wide, and a layer of features, standardised.

    Its ELU bounds the features on one side, lest the net see more in a little noise than in half of the classes.
    """

    def __init__(self, spec: Spec, seed: int):
        super().__init__()
        channels, height, width = spec.shape
        with seeded(seed, CPU):
            layers, maps, size = [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()], 32, min(height, width)
            while size > 4:
                layers += [nn.Conv2d(maps, 64, 3, stride=2, padding=1), nn.ReLU()]
                maps, size = 64, -(-size // 2)
            layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * maps, FEATURES), nn.ELU()]
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(FEATURES, spec.classes) if spec.classes else None
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("scale", torch.ones(FEATURES))

    def logits(self, x: Tensor) -> Tensor:
        """[B, K] of the classes."""
        return self.head(self.body(2 * x - 1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Seen:
        raw = self.body(2 * x - 1)
        return Seen((raw - self.mean) / self.scale, self.head and self.head(raw).argmax(1))

    def standardise(self, images: Images) -> None:
        """From here on the features of `images.train` have mean 0 and variance 1, each by itself."""
        features = seen(self, map(images.scaled, images.train.split(AT_ONCE))).features.double()
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0))

    @property
    def hash(self) -> str:
        """Of parameters and statistics, 8 hexadecimal digits."""
        state = b"".join(x.cpu().numpy().tobytes() for x in self.state_dict().values())
        return hashlib.sha256(state).hexdigest()[:8]

    def named(self, kind: str, device: torch.device) -> "Net":
        self.name = kind + self.hash
        return self.eval().requires_grad_(False).to(device)


def classifier(images: Images, *, updates: Count = 300, seed: Natural = 0, root: str | None = None) -> Net:
    """A net that has learned the labels, always on one thread of the CPU; kept on disk under `root` if it was slow.

    Raises NoLabels.
    """
    if not images.classes:
        raise NoLabels(f"judge=classifier is impossible: {images.name} has no labels; use judge=random")
    local = images.to(CPU)
    net = Net(images.spec, seed)
    path = cache(root) / "judges" / f"{_key(net, local, updates, seed)}.pt"
    if path.exists():
        net.load_state_dict({k: x for k, x in checkpoint.read(path).items() if k in net.state_dict()})
        return net.named("", images.device)
    with one_thread():
        learn(net, local, updates, seed)
        net.standardise(local)
    if len(images.train) >= KEPT_FROM:
        with contextlib.suppress(OSError):  # what cannot be kept is learned again
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write(path, net.state_dict())
    return net.named("", images.device)


def random(images: Images, *, seed: Natural = 0) -> Net:
    """A net of random weights: a fair ruler without labels, though a coarse one."""
    local = images.to(CPU)
    net = Net(images.spec._replace(classes=0), seed)
    with one_thread():
        net.standardise(local)
    return net.named("random-", images.device)


def learn(net: Net, images: Images, updates: int, seed: int) -> None:
    batches = Batches(images, min(64, len(images.train)), seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(updates):
        x, label = batches.draw()
        descend(optimizer, F.cross_entropy(net.logits(x), label))


def _key(net: Net, images: Images, *settings: object) -> str:
    """Of all that shapes what a net learns: its layers, its images and labels, its settings."""
    digest = hashlib.sha256(repr((net, settings)).encode())
    for x in images.train, images.train_labels:
        digest.update(x.contiguous().numpy())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums in the same order whatever else is set, lest the same seed give another net."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def seen(net: Features, batches: Iterable[Tensor]) -> Seen:
    """Of images in [0, 1] that come a few at a time."""
    features, classes = zip(*map(net, batches), strict=True)
    return Seen(torch.cat(features), None if classes[0] is None else torch.cat(classes))


class Inception:
    """The features of the published FID and KID, 2,048 numbers that are left as they are.

    torch-fidelity fetches their weights (95 MB) once. Raises UserError where it, a torchvision that fits torch, or the
    weights are not to be had.
    """

    name = "inception"

    def __init__(self, device: torch.device):
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as extractor
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
            raise UserError("judge=inception needs torch-fidelity and a torchvision that fits torch; "
                            f"pip install 'rl-lab[fid]' ({error})") from error  # fmt: skip
        weights = Path(torch.hub.get_dir()) / "checkpoints" / extractor.URL_INCEPTION_V3.rpartition("/")[2]
        try:
            net = extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            raise UserError(f"judge=inception could not fetch its weights ({error}); "
                            f"put {extractor.URL_INCEPTION_V3} at {weights}") from error  # fmt: skip
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise UserError(f"{weights} is damaged; delete it, and judge=inception fetches it again") from error
        self.net = net.to(device)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Seen:
        (features,) = self.net((255 * x).round().to(torch.uint8).expand(-1, 3, -1, -1))
        return Seen(features, None)


def inception(images: Images) -> Inception:
    """Learns nothing of the images. Raises UserError where torch-fidelity is not installed."""
    return Inception(images.device)
