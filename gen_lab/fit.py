"""The one loop of gen_lab: it knows nothing of optimizers or likelihoods, so that every model fits in it."""

import contextlib
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gen_lab.data import Batches, Images
from gen_lab.judging import Judge, nothing
from gen_lab.judging.judge import KEPT_FROM
from gen_lab.judging.pictures import WIDTH, side_by_side, write_sheet, write_training_film
from gen_lab.losses import active_units
from gen_lab.types import Autoencoder, LatentModel, Meaning, Model
from rl_lab.core import distributed, room
from rl_lab.core.bookkeeping import Book
from rl_lab.core.devices import double
from rl_lab.core.interrupts import Halted, Stopped
from rl_lab.core.learner import Metrics
from rl_lab.core.metrics import Metric, is_shown
from rl_lab.core.randomness import generator, stream
from rl_lab.core.run import Run
from rl_lab.core.settings import Count, Natural

TESTED_AT_ONCE = 256  # images, fewer where their logits would fill the memory:
LOGITS_AT_ONCE = 2**27  # half a gigabyte
DECODED_AT_ONCE = 2**24  # pixels of draws of z, so that it is soon seen how long an evaluation takes
FEWEST_AT_ONCE = 8  # images, however many draws of z: one at a time would be slow
MEASURED = 4_000  # samples, where the data have a measure of their own
TOLD_EVERY = 10.0  # seconds
SOON = 1.0  # seconds that a last picture may take when a run is stopped


def fit(
    data: Images,
    model: Callable[..., Model],
    run: Run,
    *,
    batch_size: Count,  # images
    total_steps: Count,  # updates
    eval_every: Count,  # updates
    eval_images: Count | None,  # of the evaluations before the last; None: all of the test set, as in the last one
    log_every: Count | None,  # updates; None: 200 rows a run
    iwae_samples: Natural,  # draws of z for each test image in the last evaluation; 0: none
    pictured: Natural,  # images on a sheet
    picture_every: Count | None,  # updates; None: at each evaluation
    judge: Callable[[Images], Judge | None] = nothing,  # of samples, at each evaluation
) -> Model:
    """Update; now and then log, evaluate, draw, save.

    Under torchrun each process draws `batch_size` images of its own, and all learn together; the first one evaluates
    and draws, while the others wait for its next gradient.
    """
    room.memory(pictured * (16 * math.prod(data.spec.shape) + 12 * WIDTH**2), f"loop.pictured={pictured}")
    with run.at_once():
        data = data.to(run.device)
        watched = data.validated.some(eval_images)
        if run.leads and len(data.train) >= KEPT_FROM and getattr(judge, "func", judge) is not nothing:
            run.say("preparing the judge of samples, whose net learns and then sees all images: once, for it is kept")
        with distributed.alone():
            judged_by = judge(data) if run.leads else None
        learner = model(data.spec, device=run.device, seed=run.stream("model"))
        batches = Batches(data, batch_size, run.stream("batches"))

    says, took = "", math.inf

    def drawn() -> None:
        nonlocal took
        start = time.monotonic()
        picture(learner, data, run, book.step, pictured, says)
        took = time.monotonic() - start

    def evaluation() -> Metrics:
        nonlocal says
        last, seed = book.step >= total_steps, run.stream("eval")
        with run.at_once():
            told = Told(run.say, "the last evaluation" if last else "an evaluation")
            if last:
                measured = evaluate(learner, data, seed, iwae_samples, judged_by, told)
            else:
                measured = evaluate(learner, watched, seed, 0, judged_by, told)
            says = " · ".join(f"{Metric.of(k).quantity} {float(x):.4g}" for k, x in measured.items() if is_shown(k))
            drawn()
            if last:
                film(run, total_steps)
        return measured

    book = Book(run, {"model": learner, "batches": batches}, evaluation, total=total_steps, eval_every=eval_every,
                log_every=log_every, unit="updates")  # fmt: skip
    run.say(data.about)
    if watched.name != data.name or len(watched.test) < len(data.test):
        run.say(f"evaluations before the last are of {len(watched.test):,} images of {watched.name}, the last one of "
                f"all {len(data.test):,} to test on")  # fmt: skip
    if judged_by:
        run.say(judged_by.about)
    try:
        for _ in book.steps():
            book.add(learner.update(*batches.draw()))
            if picture_every and book.step % picture_every == 0 and book.step < total_steps and run.leads:
                with contextlib.suppress(Halted), run.at_once():  # the next pause saves, and stops
                    drawn()
    except Stopped as stop:
        if took < SOON and not isinstance(stop, Halted):
            drawn()
        raise
    return learner


