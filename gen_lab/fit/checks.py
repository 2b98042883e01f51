"""Which settings of the loop contradict the model's, or one another."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from gen_lab.data import Images
from gen_lab.networks.averaging import weights
from rl_lab.core import distributed
from rl_lab.core.errors import UserError, counted
from rl_lab.core.learner import Learner


def check(
    learner: Any,
    data: Images,
    schedule: str,
    warm_up: int,
    step_every: int | None,
    average: float,
    accumulate: int,
    best: bool,
    patience: int | None,
    eval_every: int | None,
) -> None:
    """Raises UserError where settings of the loop contradict the model's, or one another."""
    name = type(learner).__name__
    for at, part in learners(learner):
        decay, own = getattr(part, "decay", 1.0), getattr(part, "average", 0.0)
        if (schedule != "constant" or warm_up) and decay != 1:
            raise UserError(f"loop.schedule and loop.warm_up need {at}.decay=1: it is {decay:g}, and sets the rate too")
        if average and own:
            raise UserError(f"loop.average={average:g} needs {at}.average=0: it is {own:g}; one is enough")
    if (schedule != "constant" or warm_up) and not [*optimizers(learner)]:
        raise UserError(
            f"loop.schedule and loop.warm_up would be ignored, as {name} has no learning rate; leave them out"
        )
    if average and not [*weights(learner)]:
        raise UserError(
            f"loop.average={average:g} would be ignored, as {name} learns no weights by gradients; leave it out"
        )
    if (schedule == "step") != (step_every is not None):
        raise UserError("loop.schedule=step and loop.step_every=<updates> belong together")
    if average == 1:
        raise UserError("loop.average=1 would stay at the first weights for ever; set 0.999, or 0 for no average")
    if accumulate > 1 and not hasattr(learner, "in_parts"):
        raise UserError(
            f"loop.accumulate={accumulate}: {name} needs a batch whole; PixelCNNs, PixelRNNs, VAEs and plain "
            "autoencoders take it in parts"
        )
    if (best or patience) and eval_every is None:
        raise UserError(
            "loop.best and loop.patience choose among evaluations, and loop.eval_every=null leaves one alone; give it "
            "a number of updates"
        )
    if patience and distributed.size() > 1:
        raise UserError("loop.patience is for a run in one process; loop.best=true keeps the best weights of several")
    if (best or patience) and data.validation is None:
        raise UserError(
            f"loop.best and loop.patience choose by validation images, and {data.name} has none, for the test set is "
            "for the last evaluation; set data.validation=5_000 where the data take it (cifar10, mnist, fashion_mnist, "
            "npz, folder), or leave them out"
        )


def check_within(learner: Any, total: int, warm_up: int, step_every: int | None, say: Callable[[str], None]) -> None:
    """Raises UserError where the rates would only rise, or never fall; a model's own warm-up may be cut short."""
    if warm_up > total:
        raise UserError(f"loop.warm_up={warm_up:,} is longer than the run of {counted(total, 'updates')}, in which the "
                        "rates would only rise; set it lower, or loop.total_steps higher")  # fmt: skip
    if step_every and warm_up + step_every >= total:
        raise UserError(f"loop.step_every={step_every:,} leaves the rates as they are in a run of "
                        f"{counted(total, 'updates')}; set it lower, or leave out loop.schedule=step")  # fmt: skip
    if (own := getattr(learner, "warm_up", 0)) > total:
        say(f"model.warm_up={own:,} is longer than the run of {counted(total, 'updates')}: it ends with a weight of "
            f"{total / own:.2g}")  # fmt: skip
    if 0 < total <= (own := getattr(learner, "autoencoder_steps", 0)):
        say(f"model.autoencoder_steps={own:,} are all of this run: the prior, from which images "
            "are sampled, learns nothing")  # fmt: skip


def optimizers(learner: Learner) -> Iterator[torch.optim.Optimizer]:
    """The optimizers of all its networks."""
    for _, part in learners(learner):
        yield from (x for x in vars(part).values() if isinstance(x, torch.optim.Optimizer))


def learners(learner: Learner, at: str = "model") -> Iterator[tuple[str, Learner]]:
    """It, and those within it, each with the place of its settings."""
    yield at, learner
    for name, part in vars(learner).items():
        if isinstance(part, Learner):
            yield from learners(part, f"{at}.{name}")
