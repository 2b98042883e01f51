"""Small autoencoders and images, shared by their tests."""

from functools import partial

import torch

from gen_lab.models.likelihoods import Bernoulli
from gen_lab.models.vae import VAE
from gen_lab.networks.coders import (
    conv_decoder,
    conv_encoder,
    mlp_decoder,
    mlp_encoder,
    residual_decoder,
    residual_encoder,
    world_models_decoder,
    world_models_encoder,
)
from gen_lab.types import Spec
from rl_lab.core.randomness import generator

CPU = torch.device("cpu")
BINARY = Spec((1, 8, 8), 2)
GREY = Spec((1, 8, 8), 17, 10)


MLP = {"encoder": partial(mlp_encoder, hidden=32), "decoder": partial(mlp_decoder, hidden=32)}
CONV = {"encoder": partial(conv_encoder, channels=8), "decoder": partial(conv_decoder, channels=8)}
RESIDUAL = {
    "encoder": partial(residual_encoder, channels=8, blocks=1, halvings=2),
    "decoder": partial(residual_decoder, channels=8, blocks=1, halvings=2),
}
WORLD_MODELS = {"encoder": world_models_encoder, "decoder": world_models_decoder}
PLAIN = {"likelihood": Bernoulli, "beta": 1.0, "free_nats": 0.0, "warm_up": 0, "importance_samples": 1,
         "conditional": False, "bf16": False}  # fmt: skip


def build(spec: Spec = BINARY, seed: int = 0, *, lr: float = 2e-3, **knobs) -> VAE:
    usual = {**MLP, **PLAIN, "latents": 8, "optimizer": partial(torch.optim.Adam, lr=lr)}
    return VAE(spec, CPU, seed, **usual | knobs)


def images(count: int, spec: Spec = BINARY) -> torch.Tensor:
    return torch.randint(spec.levels, (count, *spec.shape), generator=generator(1, CPU)).to(spec.dtype)
