"""What experiments of gen_lab are made of: everything that a run folder from anywhere may call."""

import math
from typing import Any

from rl_lab.core.parts import TORCH, Parts, moved, parts

OLD_CODERS = "mlp_encoder", "mlp_decoder", "conv_encoder", "conv_decoder"
CODERS = (*OLD_CODERS, "residual_encoder", "residual_decoder", "world_models_encoder", "world_models_decoder")
LIKELIHOODS = "Bernoulli", "CrossEntropy", "Categorical", "DiscretisedLogistic", "Gaussian"

ALLOWED = {
    **TORCH,
    **parts("gen_lab.fit", "fit"),
    **parts("gen_lab.data", "digits", "mnist", "fashion_mnist", "cifar10", "folder", "npz", "recorded", "xor_chain",
            "ising", "gaussian_ring"),
    **parts("gen_lab.models.independent", "Independent"),
    **parts("gen_lab.models.bernoulli_mixture", "BernoulliMixture"),
    **parts("gen_lab.models.autoregressive", "Autoregressive"),
    **parts("gen_lab.models.pixelcnn", "PixelCNN"),
    **parts("gen_lab.models.gated_pixelcnn", "GatedPixelCNN"),
    **parts("gen_lab.models.pixelrnn", "PixelRNN", "RowLSTM", "DiagonalBiLSTM"),
    **parts("gen_lab.models.pixelcnnpp.network", "PixelCNNPP"),
    **parts("gen_lab.models.vae", "VAE"),
    **parts("gen_lab.models.autoencoder", "Autoencoder"),
    **parts("gen_lab.models.vqvae", "VQVAE", "vq_encoder", "vq_decoder"),
    **parts("gen_lab.models.gan.learner", "GAN"),
    **parts("gen_lab.models.gan.networks", "mlp_generator", "mlp_discriminator", "dcgan_generator",
            "dcgan_discriminator"),
    **parts("gen_lab.networks.coders", *CODERS),
    **parts("gen_lab.networks.codebook", "Codebook"),
    **parts("gen_lab.networks.causal.heads", "softmax", "LogisticMixture"),
    **parts("gen_lab.models.likelihoods", *LIKELIHOODS),
    **parts("gen_lab.judging", "Judge", "nothing"),
    **parts("gen_lab.judging.features", "classifier", "random", "inception"),
}  # fmt: skip

MOVED = {
    **moved("gen_lab.models.vae", "gen_lab.networks.coders", *OLD_CODERS),
    **moved("gen_lab.coders", "gen_lab.networks.coders", *CODERS),
    **moved("gen_lab.codebook", "gen_lab.networks.codebook", "Codebook"),
    **moved("gen_lab.likelihoods", "gen_lab.models.likelihoods", *LIKELIHOODS),
    **moved("gen_lab.causal.heads", "gen_lab.networks.causal.heads", "softmax", "LogisticMixture"),
}

GONE: dict[str, frozenset[str]] = {}

SPLITS = {"validation": 0, "subset": None, "flip": False}

YOUNGER: dict[str, dict[str, Any]] = {  # settings that older run folders leave out, and what they mean by it
    "gen_lab.fit.fit": {
        "eval_images": None, "picture_every": None, "epochs": None, "schedule": "constant", "warm_up": 0,
        "step_every": None, "step_factor": 0.1, "average": 0.0, "accumulate": 1, "compile": False, "best": False,
        "patience": None,
    },
    "gen_lab.data.digits": {"train": 1_500},
    "gen_lab.data.mnist": SPLITS,
    "gen_lab.data.fashion_mnist": SPLITS,
    "gen_lab.data.cifar10": SPLITS,
    "gen_lab.data.folder": {"protocol": "levels", "background": "white", **SPLITS},
    "gen_lab.data.npz": {"protocol": "levels", "held_out": 0.1, **SPLITS},
    "gen_lab.data.recorded": {"protocol": "levels"},
    "gen_lab.judging.Judge": {"root": None, "taught_on": "test"},
    "gen_lab.models.vae.VAE": {
        "likelihood": {"_target_": "gen_lab.models.likelihoods.Bernoulli", "_partial_": True}, "beta": 1.0,
        "free_nats": 0.0, "warm_up": 0, "importance_samples": 1, "conditional": False, "bf16": False,
    },
    "gen_lab.models.autoregressive.Autoregressive": {  # a VQ-VAE's prior
        "average": 0.0, "decay": 1.0, "max_grad_norm": math.inf, "bf16": False,
    },
}  # fmt: skip

EXACT = ("gen_lab.models.independent.", "gen_lab.models.bernoulli_mixture.", "gen_lab.judging.features.",
         "gen_lab.data.synthetic.", "gen_lab.data.ising", "gen_lab.data.xor_chain")  # fmt: skip

INSTEAD = {"loop.epochs": ("loop.total_steps",)}

NEEDS = {
    "loop.step_factor": ("loop.schedule", "step"),
    "loop.picture_every": ("loop.pictured", bool),
    "model.noise_updates": ("model.noise", bool),
    "loop.iwae_samples": ("model.importance_samples", bool),  # which the VAEs have, and they alone draw z for a bound
}

THEN = {"": ("gen-lab sample run={run}", "gen-lab evaluate run={run}")}

PARTS = Parts("gen_lab/parts.py", ALLOWED, MOVED, GONE, YOUNGER, then=THEN, instead=INSTEAD, needs=NEEDS, exact=EXACT)
