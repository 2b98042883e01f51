"""A run folder's model and data again, as its checkpoint left them."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor

from gen_lab.data import Images
from gen_lab.data.images import at_once
from gen_lab.networks.averaging import weights
from gen_lab.networks.best import take
from gen_lab.parts import PARTS
from gen_lab.types import LatentModel, Model, Spec
from rl_lab.core import calls, checking, checkpoint, devices, reading, room, threads
from rl_lab.core.devices import is_whole
from rl_lab.core.errors import UserError, kind
from rl_lab.core.launching.changes import changed, typed
from rl_lab.core.launching.composition import as_dict, key_of
from rl_lab.core.randomness import generator, stream
from rl_lab.core.settings import Bound, Count, Natural, conform

BLOCK = 64  # images drawn at once
Temperature = Annotated[float, Bound(0, above=True), Bound(1e-6), Bound(high=10_000)]  # beyond, numbers overflow


class Trained(NamedTuple):
    """A run folder's model as its checkpoint left it: with averaged weights where it has them, with those that did best
    on validation images where they were chosen.
    """

    name: str  # of the run
    model: Model
    spec: Spec  # of the images that it learned
    read: Callable[[], Images]
    device: torch.device
    step: int  # updates that its weights are of

    @property
    def data(self) -> Images:
        """The images themselves, read the first time that they are asked for. Raises UserError."""
        found = self.read()
        if found.spec != self.spec:
            raise UserError(f"{self.name} learned images of {self.spec.words}, and {found.name} has images of "
                            f"{found.spec.words}; leave its settings of data as they are")  # fmt: skip
        return found

    def sample(
        self, count: int, seed: int = 0, label: int | Tensor | None = None, temperature: float | None = None
    ) -> Tensor:
        """Levels [N, C, H, W]; with a label, or labels [N], of these classes. The same seed, the same first images,
        whatever the count, and those that `gen-lab sample` draws. A `temperature` below 1 makes them likelier and more
        alike.

        Raises UserError if the model does not know the class, has no temperature, or where they do not fit in memory.
        """
        count, seed = conform("count", count, Count), conform("seed", seed, Natural)
        room.memory(8 * count * math.prod(self.spec.shape), f"count={count}")
        with self._at(temperature):
            drawn = [self.model.sample(BLOCK, rng, of) for _, rng, of in self.draws(count, seed, label)]
        return torch.cat(drawn)[:count]

    def draws(
        self, count: int, seed: int, label: int | Tensor | None
    ) -> Iterator[tuple[int, torch.Generator, Tensor | None]]:
        """For every 64 images: the number of the first, random numbers for them, and their labels [64], in turn where
        none are given. The first images do not depend on the count. Raises UserError as `labels` does.
        """
        known, classes = self.labels(label, count), self.model.spec.classes
        for start in range(0, count, BLOCK):
            index = torch.arange(start, start + BLOCK, device=self.device)
            of = index % classes if classes else None
            rng = generator(stream(seed, f"images from {start}") if start else seed, self.device)
            yield start, rng, of if known is None else known[index.clamp(max=count - 1)]

    @contextmanager
    def _at(self, temperature: float | None) -> Iterator[None]:
        model: Any = self.model
        if temperature is None:
            yield
            return
        if not hasattr(model, "temperature"):
            raise UserError(f"temperature={temperature}: the model of {self.name} has none; leave it out")
        before, model.temperature = model.temperature, conform("temperature", temperature, Temperature)
        try:
            yield
        finally:
            model.temperature = before

    def score(
        self, x: Tensor, seed: int = 0, iwae_samples: int = 0, label: int | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Named scores [B] of levels [B, C, H, W], such as nll_nats; {} of a model without a likelihood. Raises
        UserError where x is no such levels, or a label that is needed is missing.
        """
        x, seed = self.levels(x), conform("seed", seed, Natural)
        iwae_samples = conform("iwae_samples", iwae_samples, Natural)
        known, rng, size = self.labels(label, len(x)), generator(seed, self.device), at_once(self.spec, iwae_samples)
        labels = repeat(None) if known is None else known.split(size)
        scores = [self.model.score(*of) for of in zip(x.split(size), repeat(rng), repeat(iwae_samples), labels)]
        return {name: torch.cat([score[name] for score in scores]) for name in scores[0]}

    def code(self, x: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Levels [B, C, H, W] to codes z [B, Z]. Raises UserError if the model has none."""
        model, x = self._latent_model, self.levels(x)
        return model.code(x, self.labels(label, len(x)))

    def decode(self, z: Tensor, label: int | Tensor | None = None) -> Tensor:
        """Codes z [B, Z] to means [B, C, H, W] in [0, 1]. Raises UserError if the model has none."""
        model, spec = self._latent_model, self.spec
        one = torch.zeros(1, *spec.shape, dtype=spec.dtype, device=self.device)
        like = model.code(one, self.labels(0 if self.model.spec.classes else None, 1))
        if not isinstance(z, Tensor) or (z.dtype, z.shape[1:]) != (like.dtype, like.shape[1:]):
            wanted = f"z must be a {kind(like).replace('[1, ', '[B, ')}, as code gives it"
            raise UserError(f"{wanted}, and is {kind(z)}")
        if not z.isfinite().all():
            raise UserError("z must be finite, and holds nan or inf; leave out the rows that do")
        return model.decode(z.to(self.device), self.labels(label, len(z)))

    def levels(self, x: Tensor) -> Tensor:
        """The same on the model's device. Raises UserError where they are no levels [B, C, H, W] that it learned."""
        shape, most = self.spec.shape, self.spec.levels - 1
        wanted = f"images must be a tensor of whole numbers [B, {', '.join(map(str, shape))}], levels 0 to {most}"
        if not isinstance(x, Tensor) or not is_whole(x) or x.shape[1:] != shape:
            is_float = isinstance(x, Tensor) and x.is_floating_point() and x.shape[1:] == shape
            remedy = "; spec.nearest(x) makes levels of numbers in [0, 1]" * is_float
            raise UserError(f"{wanted}, and are {kind(x)}{remedy}")
        x = (x if x.layout == torch.strided else x.to_dense()).to(self.device)
        x = x if x.dtype == torch.uint8 else x.long()  # wider types without a sign have few operations
        if ((x < 0) | (x > most)).any():
            raise UserError(f"{wanted}, and are {int(x.min())} to {int(x.max())}")
        return x

    def labels(self, label: int | Tensor | None, count: int) -> Tensor | None:
        """[N], of one class or of several. Raises UserError if the model does not know them."""
        if label is None:
            return None
        try:
            found = torch.as_tensor(label, device=self.device)
        except (TypeError, ValueError, RuntimeError):
            found = torch.empty(0)
        if not is_whole(found) or found.shape not in ((), (count,)):
            given = kind(label) if isinstance(label, Tensor) else repr(label)
            raise UserError(f"label must be one whole number, or a tensor int64 [{count}] of them, and is {given[:80]}")
        found = found.long().expand(count)
        classes = self.model.spec.classes
        if ((found < 0) | (found >= classes)).any():
            known = f"label must be one of its classes 0 to {classes - 1}"
            known = known if classes else "it was trained without labels"
            raise UserError(f"label={label} is not known to the model of {self.name}: {known}")
        return found

    @property
    def _latent_model(self) -> LatentModel:
        if not isinstance(self.model, LatentModel):
            raise UserError(f"{self.name}: this model has no codes of its own; an autoencoder has them")
        return self.model


def load(folder: Path, device: str, changes: Sequence[str] = ()) -> Trained:
    """`changes` are overrides of the run's settings, such as data.root=/data. Its images are read when they are needed.

    Nothing of the config is called before all that is called is checked. Raises UserError.
    """
    cfg, parts = reading.config(folder, PARTS, typed(changes, PARTS))
    path = folder / "checkpoint.pt"
    if not all(isinstance(cfg.get(part), DictConfig) for part in ("model", "data")):
        raise UserError(f"{folder} holds no model and data: it is not a run of gen-lab train")
    reading.refuse(plain(cfg), parts)
    cfg = changed(cfg, changes)
    with checking.of_folder(folder, [key_of(change) for change in changes]):
        for part in "data", "model":
            checking.check(cfg[part], part)
    resolved = plain(cfg)
    reading.refuse(resolved, parts)
    chosen = torch.device(devices.chosen(device, config=resolved, exact=PARTS.exact))
    state = checkpoint.read(path)
    torch.set_num_threads(threads.kept(cfg.get("threads", 1)))
    read = functools.cache(lambda: images(resolved["data"]).to(chosen))
    model = hydra.utils.instantiate(resolved["model"])
    kept = state.get("batches")
    older = read().spec if isinstance(kept, dict) and "spec" not in kept else None
    try:
        spec = older or Spec.read(state["batches"]["spec"])
        model = model(spec, device=chosen, seed=0)
        model.load_state_dict(state["model"])
        if "average" in state:
            with torch.no_grad():
                for mine, its in zip(weights(model), state["average"]["averages"], strict=True):
                    mine.copy_(its)
        step = int(state["step"])
        if state.get("best", {}).get("learned"):
            take(model, state["best"]["learned"])
            step = int(state["best"]["step"])
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        asked, own = folder / "config.yaml", f"bring back the run's own checkpoint, {checkpoint.ANEW}"
        remedy = f"leave out {' '.join(changes)}" if changes else own
        raise UserError(f"{path} does not fit {asked} ({checkpoint.unfit(error)}); {remedy}") from error
    return Trained(str(cfg.name), model, spec, read, chosen, step)


def images(settings: dict[str, Any]) -> Images:
    """Raises UserError."""
    found: Images = calls.built(settings)
    return found


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config with every interpolation resolved, as dicts."""
    return reading.resolved(as_dict(cfg))


def some(runs: Sequence[Path], command: str) -> Sequence[Path]:
    """The runs; there must be at least one. Raises UserError."""
    if not runs:
        raise UserError(f"which run? gen-lab {command} run=<folder>")
    return runs


def apart(runs: Sequence[Path]) -> list[str]:
    """What to add to each run's name in the files of a shared folder: nothing to a single run's, else the end of its
    path, as short as tells all of them apart.
    """
    if len(runs) == 1:
        return [""]
    parts = [run.absolute().parts[1:] for run in runs]
    deep = next((n for n in range(1, max(map(len, parts))) if len({p[-n:] for p in parts}) == len(parts)), 1)
    return ["_" + "_".join(p[-deep:]) for p in parts]
