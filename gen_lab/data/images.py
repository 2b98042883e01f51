"""What every data set becomes: uint8 tensors that live whole on the device. No workers, no loaders, only indexing."""

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

    @property
    def spec(self) -> Spec:
        colours, height, width = self.train.shape[1:]
        return Spec((colours, height, width), self.levels, self.classes)

    def to(self, device: torch.device) -> "Images":
        if self.mapped:
            return self._replace(device=device)
        tensors: dict[str, Any] = {k: x.to(device) for k, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**tensors, device=device)

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
        return (
            f"{self.name}: {len(self.train):,} + {len(self.test):,} images of {shape}, {self.levels} levels{labels}; "
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
        if self.data.resampled:
            x = bits(x, self._noise)
        return x, None if labels is None else labels[index].to(self.data.device)

    def state_dict(self) -> dict:
        noise = {"noise": self._noise.get_state()} if self.data.resampled else {}
        return {"rng": self._before, "next": self._next, **noise}

    def load_state_dict(self, state: dict) -> None:
        self._rng.set_state(state["rng"])
        self._shuffle()
        self._next = state["next"]
        if self.data.resampled:
            restore_generator(self._noise, state["noise"])


def bits(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """256 greys to levels 0 or 1, uint8, each 1 with probability grey / 255 (Salakhutdinov & Murray, 2008)."""
    u = torch.randint(255, pixels.shape, generator=rng, device=pixels.device, dtype=torch.uint8)  # 0 to 254
    return (u < pixels).to(torch.uint8)


def quantised(pixels: Tensor, levels: int) -> Tensor:
    """256 greys to `levels` of equal width, uint8; two: 1 from grey 128 on."""
    return (pixels.int() * levels // 256).to(torch.uint8)


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
