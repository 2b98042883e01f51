"""What the latest evaluations of runs say: each measure, its standard error, and whether it is exact or a bound."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rl_lab.core.comparing.groups import Groups
from rl_lab.core.errors import counted, pasted
from rl_lab.core.files import opened, printable
from rl_lab.core.folders import Curve, RunFiles
from rl_lab.core.metrics import Metric, is_lower_better

X = TypeVar("X")
BEST = "best/update"  # that the weights of the last row are of, where those that did best were chosen
LARGEST = 2**24  # bytes of an evaluation.json
JOINED = {  # one quantity each: of some models exact, of others a bound
    "nats": ("nll_nats", "nll_bound_nats"),
    "bits": ("bits_per_dim", "bits_per_dim_bound"),
    "kl": ("kl_nats", "kl_bound_nats"),
}


TITLES = {  # in words, with their units
    "nats": "negative log-likelihood, nats an image",
    "bits/dim": "the same, bits a dimension",
    "kl_nats": "divergence from the data, nats",
    "kl_prior_nats": "KL of codes from their prior, nats",
    "recon_nats": "of them, pixels given the code, nats",
    "code_nats": "of them, the code, nats",
    "active_units": "active units of the code",
    "recon_bce": "cross entropy of reconstructions, no likelihood",
    "squared_error": "squared error of reconstructions, an image",
    "denoised_recon_bce": "cross entropy, of spoilt images",
    "denoised_squared_error": "squared error, of spoilt images",
    "frechet": "Fréchet distance",
    "frechet_floor": "Fréchet distance of held-out images",
    "kernel_distance": "kernel distance (KID)",
    "mmd": "maximum mean discrepancy, squared",
    "precision": "precision, share of samples",
    "recall": "recall, share of real images",
    "density": "density (1: as dense as real images)",
    "coverage": "coverage, share of real images",
    "memorised": "memorised, share of samples (0.05 of real ones)",
    "nearest": "median distance to a training image",
    "classes_covered": "classes covered",
    "class_kl_nats": "divergence of class shares, nats",
}
NEITHER = "frechet_floor", "memorised", "nearest", "density", "active_units", "kl_prior_nats", "recon_nats", "code_nats"


class Figure(NamedTuple):
    """What one run says of one measure."""

    value: float
    step: int  # updates
    how: str = ""  # it was measured, where not by all test images, or by which settings of the judge


class Cell(NamedTuple):
    """One measure of equal settings over their seeds."""

    mean: float
    error: float  # standard: over seeds; of a single run, over images; nan where neither is known
    bound: bool = False  # whether it is an upper bound of the measure
    seeds: int = 1
    steps: tuple[int, int] = (0, 0)  # updates of the models that were measured: fewest and most
    how: str = ""  # as of its figures
    draws: int = 0  # of the latents, by which a bound is tighter than the ELBO


Row = dict[str, Cell]  # of one model, by measure
Tables = dict[str, dict[str, Row]]  # by data set (and protocol), then by model


def better(column: str) -> str:
    """ "lower" or "higher"; "" for a measure where neither is better."""
    if column in NEITHER:
        return ""
    return "lower" if column == "bits/dim" or is_lower_better(f"eval/{column}") else "higher"


def title(column: str) -> str:
    """In words, with an arrow to where it is better."""
    arrow = {"lower": " ↓", "higher": " ↑", "": ""}[better(column)]
    return f"{TITLES.get(column, column.replace('_', ' '))}{arrow}"


def measure(name: str) -> Metric | None:
    """An evaluation of some data; None for any other metric."""
    metric = Metric.of(name)
    return metric if metric.stage == "eval" and metric.data and metric.name == name else None


def proper(named: Mapping[str, X]) -> dict[str, X]:
    """The metric's present name: `kl_nats` of an older run is KL(data || model) if the run has an exact likelihood, and
    otherwise KL(q || prior), a term of a VAE's bound.
    """
    renamed = {}
    for name, x in named.items():
        found = measure(name)
        if found and found.quantity in ("kl_nats", "kl_nats_se") and f"eval/nll_nats[{found.data}]" not in named:
            name = name.replace("/kl_nats", "/kl_prior_nats")
        renamed[name] = x
    return renamed


def joined(curves: dict[str, Curve]) -> dict[str, Curve]:
    """With eval/nats, eval/bits and eval/kl added: the exact ones where there are any, otherwise their bounds."""
    more: dict[str, Curve] = {}
    for name, (exact, bound) in JOINED.items():
        for quantity in bound, exact:  # the exact one comes last, and replaces the bound
            found = ((measure(metric), curve) for metric, curve in curves.items())
            more |= {f"eval/{name}[{m.data}]": curve for m, curve in found if m and m.quantity == quantity}
    return curves | more


def is_bound(metric: str | None, runs: list[RunFiles]) -> bool:
    """Whether some of these runs have only a bound on what the metric joins."""
    found = measure(metric or "")
    if not found or found.quantity not in JOINED:
        return False
    exact, _ = JOINED[found.quantity]
    return any(f"eval/{exact}[{found.data}]" not in run.curves for run in runs)


def latest(run: RunFiles, notes: list[str]) -> dict[str, Figure]:
    """The last row of each measure, or evaluation.json where that is of as many updates or more."""
    judged = _judged(*(run.settings.get(key, "") for key in ("judge.k", "judge.samples")))
    learned = max(int(curve.steps[-1]) for curve in run.curves.values())
    best = int(run.curves[BEST].values[-1]) if BEST in run.curves else learned
    found = {
        name: Figure(
            float(curve.values[-1]),
            best if curve.steps[-1] == learned else int(curve.steps[-1]),
            judged if by_judge(name) else _part(name, run),
        )
        for name, curve in run.curves.items()
    }
    for name, figure in evaluation(run.folder, notes).items():
        if name not in found or figure.step >= found[name].step:
            found[name] = figure
    found = {name: figure for name, figure in found.items() if name.startswith("eval/")}
    if not found:
        notes.append(
            f"{run.folder} is in no table: it has not been evaluated; gen-lab evaluate {pasted(f'run={run.folder}')} "
            "judge=classifier does that."
        )
    elif (measured := max(figure.step for figure in found.values())) < min(learned, best):
        notes.append(
            f"{run.folder} has learned for {counted(learned, 'updates')}, and its figures are of update {measured:,}; "
            f"gen-lab evaluate {pasted(f'run={run.folder}')} measures it as it is."
        )
    return found


def _part(name: str, run: RunFiles) -> str:
    """Of how many images a likelihood is, where not of all that there are. Older runs do not say it of each row."""
    asked, found = run.settings.get("loop.eval_images", ""), measure(name)
    if not asked.isdigit() or not found:
        return ""
    count = run.curves.get(f"eval/images[{found.data}]")
    if count is None:
        return "" if run.finished else f"{int(asked):,} images"
    is_part = count.steps[-1] == run.curves[name].steps[-1] and count.values[-1] >= int(asked)
    return f"{int(asked):,} images" if is_part else ""


def by_judge(name: str) -> bool:
    """Whether a metric is of samples, as a net sees them: its data have that net's digest behind them."""
    return bool(re.search(r"-[0-9a-f]{8}\]$", name))


