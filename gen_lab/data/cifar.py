"""CIFAR-10 (Krizhevsky, 2009): records of a byte of label and 3,072 of pixels, or Python's form of the same."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gen_lab.data.cache import File, Part, Source
from gen_lab.data.images import Images
from gen_lab.data.published import FAULTS, Blobs, npz_arrays, obtained
from rl_lab.core.settings import Count, Natural, Place

# Size and checksum of the file as TensorFlow Datasets prints them (url_checksums/cifar10.txt); those of its parts were
# taken from a copy of the images.
CIFAR10 = Source(
    "cifar10",
    ("https://www.cs.toronto.edu/~kriz/", "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/"),
    (File("cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),),
    (Part("train", (50_000, 3, 32, 32), "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111"),
     Part("train_labels", (50_000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
     Part("test", (10_000, 3, 32, 32), "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56"),
     Part("test_labels", (10_000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5")),
    ("cifar",),
    ("data_batch_", "test_batch"),
)  # fmt: skip
RECORD = 1 + 3 * 32 * 32  # bytes
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))


def cifar10(
    *,
    validation: Natural,  # training images that evaluations before the last are of; 0: those are of the test set
    subset: Count | None,  # training images to learn from; None: all
    flip: bool,  # each showing mirrored, or not
    root: Place | None,
) -> Images:
    """Photographs of ten kinds of thing, 3 x 32 x 32 of 256 levels: 50,000 to train on, 10,000 to test."""
    parts, remark = obtained(CIFAR10, root, cifar_arrays)
    train, train_labels, test, test_labels = (
        torch.from_numpy(parts[part]) for part in ("train", "train_labels", "test", "test_labels")
    )
    labels = train_labels.long(), test_labels.long()
    whole = Images("cifar10", train, test, 256, *labels, 10, remark=remark, root=root)
    return whole.parted(validation, subset, flip)


def cifar_arrays(blobs: Blobs, faults: list[str]) -> Iterator[tuple[str, np.ndarray, str]]:
    """Of the six batches of either form, and of npz files that hold the same."""
    named = {Path(where).name.removesuffix(".gz").removesuffix(".bin"): (where, read) for where, read in blobs.items()}
    if any(name in named for name in (*TRAIN, "test_batch")):
        where = str(Path(next(iter(blobs))).parent)
        try:
            if lacking := [name for name in (*TRAIN, "test_batch") if name not in named]:
                raise ValueError(f"it has no {lacking[0]}")
            for split, batches in ("train", TRAIN), ("test", ("test_batch",)):
                images, labels = zip(*(_batch(named[name][1]()) for name in batches), strict=True)
                yield f"{where}/{split}", np.concatenate(images), ""
                yield f"{where}/{split}", np.concatenate(labels), ""
        except (*FAULTS, pickle.UnpicklingError) as error:
            faults.append(f"{where} is not CIFAR-10, in binary form or Python's ({error})")
    yield from npz_arrays(blobs, faults)


def _batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 3, 32, 32] and labels [N], uint8. Raises ValueError."""
    if data[:1] == b"\x80":  # a pickle's first byte, and no label
        return _pickled(data)
    if len(data) % RECORD:
        raise ValueError(f"{len(data):,} bytes are not records of {RECORD:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if (records[:, 0] > 9).any():
        raise ValueError("it has labels above 9")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]


def _pickled(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    found = {k if isinstance(k, str) else k.decode(): x for k, x in Arrays(data).load().items()}
    images, labels = np.asarray(found["data"]), np.asarray(found["labels"])
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() <= 9:
        raise ValueError("its data are no bytes, or its labels not from 0 to 9")
    return images.reshape(-1, 3, 32, 32), labels.astype(np.uint8)


class Arrays(pickle.Unpickler):
    """Builds arrays and plain values, and refuses to call anything else: a pickle may ask for any function there is."""

    SAFE = {("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module.rpartition(".")[2], name) not in self.SAFE or module.split(".")[0] not in ("numpy", "_codecs"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
