"""MNIST and Fashion-MNIST: IDX files, and Larochelle's static binarisation of MNIST as text."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gen_lab.data.cache import File, Part, Source
from gen_lab.data.images import CPU, Images, bits, quantised
from gen_lab.data.published import FAULTS, Blobs, npz_arrays, obtained
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator, stream
from rl_lab.core.settings import Count, Natural, Place

# Sizes and checksums of files as TensorFlow Datasets prints them: url_checksums/{mnist, fashion_mnist,
# binarized_mnist}.txt; those of their parts were taken from copies of the files.
MNIST = Source(
    "mnist",
    ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/",
     "https://raw.githubusercontent.com/fgnt/mnist/master/"),
    (File("train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
     File("train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
     File("t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
     File("t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6")),
    (Part("train", (60_000, 28, 28), "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757"),
     Part("train_labels", (60_000,), "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13"),
     Part("test", (10_000, 28, 28), "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"),
     Part("test_labels", (10_000,), "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5")),
    ("mnist",),
    ("ubyte",),
)  # fmt: skip
FASHION = Source(
    "fashion_mnist",
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
     "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"),
    (File("train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
     File("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
     File("t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
     File("t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5")),
    (Part("train", (60_000, 28, 28), "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012"),
     Part("train_labels", (60_000,), "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7"),
     Part("test", (10_000, 28, 28), "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"),
     Part("test_labels", (10_000,), "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9")),
    ("fashion", "fmnist"),
    ("ubyte",),
)  # fmt: skip
STATIC = Source(
    "mnist_static",
    ("https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
     "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"),
    (File("binarized_mnist_train.amat", 78_400_000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
     File("binarized_mnist_valid.amat", 15_680_000, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
     File("binarized_mnist_test.amat", 15_680_000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c")),
    (Part("train", (50_000, 1, 28, 28), "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
     Part("valid", (10_000, 1, 28, 28), "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
     Part("test", (10_000, 1, 28, 28), "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c")),
    ("mnist",),
    (".amat",),
)  # fmt: skip


def mnist(
    *,
    protocol: Literal["static", "dynamic", "threshold", "levels"],
    validation: Natural,  # training images that evaluations before the last are of; 0: those are of the test set
    subset: Count | None,  # training images to learn from; None: all
    flip: bool,  # each showing mirrored, or not
    root: Place | None,
) -> Images:
    """Handwritten digits of 28 x 28 pixels (LeCun et al., 1998), 60,000 to train on and 10,000 to test.

    Four protocols, no two of them comparable: `static` is the binarisation that Larochelle & Murray (2011) published,
    their training and validation files together, without labels; `dynamic` draws each pixel anew, 1 with probability
    grey / 255, whenever an image is trained on; `threshold` is 1 from grey 128 on; `levels` keeps all 256.
    The test set of `dynamic` is drawn once, from a stream of its own that no run's seed changes.
    """
    if protocol != "static":
        return _binarised(MNIST, protocol, root).parted(validation, subset, flip)
    parts, remark = obtained(STATIC, root, amat_arrays)
    train, valid, test = (torch.from_numpy(parts[name]) for name in ("train", "valid", "test"))
    whole = Images("mnist-static", torch.cat([train, valid]), test, 2, remark=remark, root=root)
    return whole.parted(validation, subset, flip)


def fashion_mnist(
    *,
    protocol: Literal["dynamic", "threshold", "levels"],
    validation: Natural,  # as of MNIST
    subset: Count | None,
    flip: bool,
    root: Place | None,
) -> Images:
    """Pictures of clothes of 28 x 28 pixels (Xiao et al., 2017), split and binarised as MNIST is."""
    return _binarised(FASHION, protocol, root).parted(validation, subset, flip)


def _binarised(source: Source, protocol: str, root: str | None) -> Images:
    name = source.name
    parts, remark = obtained(source, root, idx_arrays)
    train, train_labels, test, test_labels = (
        torch.from_numpy(parts[part]) for part in ("train", "train_labels", "test", "test_labels")
    )
    for images, labels in (train, train_labels), (test, test_labels):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(f"the images and the labels of {name} do not fit together")
    train, test = train.unsqueeze(1), test.unsqueeze(1)
    if protocol == "dynamic":
        test = bits(test, generator(stream(0, f"{name} test set"), CPU))
    elif protocol == "threshold":
        train, test = quantised(train, 2), quantised(test, 2)
    return Images(
        f"{name}-{protocol}",
        train,
        test,
        256 if protocol == "levels" else 2,
        train_labels.long(),
        test_labels.long(),
        10,
        resampled=protocol == "dynamic",
        remark=remark,
        root=root,
    )


def idx_arrays(blobs: Blobs, faults: list[str]) -> Iterator[tuple[str, np.ndarray, str]]:
    """Of IDX files and of npz files that hold the same."""
    for where, read in blobs.items():
        if "ubyte" in Path(where).name:
            try:
                yield where, parsed_idx(read()), ""
            except FAULTS as error:
                faults.append(f"{where} is not a complete IDX file of bytes ({error})")
    yield from npz_arrays(blobs, faults)


def amat_arrays(blobs: Blobs, faults: list[str]) -> Iterator[tuple[str, np.ndarray, str]]:
    for where, read in blobs.items():
        if ".amat" in Path(where).name:
            try:
                text = read()
                yield where, parsed_amat(text), hashlib.sha256(text).hexdigest()
            except FAULTS as error:
                faults.append(f"{where} {error}")


def parsed_idx(data: bytes) -> np.ndarray:
    """An IDX file of bytes (LeCun's format), in its own shape, uint8. Raises ValueError, IndexError."""
    shape = np.frombuffer(data, ">u4", data[3], 4).tolist()
    start = 4 + 4 * len(shape)
    if data[:3] != b"\0\0\x08" or len(data) != start + math.prod(shape):
        raise ValueError(f"{len(data):,} bytes that begin {data[:4].hex()}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()


def parsed_amat(text: bytes) -> np.ndarray:
    """Lines of 784 digits 0 or 1 with a space or the line's end after each, uint8 [N, 1, 28, 28]. Raises ValueError."""
    data = np.frombuffer(text, np.uint8)
    if len(data) % (2 * 784) or (data[::2] - ord("0") > 1).any():
        raise ValueError("is not lines of 784 digits 0 or 1")
    return (data[::2] - ord("0")).reshape(-1, 1, 28, 28)
