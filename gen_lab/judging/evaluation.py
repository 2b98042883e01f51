"""The scores of a model on a whole test set, each with its standard error."""

from collections.abc import Callable

import torch
from torch import Tensor

from gen_lab.data.images import Images, at_once
from gen_lab.judging.judge import Judge
from gen_lab.types import LatentModel, Model
from rl_lab.core.devices import double
from rl_lab.core.learner import Metrics
from rl_lab.core.randomness import generator, stream

MEASURED = 4_000  # samples, where the data have a measure of their own


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
    done = 0
    for x, label in data.tested(at_once(data.spec, iwae_samples)):
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
        if len(values) > 1:  # a single image has no deviation, and no unit is active in it alone
            metrics[f"eval/{name}_se[{protocol}]"] = values.std() / len(values) ** 0.5
    if codes and len(data.test) > 1:
        metrics[f"eval/active_units[{protocol}]"] = active_units(torch.cat(codes))
    if data.measure:
        drawn = model.sample(MEASURED, generator(stream(seed, "measure"), data.device))
        metrics |= {f"eval/{name}[{protocol}]": x for name, x in data.measure(drawn).items()}
    return metrics | (judge(model, generator(stream(seed, "judge"), data.device)) if judge else {})


def active_units(mu: Tensor) -> Tensor:
    """How many latents [] distinguish images: the variance over N images of their posterior mean [N, Z] is above 0.01.

    See Burda, Grosse & Salakhutdinov (2016), section 5.2.
    """
    return (mu.var(0) > 0.01).sum()