def _judged(neighbour: str, samples: str) -> str:
    """By how many of what, where that is not as many samples as there are held-out images."""
    return f"k={neighbour}" + (f", {int(samples):,} samples" if samples.isdigit() else "")


def evaluation(folder: Path, notes: list[str]) -> dict[str, Figure]:
    """What evaluation.json says; {} and a note where that is damaged or a link, or of other than the whole test set."""
    try:
        with opened(folder / "evaluation.json", LARGEST) as file:
            record: Any = printable(json.load(file))
        if (changes := record.get("changes")) or record.get("images") != record.get("of", record.get("images")):
            what = (
                f"with {' '.join(changes)}" if changes else f"of {record['images']:,} of {record['of']:,} test images"
            )
            notes.append(f"{folder}/evaluation.json is left out: it is {what}.")
            return {}
        floor = {name.replace("/frechet[", "/frechet_floor["): x for name, x in record.get("floor", {}).items()}
        values = {name: x for name, x in floor.items() if "/frechet_floor[" in name}
        values = proper(values | record["scores"] | record.get("measures", {}))
        judge = record.get("judge", {})
        others = judge.get("samples") if judge.get("samples") != judge.get("held_out") else ""
        judged = _judged(str(judge.get("k")), str(others))
        return {
            name: Figure(float(x), int(record["step"]), judged if by_judge(name) else "")
            for name, x in values.items()
            if math.isfinite(x)
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        notes.append(f"{folder}/evaluation.json is left out: it is damaged, or not a file of this run ({error}).")
        return {}


def measures(groups: Groups, notes: list[str]) -> Tables:
    """What the latest evaluations of each group's runs say."""
    tables: Tables = {}
    for label, members in groups.items():
        last = [latest(run, notes) for run in members]
        found: dict[str, Row] = {}
        for name in sorted(set[str]().union(*last)):
            metric = measure(name)
            if metric and not metric.is_error and metric.quantity not in (*JOINED, "images"):
                having = [figures for figures in last if name in figures]
                found.setdefault(metric.data, {})[metric.quantity] = _cell(metric, having)
        for data, cells in found.items():
            tables.setdefault(data, {})[label] = in_columns(cells)
    return tables


def _cell(metric: Metric, runs: list[dict[str, Figure]]) -> Cell:
    """Over the runs that have it. A standard error counts if it is of the same updates."""
    figures = [run[metric.name] for run in runs]
    values, steps = [figure.value for figure in figures], [figure.step for figure in figures]
    said = [run.get(metric.error) for run in runs]
    errors = [e.value if e and e.step == step else math.nan for e, step in zip(said, steps, strict=True)]
    return Cell(
        mean=float(np.mean(values)),
        error=standard_error(values, errors),
        bound="bound" in metric.quantity,
        seeds=len(values),
        steps=(min(steps), max(steps)),
        how=" and ".join(sorted({figure.how for figure in figures})),
    )


def in_columns(cells: Row) -> Row:
    """Likelihoods stand in one column, of bounds the tightest of the latest; bits, and the divergence, are of that
    very bound. All other measures stand under their own names.
    """
    weighted = [name for name in cells if re.fullmatch(r"iwae\d+_nats", name)]
    bounds = [name for name in ("nll_bound_nats", *weighted) if name in cells]
    likelihoods = {*bounds, *(name for pair in JOINED.values() for name in pair)}
    row = {name: cell for name, cell in cells.items() if name not in likelihoods}
    exact = {"nats": "nll_nats", "bits/dim": "bits_per_dim", "kl_nats": "kl_nats"}
    row |= {column: cells[name] for column, name in exact.items() if name in cells}
    if "nats" in row or not bounds:
        return row
    newest = max((cells[name].seeds, cells[name].steps) for name in bounds)
    latest_bounds = [name for name in bounds if (cells[name].seeds, cells[name].steps) == newest]
    best = min(latest_bounds, key=lambda name: cells[name].mean)
    row["nats"] = tightest = cells[best]._replace(bound=True, draws=int(re.sub(r"\D", "", best) or 0))
    plain, bits, kl = (cells.get(name) for name in ("nll_bound_nats", "bits_per_dim_bound", "kl_bound_nats"))
    if plain and bits and plain.mean and plain.steps == bits.steps:
        nat = bits.mean / plain.mean  # in bits/dim: 1 / (D ln 2)
        row["bits/dim"] = tightest._replace(mean=nat * tightest.mean, error=nat * tightest.error)
    if best == "nll_bound_nats" and kl:
        row["kl_nats"] = kl
    elif plain and kl and (kl.seeds, kl.steps) == (tightest.seeds, tightest.steps):
        row["kl_nats"] = kl._replace(mean=kl.mean + tightest.mean - plain.mean, error=math.nan, draws=tightest.draws)
    return row


def standard_error(values: list[float], errors: list[float]) -> float:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float(errors[0])
