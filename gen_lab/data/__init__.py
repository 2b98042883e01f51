"""Data sets: images as whole grey levels, on the device or mapped from disk, with labels where there are any."""

from gen_lab.data.arrays import npz
from gen_lab.data.cifar import cifar10
from gen_lab.data.digits8x8 import digits
from gen_lab.data.gaussians import gaussian_ring
from gen_lab.data.idx import fashion_mnist, mnist
from gen_lab.data.images import Batches, Images
from gen_lab.data.pictures import folder
from gen_lab.data.recordings import recorded
from gen_lab.data.synthetic import ising, xor_chain

__all__ = [
    "Batches", "Images", "cifar10", "digits", "fashion_mnist", "folder", "gaussian_ring", "ising", "mnist", "npz",
    "recorded", "xor_chain",
]  # fmt: skip
