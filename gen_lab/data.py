"""Data sets that live whole on the device as uint8: no workers, no loaders, only indexing."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gen_lab.types import Spec
from rl_lab.core.errors import UserError
from rl_lab.core.learner import generator


class Images(NamedTuple):
    """Images as whole grey levels, split in two. The name says the protocol too: figures compare only within one."""

    name: str
    train: Tensor  # [N, C, H, W] uint8, below `levels`
    test: Tensor
    levels: int

    @property
    def spec(self) -> Spec:
        return Spec(tuple(self.train.shape[1:]), self.levels)

    def to(self, device: torch.device) -> "Images":
        return self._replace(train=self.train.to(device), test=self.test.to(device))

    def scaled(self, pixels: Tensor) -> Tensor:
        """Levels to [0, 1]."""
        return pixels.float() / (self.levels - 1)


class Batches:
    """Shuffled epochs without end; what fills no batch at the end of an epoch waits for the next shuffle."""

    def __init__(self, data: Images, batch_size: int, seed: int):
        if batch_size > len(data.train):
            raise UserError(f"loop.batch_size={batch_size} is impossible: {data.name} has {len(data.train)} images")
        self.data, self.batch_size = data, batch_size
        self._rng = generator(seed, torch.device("cpu"))  # the same order on every device
        self._shuffle()

    def _shuffle(self) -> None:
        self._before = self._rng.get_state()
        self._order = torch.randperm(len(self.data.train), generator=self._rng).to(self.data.train.device)
        self._next = 0

    def draw(self) -> Tensor:
        """x [B, C, H, W] in [0, 1]."""
        if self._next + self.batch_size > len(self._order):
            self._shuffle()
        index = self._order[self._next : self._next + self.batch_size]
        self._next += self.batch_size
        return self.data.scaled(self.data.train[index])

    def state_dict(self) -> dict:
        return {"rng": self._before, "next": self._next}

    def load_state_dict(self, state: dict) -> None:
        self._rng.set_state(state["rng"])
        self._shuffle()
        self._next = state["next"]


def digits(*, protocol: Literal["binarised", "levels"]) -> Images:
    """Handwritten digits of 8 x 8 pixels and 17 grey levels (Alpaydin & Kaynak, 1998), in scikit-learn: no download.

    `binarised` is 1 where the level is 8 or more; `levels` keeps all 17. 1,500 to train on, 297 to test.
    """
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().images).to(torch.uint8).unsqueeze(1)
    pixels = pixels[torch.randperm(len(pixels), generator=generator(0, torch.device("cpu")))]
    if protocol == "binarised":
        pixels = (pixels >= 8).to(torch.uint8)
    return Images(f"digits-{protocol}", pixels[:1500], pixels[1500:], 2 if protocol == "binarised" else 17)
