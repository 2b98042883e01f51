"""CIFAR-10 (Krizhevsky, 2009), in its binary form: a tar of records, a byte of label and 3,072 of pixels each."""

import tarfile
import zlib
from pathlib import Path

import numpy as np
import torch

from gen_lab.data.cache import File, Source, fetch
from gen_lab.data.images import Images
from rl_lab.core.errors import UserError

# Size and checksum as TensorFlow Datasets prints them (url_checksums/cifar10.txt).
CIFAR10 = Source(
    "cifar10",
    ("https://www.cs.toronto.edu/~kriz/", "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/"),
    (File("cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),),
)
RECORD = 1 + 3 * 32 * 32  # bytes


def cifar10(*, root: str | None) -> Images:
    """Photographs of ten kinds of thing, 3 x 32 x 32 of 256 levels: 50,000 to train on, 10,000 to test."""
    (path,) = fetch(CIFAR10, root)
    records = read_records(path)
    batches = np.concatenate([records[f"data_batch_{i}.bin"] for i in range(1, 6)])
    (train, train_labels), (test, test_labels) = (
        (torch.from_numpy(part[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(part[:, 0].astype(np.int64)))
        for part in (batches, records["test_batch.bin"])
    )
    return Images("cifar10", train, test, 256, train_labels, test_labels, 10)


def read_records(path: Path) -> dict[str, np.ndarray]:
    """The six batches by the names of their files, each [N, 3073] uint8; nothing is unpacked. Raises UserError."""
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name.endswith(".bin") and (file := archive.extractfile(member)):
                    found[Path(member.name).name] = np.frombuffer(file.read(), np.uint8).reshape(-1, RECORD)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{path} is not CIFAR-10 in binary form ({error})") from error
    wanted = {*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"}
    if lacking := wanted - set(found):
        raise UserError(f"{path} is not CIFAR-10 in binary form: it has no {min(lacking)}")
    if any((batch[:, 0] > 9).any() for batch in found.values()):
        raise UserError(f"{path} is not CIFAR-10: it has labels above 9")
    return found