class Told:
    """Says now and then how far a long evaluation is."""

    def __init__(self, say: Callable[[str], None], what: str):
        self.say, self.what, self.begun = say, what, time.monotonic()
        self.said = self.begun

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.said > TOLD_EVERY:
            self.said, left = now, (now - self.begun) * (total - done) / done
            self.say(f"{self.what}: {done:,} of {total:,} images, about {left:,.0f} s left")


@torch.no_grad()
def evaluate(
    model: Model,
    data: Images,
    seed: int,
    iwae_samples: int = 0,
    judge: Judge | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,  # after each batch
) -> Metrics:
    """The mean of each score over the whole test set and its standard error; how many units of a code are active;
    with a judge, the measures of samples. The same seed, the same draws.

    Where the data know their own log p, the divergence KL(p || model) is estimated too, image by image: its standard
    error is far below that of the likelihood. From a bound on the likelihood comes a bound on the divergence.
    p(x|label) is another quantity than p(x), and is named so.
    """
    rng, scores, codes = generator(seed, data.device), [], []
    pixels = math.prod(data.spec.shape)
    at_once = min(TESTED_AT_ONCE, LOGITS_AT_ONCE // (pixels * data.levels))
    at_once = max(1, min(at_once, max(FEWEST_AT_ONCE, DECODED_AT_ONCE // (pixels * max(1, iwae_samples)))))
    done = 0
    for x, label in data.tested(at_once):
        score = model.score(x, rng, iwae_samples, label)
        if isinstance(model, LatentModel):
            codes.append(model.code(x, label))
        if data.log_prob:
            nll = {name: nats for name, nats in score.items() if name in ("nll_nats", "nll_bound_nats")}
            score |= {name.replace("nll", "kl"): double(nats) + data.log_prob(x) for name, nats in nll.items()}
        scores.append(score)
        told(done := done + len(x), len(data.test))
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


def picture(model: Model, data: Images, run: Run, step: int, count: int, says: str = "") -> None:
    """Samples, a class a row where the model knows any; what the model means by them where it draws pixels one by one;
    for an autoencoder test images (left) beside their reconstructions (right).
    """
    if not count:
        return
    if not run.path("pictures/real.png").exists():
        real(data, run, count)
    label, columns = in_rows(model.spec.classes, count)
    label = None if label is None else label.to(run.device)
    rng = lambda: generator(run.stream("pictures"), run.device)  # noqa: E731
    count = count if label is None else len(label)
    caption = " · ".join(filter(None, (run.names.get("name"), f"update {step:,}", says)))
    sheets = {"samples": (data.spec.scaled(model.sample(count, rng(), label)), columns, caption)}
    if isinstance(model, Meaning):
        sheets["means"] = model.pixel_means(count, rng(), label), columns, f"{caption} · means, not draws"
    if isinstance(model, Autoencoder):
        shown = slice(-(-count // 2))
        x = data.test[shown].to(data.device)
        known = data.test_labels[shown].to(data.device) if data.test_labels is not None else None
        pairs = side_by_side(data.spec.scaled(x), model.reconstruct(x, known))
        sheets["reconstructions"] = pairs, 8, f"{caption} · left the image, right its reconstruction"
    for name, (images, across, words) in sheets.items():
        path = write_sheet(run.path(f"pictures/{name}_{step:08d}.png"), images, across, words)
        run.media(name, path, step)


def real(data: Images, run: Run, count: int) -> None:
    """A sheet of training images to hold samples against, a class a row where they have labels."""
    label, columns = in_rows(data.classes, count)
    index = torch.arange(min(count, len(data.train)))
    if label is not None and data.train_labels is not None:
        known = data.train_labels.cpu()
        places = [torch.nonzero(known == k).flatten()[:columns] for k in range(data.classes)]
        index = torch.cat([x if len(x) == columns else x.repeat(columns)[:columns] for x in places if len(x)])
    x = data.train[index.to(data.train.device)]
    spec = data.spec._replace(levels=256) if data.resampled else data.spec  # the greys that bits are drawn from
    write_sheet(run.path("pictures/real.png"), spec.scaled(x), columns, f"{data.name} · training images")


def in_rows(classes: int, count: int) -> tuple[Tensor | None, int]:
    """Labels [N] of about `count` images, a class a row, and the columns; without classes none, and 8."""
    if not 0 < classes <= count:
        return None, 8
    columns = count // classes
    return torch.arange(classes).repeat_interleave(columns), columns


def film(run: Run, step: int) -> None:
    """The samples of all evaluations one after another, each drawn from the same noise."""
    sheets = run.folder.found("pictures/samples_*.png")
    if len(sheets) > 1:
        run.media("training", write_training_film(run.path("videos/training.gif"), sheets), step)
