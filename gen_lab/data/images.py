"""The form of every data set: uint8 tensors that live whole on the device. No workers, no loaders, only indexing."""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from gen_lab.types import Spec
from rl_lab.core import distributed
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator, restore_generator, stream
from rl_lab.core.settings import Bound

CPU = torch.device("cpu")
Levels = Annotated[int, Bound(2, 256)]
Protocol = Literal["levels", "dynamic", "threshold"]  # as they are; two of them: drawn anew, or 1 from half way on

TESTED_AT_ONCE = 256  # images, fewer where their logits would fill the memory:
LOGITS_AT_ONCE = 2**27  # half a gigabyte
DECODED_AT_ONCE = 2**24  # pixels of draws of z, so that it is soon seen how long an evaluation takes
FEWEST_AT_ONCE = 8  # images, however many draws of z: one at a time would be slow


class Images(NamedTuple):
    """Images as whole grey levels, split in two. The name says the protocol too: figures compare only within one."""

    name: str
    train: Tensor  # [N, C, H, W] uint8, below `levels`
    test: Tensor
    levels: int
    train_labels: Tensor | None = None  # [N] int64, below `classes`
    test_labels: Tensor | None = None
    classes: int = 0
    resampled: bool = False  # `train` holds 256 greys, and each showing of a pixel is 1 with probability grey / 255
    log_prob: Callable[[Tensor], Tensor] | None = None  # of levels [B, C, H, W] in nats [B], where it is known
    measure: Callable[[Tensor], dict[str, Tensor]] | None = None  # of samples, where data have their own
    mapped: bool = False  # memory-mapped: the images stay on disk, batches are moved to the device
    device: torch.device = CPU
    remark: str = ""  # what of the files was left out, or taken for what
    validation: Tensor | None = None  # [N, C, H, W], kept from training: evaluations before the last are of these
    validation_labels: Tensor | None = None
    flipped: bool = False  # half of the images that training shows are mirrored, left to right
    root: str | None = None  # where they were found: what is learned of them is kept there too

    @property
    def spec(self) -> Spec:
        colours, height, width = self.train.shape[1:]
        return Spec((colours, height, width), self.levels, self.classes)

    def to(self, device: torch.device) -> "Images":
        if self.mapped:
            return self._replace(device=device)
        tensors: dict[str, Any] = {k: x.to(device) for k, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**tensors, device=device)

    def parted(self, validation: int, subset: int | None, flip: bool) -> "Images":
        """With `validation` of the training images kept from it, drawn at random, always the same, and of the others
        `subset` alone to train on. Raises UserError.
        """
        changed = self._replace(flipped=flip)
        if not (validation or subset):
            return changed
        if self.mapped and not subset:
            raise UserError(
                "data.validation is for images in memory (raise data.resident_gb); in a folder of pictures the folders "
                "train, val and test say it"
            )
        if validation and self.validation is not None:
            raise UserError("data.validation must be 0: the images bring a validation set of their own")
        kept, count = len(self.train) - validation, min(subset or len(self.train), len(self.train) - validation)
        if kept < 1 or (subset or 0) > kept:
            asked = [f"data.{k}={n}" for k, n in (("validation", validation), ("subset", subset)) if n]
            raise UserError(
                f"{' and '.join(asked)} leave nothing to train on of the {len(self.train)} training images of "
                f"{self.name}; set them lower"
            )
        order = torch.randperm(len(self.train), generator=generator(stream(0, "validation"), CPU))
        labels = self.train_labels
        trained, held = order[:count].sort().values, order[kept:].sort().values
        if validation:
            pixels = self.train[held]
            changed = changed._replace(
                validation=bits(pixels, generator(stream(0, f"{self.name} validation set"), CPU))
                if self.resampled
                else pixels,
                validation_labels=None if labels is None else labels[held],
            )
        return changed._replace(
            train=self.train[trained], train_labels=None if labels is None else labels[trained], mapped=False
        )

    def some(self, count: int | None) -> "Images":
        """With `count` of the test images, chosen at random, always the same; all of them with None."""
        if count is None or count >= len(self.test):
            return self
        chosen = torch.randperm(len(self.test), generator=generator(stream(0, "some"), CPU))[:count].sort().values
        chosen = chosen.to(self.test.device)
        labels = self.test_labels
        return self._replace(test=self.test[chosen], test_labels=None if labels is None else labels[chosen])

    @property
    def validated(self) -> "Images":
        """With the validation images, where there are any, in place of the test set; the name says so."""
        if self.validation is None:
            return self
        return self._replace(
            name=f"{self.name}-validation", test=self.validation, test_labels=self.validation_labels, validation=None
        )

    def tested(self, at_once: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The whole test set once: levels [B, C, H, W] and labels [B], at most `at_once` at a time."""
        pixels = self.test.split(at_once)
        labels = [None] * len(pixels) if self.test_labels is None else self.test_labels.split(at_once)
        for x, label in zip(pixels, labels, strict=True):
            yield x.to(self.device), None if label is None else label.to(self.device)

    @property
    def about(self) -> str:
        """The sizes of the data, and where they are kept."""
        size = (self.train.numel() + self.test.numel()) / 1e6
        shape, where = " x ".join(map(str, self.spec.shape)), f"resident on {self.device}"
        labels = f", {self.classes} classes" if self.classes else ""
        remark = f"; {self.remark}" if self.remark else ""
        kept = "" if self.validation is None else f" (and {len(self.validation):,} to validate on)"
        return (
            f"{self.name}: {len(self.train):,} + {len(self.test):,} images{kept} of {shape}, {self.levels} levels"
            f"{labels}{', half of them mirrored' * self.flipped}; "
            f"{size:,.3g} MB {'memory-mapped from disk' if self.mapped else where}{remark}"
        )


class Batches:
    """Shuffled epochs without end; what fills no batch at the end of an epoch waits for the next shuffle.

    With several ranks each draws its part of one batch: no image comes twice in an epoch of all of them.
    """

    def __init__(self, data: Images, batch_size: int, seed: int):
        self.data, self.batch_size, self.drawn = data, batch_size, batch_size * distributed.size()  # by all ranks
        if self.drawn > len(data.train):
            of_each = f" in each of {distributed.size()} processes" if distributed.size() > 1 else ""
            most = len(data.train) // distributed.size()
            raise UserError(
                f"loop.batch_size={batch_size}{of_each} must be {most} or less: {data.name} has {len(data.train)} "
                "images"
            )
        self._rng = generator(seed, CPU)  # the same order on every device
        rank = f" {distributed.rank()}" if distributed.rank() else ""
        self._noise = generator(stream(seed, f"binarisation{rank}"), data.device)
        self._mirror = generator(stream(seed, f"flips{rank}"), data.device)
        self._shuffle()

    def _shuffle(self) -> None:
        self._before = self._rng.get_state()
        self._order = torch.randperm(len(self.data.train), generator=self._rng).to(self.data.train.device)
        self._next = 0

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Levels [B, C, H, W] uint8, and their labels [B]."""
        if self._next + self.drawn > len(self._order):
            self._shuffle()
        index = self._order[self._next + distributed.rank() * self.batch_size :][: self.batch_size]
        self._next += self.drawn
        x, labels = self.data.train[index].to(self.data.device), self.data.train_labels
        if self.data.flipped:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=self._mirror, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        if self.data.resampled:
            x = bits(x, self._noise)
        return x, None if labels is None else labels[index].to(self.data.device)

    def state_dict(self) -> dict:
        noise = {"noise": self._noise.get_state()} if self.data.resampled else {}
        flips = {"flips": self._mirror.get_state()} if self.data.flipped else {}
        return {"spec": self.data.spec.written(), "rng": self._before, "next": self._next, **noise, **flips}

    def load_state_dict(self, state: dict) -> None:
        self._rng.set_state(state["rng"])
        self._shuffle()
        self._next = state["next"]
        if self.data.resampled:
            restore_generator(self._noise, state["noise"])
        if self.data.flipped:
            restore_generator(self._mirror, state["flips"])


def bits(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """256 greys to levels 0 or 1, uint8, each 1 with probability grey / 255 (Salakhutdinov & Murray, 2008)."""
    u = torch.randint(255, pixels.shape, generator=rng, device=pixels.device, dtype=torch.uint8)  # 0 to 254
    return (u < pixels).to(torch.uint8)


def quantised(pixels: Tensor, levels: int) -> Tensor:
    """256 greys to `levels` of equal width, uint8; two: 1 from grey 128 on."""
    return (pixels.int() * levels // 256).to(torch.uint8)


def marked(name: str, test: Tensor) -> str:
    """The name of images of one's own, with a digest of some that are tested on [N, C, H, W]: figures are compared
    where the names are the same.
    """
    few = test[torch.linspace(0, len(test) - 1, min(len(test), 256)).long()]
    return f"{name}-{hashlib.sha256(few.cpu().contiguous().numpy().tobytes()).hexdigest()[:6]}"


class Binarised:
    """What images become under a protocol: those of training, and those of the test set, which
    `dynamic` draws once, from a stream of its own that no run's seed changes.
    """

    def __init__(self, protocol: Protocol, levels: int, name: str):
        self.protocol, self.within = protocol, levels
        self.levels, self.resampled = levels if protocol == "levels" else 2, protocol == "dynamic"
        self.rng = generator(stream(0, f"{name} test set"), CPU)
        self.suffix = "" if protocol == "levels" else f"-{protocol}"

    def train(self, pixels: Tensor) -> Tensor:
        """Levels to levels, or to the 256 greys that `bits` draws from, uint8."""
        if self.protocol == "levels":
            return pixels
        if self.protocol == "threshold":
            return (2 * pixels.int() >= self.within - 1).to(torch.uint8)
        top = self.within - 1
        return ((510 * pixels.int() + top) // (2 * top)).to(torch.uint8)

    def test(self, pixels: Tensor) -> Tensor:
        return bits(self.train(pixels), self.rng) if self.resampled else self.train(pixels)


def at_once(spec: Spec, iwae_samples: int = 0) -> int:
    """How many images are scored together, so that their logits and draws stay small."""
    pixels = math.prod(spec.shape)
    most = min(TESTED_AT_ONCE, LOGITS_AT_ONCE // (pixels * spec.levels))
    return max(1, min(most, max(FEWEST_AT_ONCE, DECODED_AT_ONCE // (pixels * max(1, iwae_samples)))))
