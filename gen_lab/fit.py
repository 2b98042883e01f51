"""The one loop of gen_lab: it knows nothing of optimizers or likelihoods, so that every model fits in it."""

import math
from collections.abc import Callable

import torch

from gen_lab.data import Batches, Images
from gen_lab.judging import Judge, nothing
from gen_lab.judging.pictures import WIDTH, side_by_side, write_sheet, write_training_film
from gen_lab.losses import active_units
from gen_lab.types import Autoencoder, LatentModel, Model
from rl_lab.core import distributed, room
from rl_lab.core.bookkeeping import Book
from rl_lab.core.devices import double
from rl_lab.core.learner import Metrics
from rl_lab.core.randomness import generator, stream
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Natural

TESTED_AT_ONCE = 256  # images, fewer where their logits would fill the memory:
LOGITS_AT_ONCE = 2**27  # half a gigabyte
MEASURED = 4_000  # samples, where the data have a measure of their own


def fit(
    data: Images,
    model: Callable[..., Model],
    run: Run,
    *,
    batch_size: Count,  # images
    total_steps: Count,  # updates
    eval_every: Count,  # updates
    log_every: Count | None,  # updates; None: 200 rows a run
    iwae_samples: Natural,  # draws of z for each test image in the last evaluation; 0: none
    pictured: Natural,  # images on a sheet
    judge: Callable[[Images], Judge | None] = nothing,  # of samples, at each evaluation
) -> Model:
    """Update; now and then log, evaluate, draw, save.

    Under torchrun each process draws `batch_size` images of its own, and all learn together; the first one evaluates
    and draws, while the others wait for its next gradient.
    """
    room.memory(pictured * (16 * math.prod(data.spec.shape) + 12 * WIDTH**2), f"loop.pictured={pictured}")
    data = data.to(run.device)
    with distributed.alone():
        judged_by = judge(data) if run.leads else None
    learner = model(data.spec, device=run.device, seed=run.stream("model"))
    batches = Batches(data, batch_size, run.stream("batches"))

    def evaluation() -> Metrics:
        last = book.step >= total_steps
        picture(learner, data, run, book.step, pictured)
        if last:
            film(run, total_steps)
        return evaluate(learner, data, run.stream("eval"), iwae_samples if last else 0, judged_by)

    book = Book(run, {"model": learner, "batches": batches}, evaluation, total=total_steps, eval_every=eval_every,
                log_every=log_every, unit="updates")  # fmt: skip
    run.say(data.about)
    if judged_by:
        run.say(judged_by.about)
    for _ in book.steps():
        book.add(learner.update(*batches.draw()))
    return learner


@torch.no_grad()
def evaluate(model: Model, data: Images, seed: int, iwae_samples: int = 0, judge: Judge | None = None) -> Metrics:
    """The mean of each score over the whole test set and its standard error; how many units of a code are active;
    with a judge, the measures of samples. The same seed, the same draws.

    Where the data know their own log p, the divergence KL(p || model) is estimated too, image by image: its standard
    error is far below that of the likelihood. From a bound on the likelihood comes a bound on the divergence.
    p(x|label) is another quantity than p(x), and is named so.
    """
    rng, scores, codes = generator(seed, data.device), [], []
    at_once = max(1, min(TESTED_AT_ONCE, LOGITS_AT_ONCE // (math.prod(data.spec.shape) * data.levels)))
    for x, label in data.tested(at_once):
        score = model.score(x, rng, iwae_samples, label)
        if isinstance(model, LatentModel):
            codes.append(model.code(x, label))
        if data.log_prob:
            nll = {name: nats for name, nats in score.items() if name in ("nll_nats", "nll_bound_nats")}
            score |= {name.replace("nll", "kl"): double(nats) + data.log_prob(x) for name, nats in nll.items()}
        scores.append(score)
    metrics, protocol = {}, data.name + "-given-label" * bool(model.spec.classes)
    for name in scores[0]:
        values = double(torch.cat([score[name] for score in scores]))  # [N]: each image counts once
        metrics[f"eval/{name}[{protocol}]"] = values.mean()
        metrics[f"eval/{name}_se[{protocol}]"] = values.std() / len(values) ** 0.5
    if codes:
        metrics[f"eval/active_units[{protocol}]"] = active_units(torch.cat(codes))
    if data.measure:
        drawn = model.sample(MEASURED, generator(stream(seed, "measure"), data.device))
        metrics |= {f"eval/{name}[{protocol}]": x for name, x in data.measure(drawn).items()}
    return metrics | (judge(model, generator(stream(seed, "judge"), data.device)) if judge else {})


def picture(model: Model, data: Images, run: Run, step: int, count: int) -> None:
    """Samples, and for an autoencoder test images (left) beside their reconstructions (right)."""
    if not count:
        return
    sheets = {"samples": data.spec.scaled(model.sample(count, generator(run.stream("pictures"), run.device)))}
    if isinstance(model, Autoencoder):
        shown = slice(-(-count // 2))
        x = data.test[shown].to(data.device)
        label = data.test_labels[shown].to(data.device) if data.test_labels is not None else None
        sheets["reconstructions"] = side_by_side(data.spec.scaled(x), model.reconstruct(x, label))
    for name, images in sheets.items():
        run.media(name, write_sheet(run.path(f"pictures/{name}_{step:08d}.png"), images), step)


def film(run: Run, step: int) -> None:
    """The samples of all evaluations one after another, each drawn from the same noise."""
    sheets = run.folder.found("pictures/samples_*.png")
    if len(sheets) > 1:
        run.media("training", write_training_film(run.path("videos/training.gif"), sheets), step)
