"""Generative models of images: data, likelihoods, models, and the one loop that fits them.

What the command line does, the functions below do from Python, by settings as they are typed there:

    folder = gen_lab.train("experiment=vae_digits", "seed=1")
    trained = gen_lab.load(folder)
    trained.sample(64)
    trained.score(trained.data.test)["nll_bound_nats"].mean()
    trained.decode(trained.code(trained.data.test))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

if TYPE_CHECKING:
    from gen_lab.trained.loading import Trained


def train(*settings: str, **named: Never) -> Path:
    """Trains as `gen-lab train` with these settings, or resumes run=<folder>; returns the folder of the run.

    >>> folder = gen_lab.train("experiment=vae_digits", "loop.total_steps=100", "tracker=none", "device=cpu")
    >>> sorted(path.name for path in folder.glob("*.*"))
    ['checkpoint.pt', 'config.yaml', 'metrics.jsonl', 'summary.json']

    Raises UserError where a setting is not known, or cannot be.
    """
    from rl_lab.core.launching.building import trained

    return trained("gen-lab", "gen", settings, named)


def load(run: str | Path, *changes: str, device: str = "auto") -> "Trained":
    """What a run learned, and its data; `changes` are settings for this once, such as data.root=/data.

    >>> trained = gen_lab.load(folder, device="cpu")
    >>> x = trained.data.test[:5]  # levels [B, C, H, W]
    >>> trained.sample(8).shape
    torch.Size([8, 1, 8, 8])
    >>> sorted(trained.score(x))
    ['bits_per_dim_bound', 'kl_prior_nats', 'nll_bound_nats']
    >>> z = trained.code(x)
    >>> trained.decode(z).shape  # means in [0, 1]
    torch.Size([5, 1, 8, 8])

    `run` is a folder, a pattern that names one, or wandb:<entity>/<project>/<run>. Raises UserError.
    """
    from gen_lab.trained import loading
    from rl_lab.core.launching import given

    return loading.load(given.run_of(run, "gen_lab"), device, given.changes(changes, "device"))


def evaluate(
    run: str | Path,
    *changes: str,
    images: int | None = None,
    iwae_samples: int = 0,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, float]:
    """The scores of the whole test set, or of so many images of it, each with its standard error, as `gen-lab evaluate`
    has them.

    >>> scores = gen_lab.evaluate(folder, device="cpu")
    >>> round(scores["eval/nll_bound_nats_se[digits-binarised]"], 1)
    0.2

    Nothing is written; of a model without a likelihood nothing is found, {}. Raises UserError.
    """
    from gen_lab.judging import evaluation
    from rl_lab.core.launching import given
    from rl_lab.core.settings import Count, Natural, conform

    iwae_samples, seed = conform("iwae_samples", iwae_samples, Natural), conform("seed", seed, Natural)
    images = None if images is None else conform("images", images, Count)
    trained = load(run, *given.changes(changes, "images", "iwae_samples", "seed", "device"), device=device)
    found = evaluation.evaluate(trained.model, trained.data.some(images), seed, iwae_samples)
    return {name: float(x) for name, x in found.items()}


def metrics(*runs: str | Path, settings: Sequence[str] | str = ()) -> list[dict[str, Any]]:
    """What runs logged, as plain records: of each run at or below these folders, or patterns, a record for each row.

    >>> record = gen_lab.metrics("runs", settings=["model.beta"])[-1]
    >>> record["name"], record["data"], record["seed"], record["model.beta"], record["step"]
    ('vae_digits', 'digits', 0, 1.0, 100)

    Each has run, name, seed, the names chosen (model, data), the `settings` asked for, step, seconds, and the metrics
    of its row. Raises UserError.
    """
    from rl_lab.core.folders import read_runs, records
    from rl_lab.core.launching.given import runs_of

    return records(read_runs(runs_of(runs), []), settings)


def frame(*runs: str | Path, settings: Sequence[str] | str = ()) -> Any:
    """The same as a pandas.DataFrame (pip install 'rl-lab[pandas]').

    >>> list(gen_lab.frame("runs/vae_*").groupby("name").step.max().items())
    [('vae_digits', 100)]

    Raises UserError.
    """
    from rl_lab.core import folders

    return folders.frame(metrics(*runs, settings=settings))
