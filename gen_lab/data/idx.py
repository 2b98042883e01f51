"""MNIST and Fashion-MNIST: IDX files, and Larochelle's static binarisation of MNIST as text."""

import gzip
import math
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gen_lab.data.cache import File, Source, fetch
from gen_lab.data.images import CPU, Images, bits, quantised
from rl_lab.core.errors import UserError
from rl_lab.core.randomness import generator, stream

# Sizes and checksums as TensorFlow Datasets prints them: url_checksums/{mnist, fashion_mnist, binarized_mnist}.txt.
MNIST = Source(
    "mnist",
    ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/",
     "https://raw.githubusercontent.com/fgnt/mnist/master/"),
    (File("train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
     File("train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
     File("t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
     File("t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6")),
)  # fmt: skip
FASHION = Source(
    "fashion_mnist",
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
     "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"),
    (File("train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
     File("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
     File("t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
     File("t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5")),
)  # fmt: skip
STATIC = Source(
    "mnist_static",
    ("https://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
     "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"),
    (File("binarized_mnist_train.amat", 78_400_000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
     File("binarized_mnist_valid.amat", 15_680_000, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
     File("binarized_mnist_test.amat", 15_680_000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c")),
)  # fmt: skip


def mnist(*, protocol: Literal["static", "dynamic", "threshold", "levels"], root: str | None) -> Images:
    """Handwritten digits of 28 x 28 pixels (LeCun et al., 1998), 60,000 to train on and 10,000 to test.

    Four protocols, no two of them comparable: `static` is the binarisation that Larochelle & Murray (2011) published,
    their training and validation files together, without labels; `dynamic` draws each pixel anew, 1 with probability
    grey / 255, whenever an image is trained on; `threshold` is 1 from grey 128 on; `levels` keeps all 256.
    The test set of `dynamic` is drawn once, from a stream of its own that no run's seed changes.
    """
    if protocol != "static":
        return _binarised("mnist", protocol, fetch(MNIST, root))
    train, valid, test = (read_amat(path) for path in fetch(STATIC, root))
    return Images("mnist-static", torch.cat([train, valid]), test, 2)


def fashion_mnist(*, protocol: Literal["dynamic", "threshold", "levels"], root: str | None) -> Images:
    """Pictures of clothes of 28 x 28 pixels (Xiao et al., 2017), split and binarised as MNIST is."""
    return _binarised("fashion_mnist", protocol, fetch(FASHION, root))


def _binarised(name: str, protocol: str, paths: list[Path]) -> Images:
    train, train_labels, test, test_labels = (read_idx(path) for path in paths)
    for images, labels, path in (train, train_labels, paths[0]), (test, test_labels, paths[2]):
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(f"{path} and the labels beside it do not fit together")
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
    )


def read_idx(path: Path) -> Tensor:
    """A gzipped IDX file of bytes, in its own shape, uint8 (LeCun's format). Raises UserError."""
    try:
        with gzip.open(path) as file:
            data = file.read()
        shape = np.frombuffer(data, ">u4", data[3], 4).tolist()
    except (OSError, EOFError, zlib.error, IndexError, ValueError) as error:
        raise UserError(f"{path} is not a gzipped IDX file ({error})") from error
    start = 4 + 4 * len(shape)
    if data[:3] != b"\0\0\x08" or len(data) != start + math.prod(shape):
        raise UserError(f"{path} is not a complete IDX file of bytes: {len(data):,} bytes that begin {data[:4].hex()}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy())


def read_amat(path: Path) -> Tensor:
    """Lines of 784 digits 0 or 1 with a space or the line's end after each, uint8 [N, 1, 28, 28]. Raises UserError."""
    data = np.fromfile(path, np.uint8)
    if len(data) % (2 * 784) or (data[::2] - ord("0") > 1).any():
        raise UserError(f"{path} is not lines of 784 digits 0 or 1")
    return torch.from_numpy(data[::2] - ord("0")).view(-1, 1, 28, 28)
