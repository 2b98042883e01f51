"""What the name of a metric says: `eval/nll_nats[mnist]` is the quantity `nll_nats` of `eval`, on mnist."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from typing import NamedTuple


class Known(NamedTuple):
    """What is declared of a metric."""

    lower: bool = False  # whether lower is better
    objective: bool = False  # whether it says how well a run does: the progress bar shows it, a search optimises it
    optimum: float | None = None  # the best value there can be
    shown: bool = False  # whether the progress line shows it all the same


LOWER = Known(lower=True)
OBJECTIVE, LOWER_OBJECTIVE = Known(objective=True), Known(lower=True, objective=True)

SHOWN, LOWER_SHOWN = Known(shown=True), Known(lower=True, shown=True)

KNOWN = {  # by stage/quantity in lower case, * for any text; the first that fits counts, and higher is better elsewhere
    "eval/return": OBJECTIVE,
    "episode/return": OBJECTIVE,
    "eval/regret": Known(lower=True, optimum=0.0),
    "wanted/plan_regret": Known(lower=True, optimum=0.0),
    "wanted/starc": Known(lower=True, optimum=0.0),
    "wanted/feature_gap": LOWER,
    "plan/residual": LOWER_OBJECTIVE,
    "eval/nll_nats": LOWER_OBJECTIVE,
    "eval/nll_bound_nats": LOWER_OBJECTIVE,
    "eval/bits_per_dim": LOWER_OBJECTIVE,
    "eval/bits_per_dim_bound": LOWER_OBJECTIVE,
    **dict.fromkeys(("eval/frechet", "autoregressive/bits_per_dim", "vae/bound_nats", "vae/iwae*_nats"), LOWER_SHOWN),
    **dict.fromkeys(("autoencoder/squared_error", "autoencoder/recon_bce"), LOWER_SHOWN),
    **dict.fromkeys(("gan/d(x)", "gan/d(g(z))", "gan/logit_real", "gan/logit_fake"), SHOWN),
    **dict.fromkeys(("gan/discriminator_loss", "gan/generator_loss", "vqvae/recon_nats"), LOWER_SHOWN),
    **dict.fromkeys(
        ("*nats", "*nll", "*/bits", "*/kl", "*loss", "*error", "*mse", "*_bce", "*residual", "*perplexity"), LOWER
    ),
    **dict.fromkeys(("*frechet*", "*distance", "*mmd", "*fid", "*kid"), LOWER),
}


class Metric(NamedTuple):
    """A metric's name, taken apart."""

    stage: str  # eval, episode, plan, or who learns: dqn, vae; "" where the name has no such part
    quantity: str
    data: str = ""  # what it was measured on: data set, protocol, the net of a judge

    @classmethod
    def of(cls, name: str) -> "Metric":
        head, _, data = name.partition("[")
        stage, slash, quantity = head.partition("/")
        return cls(stage, quantity, data.removesuffix("]")) if slash else cls("", head, data.removesuffix("]"))

    @property
    def name(self) -> str:
        return f"{self.stage}/" * bool(self.stage) + self.quantity + f"[{self.data}]" * bool(self.data)

    @property
    def error(self) -> str:
        """The name of its standard error."""
        return self._replace(quantity=f"{self.quantity}_se").name

    @property
    def is_error(self) -> bool:
        """Whether it is a standard error itself."""
        return self.quantity.endswith("_se")

    @property
    def known(self) -> Known:
        plain = Metric(self.stage, self.quantity.removesuffix("_se")).name.lower()
        return next((known for pattern, known in KNOWN.items() if fnmatchcase(plain, pattern)), Known())


def is_lower_better(name: str) -> bool:
    return Metric.of(name).known.lower


@cache  # it is asked of every figure of every row
def is_objective(name: str) -> bool:
    metric = Metric.of(name)
    return metric.known.objective and not metric.is_error


def is_shown(name: str) -> bool:
    """Whether the progress line has room for it."""
    metric = Metric.of(name)
    return (metric.known.objective or metric.known.shown) and not metric.is_error


def objective(names: Iterable[str]) -> str | None:
    """The one that a search optimises: of evaluations if there are any, a likelihood or a return before a distance of
    samples, and the first by name.
    """
    found = [name for name in names if is_objective(name) or (name.startswith("eval/") and is_shown(name))]
    return min(found, key=lambda x: (not is_objective(x), not x.startswith("eval/"), x), default=None)
