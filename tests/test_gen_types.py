"""Levels, the currency of gen_lab: how they are scaled, and of which type they are."""

from functools import partial

import pytest
import torch
from stated import stated

from gen_lab.data import Batches, Images
from gen_lab.models.gated_pixelcnn import GatedPixelCNN
from gen_lab.models.independent import Independent
from gen_lab.networks.causal.heads import softmax
from gen_lab.types import Autoencoder, Inpainter, LatentModel, ProgressiveSampler, Spec

digits = stated("data/digits")

CPU = torch.device("cpu")


def test_levels_are_scaled_to_both_ranges_and_back():
    spec, x = Spec((1, 1, 5), 5), torch.arange(5, dtype=torch.uint8)
    assert spec.scaled(x).tolist() == [0, 0.25, 0.5, 0.75, 1] and spec.scaled(x).dtype == torch.float32
    assert spec.centred(x).tolist() == [-1, -0.5, 0, 0.5, 1]
    assert torch.equal(spec.nearest(spec.scaled(x)), x)
    assert spec.nearest(torch.tensor([-3.0, 0.1, 0.2, 0.9, 7.0])).tolist() == [0, 0, 1, 4, 4]


@pytest.mark.parametrize("levels", [2, 3, 17, 255, 256])
def test_every_level_survives_the_way_to_floats_and_back(levels):
    spec, x = Spec((1, 1, 1), levels), torch.arange(levels, dtype=torch.uint8)
    assert torch.equal(spec.nearest(spec.scaled(x)), x) and torch.equal(spec.nearest((spec.centred(x) + 1) / 2), x)


@pytest.mark.parametrize(("levels", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int64)])
def test_levels_that_are_drawn_fit_their_type(levels, dtype):
    """A prior's codes may be more than a byte can count."""
    spec = Spec((1, 2, 2), levels)
    network = partial(GatedPixelCNN, channels=4, blocks=1, head_channels=4, embedding=3)
    model = stated("model/gated_pixelcnn", network=network, head=softmax, optimizer=torch.optim.Adam)(spec, CPU, 0)
    x = model.sample(200, torch.Generator().manual_seed(0))
    assert x.dtype == dtype and 0.9 * (levels - 1) < int(x.max()) < levels


@pytest.mark.parametrize("resampled", [False, True])
def test_batches_are_levels(resampled):
    pixels = torch.full((10, 1, 2, 2), 200, dtype=torch.uint8)
    x, _ = Batches(Images("toy", pixels, pixels, 2 if resampled else 256, resampled=resampled), 10, seed=0).draw()
    assert x.dtype == torch.uint8 and x.max() == (1 if resampled else 200)


def test_what_a_model_offers_beyond_the_protocol_is_asked_by_type():
    model = Independent(digits(protocol="binarised").spec, CPU, 0, smoothing=0.1)
    assert not isinstance(model, Autoencoder | LatentModel | Inpainter | ProgressiveSampler)
