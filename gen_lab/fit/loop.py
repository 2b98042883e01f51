"""The one loop of gen_lab. It knows nothing of optimizers or likelihoods, so every model fits in it."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gen_lab.data import Batches, Images
from gen_lab.fit.checks import check, check_within, optimizers
from gen_lab.judging import Judge, nothing
from gen_lab.judging.evaluation import evaluate
from gen_lab.judging.pictures import WIDTH, in_rows, side_by_side, write_sheet, write_training_film
from gen_lab.networks.averaging import Averages
from gen_lab.networks.best import Best
from gen_lab.networks.compiling import as_they_are, compile_networks
from gen_lab.types import Autoencoder, Meaning, Model
from rl_lab.core import distributed, room
from rl_lab.core.bookkeeping import Book
from rl_lab.core.errors import UserError, counted
from rl_lab.core.interrupts import Halted, Stopped
from rl_lab.core.learner import Decay, Metrics
from rl_lab.core.metrics import Metric, is_shown
from rl_lab.core.progress import Told
from rl_lab.core.randomness import generator
from rl_lab.core.ranks import Part
from rl_lab.core.run import Run
from rl_lab.core.schedules import Schedule, share
from rl_lab.core.settings import Count, Natural, Positive, Unit

SOON = 1.0  # seconds that a last picture may take when a run is stopped
SHOWN_EVERY = 5.0  # seconds, of the progress line before the first row


def fit(
    data: Images,
    model: Callable[..., Model],
    run: Run,
    *,
    batch_size: Count,  # images
    total_steps: Count,  # updates
    eval_every: Count | None,  # updates; None: only after the last one
    eval_images: Count | None,  # of the evaluations before the last; None: all of the test set, as in the last one
    log_every: Count | None,  # updates; None: 200 rows a run
    iwae_samples: Natural,  # draws of z for each test image in the last evaluation; 0: none
    pictured: Natural,  # images on a sheet
    picture_every: Count | None,  # updates; None: at each evaluation
    epochs: Count | None,  # passes over the training images, in place of total_steps
    schedule: Schedule,  # of the learning rates
    warm_up: Natural,  # updates in which they rise from 0
    step_every: Count | None,  # updates, after each of which schedule=step multiplies them by
    step_factor: Positive,
    average: Unit,  # decay, an update, of the moving average of all weights, which is evaluated and sampled; 0: none
    accumulate: Count,  # parts of a batch whose gradients are added up, so that less lies in memory
    compile: bool,  # the networks, by torch.compile, in updates
    best: bool,  # whether the last evaluation is of the weights that did best on validation images
    patience: Count | None,  # evaluations without a better one, after which training ends, with `best`; None: never
    judge: Callable[..., Judge | None] = nothing,  # of samples, at each evaluation
) -> Model:
    """Update; now and then log, evaluate, draw, save.

    Under torchrun each process draws `batch_size` images of its own, and all learn together; the first one evaluates
    and draws, while the others wait for its next gradient.
    """
    room.memory(pictured * (16 * math.prod(data.spec.shape) + 12 * WIDTH**2), f"loop.pictured={pictured}")
    with run.at_once():
        data = data.to(run.device)
        watched = data.validated.some(eval_images)
        with distributed.alone():
            judged_by = judge(data, say=run.say) if run.leads else None
        learner: Any = model(data.spec, device=run.device, seed=run.stream("model"))
        batches = Batches(data, batch_size, run.stream("batches"))
    an_epoch = max(1, len(data.train) // batches.drawn)
    total_steps = total_steps if epochs is None else epochs * an_epoch
    check(learner, data, schedule, warm_up, step_every, average, accumulate, best, patience, eval_every)
    if accumulate > batch_size:
        raise UserError(f"loop.accumulate={accumulate} must be at most loop.batch_size={batch_size}")
    check_within(learner, total_steps, warm_up, step_every, run.say)
    if accumulate > 1:
        learner.in_parts = accumulate
    if compile:
        compile_networks(learner)
    rates = [Decay(optimizer) for optimizer in optimizers(learner)] if schedule != "constant" or warm_up else []
    averages, chosen = Averages(learner, average), Best()
    parts: dict[str, Part] = {"model": learner, "batches": batches}
    parts |= {"average": averages} if average else {}
    parts |= {"best": chosen} if best or patience else {}

    sight = Sight(run, learner, data, averages, pictured)

    def scored(images: Images, draws: int, by: Judge | None, what: str) -> Metrics:
        return evaluate(learner, images, run.stream("eval"), draws, by, Told(run.say, what))

    def weigh() -> None:
        """Whether the last weights are the best: before the book saves for the last time, and evaluates."""
        if book.step < book.total or "best" not in parts or chosen.offered >= book.step or not run.leads:
            return
        try:
            with run.at_once(), sight.open():
                chosen.offer(scored(watched, 0, None, "the validation images"), book.step, learner)
        except Halted:  # it is due again when the run is resumed
            run.save(book.step, parts)
            raise

    def evaluation() -> Metrics:
        last = book.step >= book.total
        with run.at_once(), sight.open(), chosen.shown(learner) if last else contextlib.nullcontext():
            if last and chosen.learned:
                run.say(f"the last evaluation is of update {chosen.step:,}, which did best on the validation images")
            if last:
                measured = scored(data, iwae_samples, judged_by, "the last evaluation")
            else:  # a judge compares with test images, which are for the last one where others are kept for these
                measured = scored(watched, 0, judged_by if data.validation is None else None, "an evaluation")
            sight.note(measured)
            if not last:
                measured[f"eval/images[{watched.name}]"] = torch.tensor(float(len(watched.test)))
            sight.draw(book.step, of=chosen.step if last and chosen.learned else None)
            if last:
                film(run, book.step)
                measured |= {"best/update": torch.tensor(float(chosen.step))} if chosen.learned else {}
                measured |= chosen.figures  # by which a search chooses, for the test set is for the end
            elif "best" in parts and book.step >= getattr(learner, "autoencoder_steps", 0):  # a prior learns
                chosen.offer(measured, book.step, learner)
        if patience and chosen.worse >= patience and not last:
            run.say(f"update {book.step:,}: no better on the validation images since update {chosen.step:,}; it ends")
            book.stop()
        return measured

    book = Book(run, parts, evaluation, total=total_steps, eval_every=eval_every, log_every=log_every, unit="updates")
    if patience and chosen.worse >= patience:
        book.stop()
    run.say(data.about)
    run.progress.an_epoch = an_epoch
    if watched.name != data.name or len(watched.test) < len(data.test):
        images = counted(len(watched.test), "images")
        run.say(f"evaluations before the last are of {images} of {watched.name}, the last one of all "
                f"{len(data.test):,} to test on")  # fmt: skip
    if judged_by:
        run.say(judged_by.about)
    if compile:
        run.say("loop.compile=true: the first updates wait for torch.compile, half a minute to several")
    shown = 0.0
    try:
        weigh()
        for _ in book.steps():
            for rate in rates:
                rate.scale(share(schedule, book.step - 1, total_steps, warm_up, step_every, step_factor))
            book.add(metrics := learner.update(*batches.draw()))
            averages.follow()
            weigh()
            if book.step < book.rows.next and time.monotonic() > shown + SHOWN_EVERY:  # of the row to come
                shown = time.monotonic()
                run.progress.show({name: float(x) for name, x in metrics.items()})
            if picture_every and book.step % picture_every == 0 and book.step < total_steps and run.leads:
                with contextlib.suppress(Halted), run.at_once(), sight.open():  # the next pause saves, and stops
                    sight.draw(book.step)
    except Stopped as stop:
        if sight.took < SOON and not isinstance(stop, Halted):
            with sight.open():
                sight.draw(book.step)
        raise
    return learner


class Sight:
    """How a learner is looked at: by its averaged weights, with its networks as they are without torch.compile."""

    def __init__(self, run: Run, learner: Any, data: Images, averages: Averages, pictured: int):
        self.run, self.learner, self.data, self.averages, self.pictured = run, learner, data, averages, pictured
        self.says, self.took = "", math.inf  # the last scores, for a sheet's caption; seconds that it took to draw

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with self.averages.shown(), as_they_are():
            yield

    def note(self, measured: Metrics) -> None:
        told = {name: float(x) for name, x in measured.items() if is_shown(name)}
        self.says = " · ".join(f"{Metric.of(name).quantity} {x:.4g}" for name, x in told.items())

    def draw(self, step: int, of: int | None = None) -> None:
        """`of`: the update that the weights are of, where it is an earlier one."""
        start = time.monotonic()
        says = f"update {step if of is None else of:,} · {self.says}".removesuffix(" · ")
        picture(self.learner, self.data, self.run, step, self.pictured, says)
        self.took = time.monotonic() - start


def picture(model: Model, data: Images, run: Run, step: int, count: int, says: str = "") -> None:
    """Draws samples, a class a row where the model knows any; their means, where it draws pixels one by one; for an
    autoencoder test images (left) beside their reconstructions (right).
    """
    if not count:
        return
    if not run.path("pictures/real.png").exists():
        real(data, run, count)
    label, columns = in_rows(model.spec.classes, count)
    label = None if label is None else label.to(run.device)
    rng = lambda: generator(run.stream("pictures"), run.device)  # noqa: E731
    count = count if label is None else len(label)
    caption = " · ".join(filter(None, (run.names.get("name"), says)))
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
    """Draws a sheet of training images to compare samples with, a class a row where they have labels."""
    label, columns = in_rows(data.classes, count)
    index = torch.arange(min(count, len(data.train)))
    if label is not None and data.train_labels is not None:
        known = data.train_labels.cpu()
        places = [torch.nonzero(known == k).flatten()[:columns] for k in range(data.classes)]
        index = torch.cat([x if len(x) == columns else x.repeat(columns)[:columns] for x in places if len(x)])
    x = data.train[index.to(data.train.device)]
    spec = data.spec._replace(levels=256) if data.resampled else data.spec  # the greys that bits are drawn from
    write_sheet(run.path("pictures/real.png"), spec.scaled(x), columns, f"{data.name} · training images")


def film(run: Run, step: int) -> None:
    """Makes a film of the samples of all evaluations, each drawn from the same noise."""
    sheets = run.folder.found("pictures/samples_*.png")
    if len(sheets) > 1:
        run.media("training", write_training_film(run.path("videos/training.gif"), sheets), step)
