"""Samples compared with training images, beside held-out images compared with them in the same way."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gen_lab.data.cache import cache
from gen_lab.data.images import CPU, Images, bits
from gen_lab.judging import distances
from gen_lab.judging.classes import class_coverage
from gen_lab.judging.features import is_large
from gen_lab.judging.pictures import side_by_side
from gen_lab.judging.seeing import AT_ONCE, Features, Seen, seen
from gen_lab.types import Model
from rl_lab.core import checkpoint, room
from rl_lab.core.errors import UserError
from rl_lab.core.learner import Metrics
from rl_lab.core.progress import Told
from rl_lab.core.randomness import generator, stream
from rl_lab.core.settings import Count, Place

KEPT_FROM = 5_000  # training images: fewer are seen in seconds


class Judge:
    """Three splits that share no image: one may teach the net its features, one is the reference, one is held out. The
    measures of the held-out images are the floor: no model can be expected to do better than real images that it has
    not seen.

    Half of the test set is held out. On `test` the other half teaches and training images are the reference; on
    `train` all of those teach, and the other half of the test set is the reference.
    """

    def __init__(
        self,
        data: Images,
        *,
        features: Callable[..., Features],
        samples: Count | None,  # images; None: as many as are held out, whose distances have the same bias
        at_most: Count,  # images of each split
        k: Count,  # of the neighbour that a radius of precision, recall, density and coverage reaches
        taught_on: Literal["train", "test"] | None,  # None: on `train` where it is large and has labels
        root: Place | None,  # of the cache that keeps what the net sees in many images; None: beside the data
        say: Callable[[str], None] = lambda words: None,  # of what takes long
    ):
        by_train = is_large(data) if taught_on is None else taught_on == "train"
        taught, reference, held_out = three_splits(data, at_most)
        split = "test" if by_train else "training"
        if by_train:
            taught, reference = torch.arange(len(data.train)), taught
        self.data, self.k, self.samples, self.split = data, k, samples or len(held_out), split
        if (fewest := min(len(taught), len(reference), len(held_out), self.samples)) < k + 2:
            raise UserError(f"judge.k={k} needs {k + 2} or more images in each split, and {data.name} leaves {fewest}; "
                            "hold out more, or type judge=none for the likelihood alone")  # fmt: skip
        pixels = math.prod(data.spec.shape)
        room.memory(8.0 * self.samples * pixels, f"judge.samples={self.samples}")
        self.say, told = say, Told(say, "the judge of samples learns, once, for it is kept", "updates")
        self.net = features(data if by_train else lesson(data, taught), told=told)
        path = cache(root or data.root) / "judges" / f"{_key(self.net.name, data, reference, held_out)}_seen.pt"
        self.train, test = self.prepared(path, torch.cat([reference, held_out]) if by_train else held_out)
        place = torch.arange(len(test.features))
        self.held_out = test.some(place[-len(held_out) :])
        self.reference = test.some(place[: len(reference)]) if by_train else self.train.some(reference)
        self.held_out_nearest, _ = distances.nearest(self.held_out.features, self.train.features)
        self.floor = self.measured(self.held_out)
        self.record = {
            "features": self.net.name,
            "samples": self.samples,
            "reference": len(reference),
            "held_out": len(held_out),
            "reference_split": "test" if by_train else "train",
            "nearest_among": len(self.train.features),
            "taught_on": len(taught),
            "k": k,
            "dtype": "float64, of float32 features",
        }
        if self.held_out.classes is not None and data.test_labels is not None:
            right = self.held_out.classes == data.test_labels[held_out].to(data.device)
            self.record["accuracy"] = right.double().mean().item()

    def prepared(self, path: Path, tested: Tensor) -> tuple[Seen, Seen]:
        """What the net sees in all training images and in these test images; kept on disk where there are many."""
        data, many = self.data, len(self.data.train) >= KEPT_FROM
        if many and path.exists():
            found: dict[str, Any] = checkpoint.read(path)
            names = "train", "train_classes", "held_out", "held_out_classes"
            parts: list[Any] = [None if found[name] is None else found[name].to(data.device) for name in names]
            return Seen(*parts[:2]), Seen(*parts[2:])
        train = seen(self.net, self.followed(training_images(data)))
        held = seen(self.net, (x.to(data.device) for x in data.test[tested].split(AT_ONCE)))
        if many:
            with contextlib.suppress(OSError):  # what cannot be kept is seen again
                path.parent.mkdir(parents=True, exist_ok=True)
                kept = {"train": train.features, "train_classes": train.classes,
                        "held_out": held.features, "held_out_classes": held.classes}  # fmt: skip
                checkpoint.write(path, kept, alone=False)
        return train, held

    def followed(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        told, done = Told(self.say, "the judge of samples sees the training images, once, for it is kept"), 0
        for x in batches:
            yield x
            told(done := done + len(x), len(self.data.train))

    @property
    def about(self) -> str:
        """What is compared with what."""
        by = f", a classifier right on {self.record['accuracy']:.1%}" if "accuracy" in self.record else ""
        return (
            f"comparing {self.samples:,} samples with {len(self.reference.features):,} {self.split} images, beside "
            f"{len(self.held_out.features):,} held-out ones; features {self.net.name}{by}"
        )

    def __call__(self, model: Model, rng: torch.Generator) -> Metrics:
        """Every measure of fresh samples, and the floor of the Frechet distance."""
        floor = {"frechet_floor": self.floor["frechet"]}
        return self.named(self.measured(self.see(self.draw(model, rng))) | floor)

    @torch.no_grad()
    def draw(self, model: Model, rng: torch.Generator) -> Tensor:
        """Levels [N, C, H, W]; a conditional model samples the labels of training images drawn at random."""
        told = Told(self.say, "samples for the judge")
        label, known = None, self.data.train_labels
        if model.spec.classes and known is not None:
            chosen = torch.randint(len(known), (self.samples,), generator=rng, device=rng.device)
            label = known[chosen.to(known.device)].to(rng.device)
        parts = []
        for i in torch.arange(self.samples).split(AT_ONCE):
            parts.append(model.sample(len(i), rng, None if label is None else label[i]))
            told(int(i[-1]) + 1, self.samples)
        return torch.cat(parts)

    def see(self, images: Tensor) -> Seen:
        """Of levels [N, C, H, W]."""
        return seen(self.net, images.split(AT_ONCE))

    def measured(self, found: Seen) -> dict[str, Tensor]:
        """Each measure []: of samples, or of the held-out images themselves."""
        a, b = self.reference.features, found.features
        near, _ = distances.nearest(b, self.train.features)
        measures = {
            "frechet": distances.frechet_distance(a, b),
            "kernel_distance": distances.kernel_distance(a, b),
            "mmd": distances.mmd(a, b),
            **distances.precision_recall_density_coverage(a, b, self.k),
            "memorised": distances.memorised(near, self.held_out_nearest),
            "nearest": near.median(),
        }
        if found.classes is not None and self.reference.classes is not None:
            measures |= class_coverage(found.classes, self.reference.classes)
        return measures

    def named(self, measures: dict[str, Tensor]) -> Metrics:
        """As metrics: the name of a distance states the data and the net."""
        return {f"eval/{name}[{self.data.name}-{self.net.name}]": x for name, x in measures.items()}

    def neighbours(self, images: Tensor, count: int) -> Tensor:
        """The samples closest to a training image (left) beside that image (right), [2 count, C, H, W] in [0, 1]."""
        near, index = distances.nearest(self.see(images).features, self.train.features)
        first = near.argsort()[:count]
        pixels, spec = self.data.train[index[first].to(self.data.train.device)].to(self.data.device), self.data.spec
        closest = spec._replace(levels=256) if self.data.resampled else spec  # the greys that bits are drawn from
        return side_by_side(spec.scaled(images[first]), closest.scaled(pixels))


def _key(net: str, data: Images, *chosen: Tensor) -> str:
    """A digest of everything that shapes what a net sees: its name stands for its parameters."""
    digest = hashlib.sha256(repr((net, data.name, data.device.type, data.resampled)).encode())
    for x in data.train, data.test, *chosen:
        digest.update(x.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def nothing(data: Images, say: Callable[[str], None] = lambda words: None) -> None:
    """judge=none: samples are not evaluated."""


def three_splits(data: Images, at_most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Who teaches the net (of the test set), who is the reference (of the training set), who is held out (of the test
    set): indices at random, always the same, for a folder's images come class by class.
    """
    rng = generator(stream(0, "judge"), CPU)
    test, train = (torch.randperm(len(part), generator=rng) for part in (data.test, data.train))
    half = len(test) // 2
    return test[:half][:at_most], train[:at_most], test[half:][:at_most]


def lesson(data: Images, taught: Tensor) -> Images:
    """Data that show a net only the images it may learn from."""
    labels = None if data.test_labels is None else data.test_labels[taught]
    return data._replace(
        train=data.test[taught],
        train_labels=labels,
        test=data.test[:0],
        test_labels=None,
        resampled=False,
        flipped=False,
    )


def training_images(data: Images) -> Iterator[Tensor]:
    """All of them as levels, a few at a time; greys that are binarised anew at each showing are binarised once."""
    rng = generator(stream(0, "judge"), data.device)
    for x in data.train.split(AT_ONCE):
        yield bits(x.to(data.device), rng) if data.resampled else x.to(data.device)
