"""A comparison as one HTML file that needs no other: pictures inside, light and dark, readable on a phone."""

import base64
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from rl_lab.core import files
from rl_lab.core.comparing import figures
from rl_lab.core.comparing.figures import number
from rl_lab.core.comparing.groups import differing
from rl_lab.core.comparing.results import Results
from rl_lab.core.comparing.statistics import Estimate
from rl_lab.core.comparing.tables import interval
from rl_lab.core.errors import counted
from rl_lab.core.metrics import Metric
from rl_lab.core.style import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = "", "6 3", "2 2", "6 2 2 2"  # style.DASHES in SVG's words
INK = {
    "#222222": "currentColor",
    "#444444": "var(--soft)",
    "#666666": "var(--soft)",
    "#888888": "var(--axis)",
    "#e8e8e8": "var(--grid)",
}
THEME = INK | {color.lower(): f"var(--c{i})" for i, color in enumerate(COLORS)}
WORDS = dict.fromkeys(("group", "task", "folder", "state"), ' class="text"')  # columns of text


class Section(NamedTuple):
    """A part of the page; `body` is HTML, the rest is text."""

    heading: str
    body: str
    caption: str = ""
    folded: bool = False


def write(path: Path, title: str, lead: str, sections: Iterable[Section]) -> Path:
    body = "\n".join(
        f"<details><summary>{escape(s.heading)}</summary>{_caption(s)}{s.body}</details>"
        if s.folded
        else f"<section><h2>{escape(s.heading)}</h2>{s.body}{_caption(s)}</section>"
        for s in sections
    )
    template = Template(Path(__file__).with_suffix(".html").read_text())
    return files.write(path, template.substitute(title=escape(title), lead=escape(lead), body=body))


def _caption(section: Section) -> str:
    return f'<p class="caption">{escape(section.caption)}</p>' * bool(section.caption)


def lead(results: Results) -> str:
    fewest, most = min(row.seeds for row in results.rows), max(row.seeds for row in results.rows)
    seeds = f"{fewest} to " * (fewest < most) + counted(most, "seeds each")
    tasks = f"{len(results.tasks)} tasks: {', '.join(results.tasks)}" if len(results.tasks) > 1 else "one task"
    return f"{counted(len(results.groups), 'groups')}, {seeds}, {counted(len(results.runs), 'runs')}; {tasks}."


def sections(results: Results, captions: list[str], notes: list[str]) -> Iterator[Section]:
    """Over several tasks what sums them up comes first; of one task its scores and curves."""
    alone, several = (_scores_section(results), _curves_section(results)), len(results.tasks) > 1
    yield Section("Groups, best first", _legend(results))
    over = _summed_up(results) if several or not results.single else ()
    yield from (*over, *reversed(alone)) if several else (*alone, *over)
    yield Section("What these numbers are", _list([*captions, *notes]))
    if found := differing(results.tasks):
        yield Section("Settings that differ", _settings(results, found), "But for those that make the task.", True)
    yield Section("Runs", _runs(results), "final: at the run's last row.", True)


def _summed_up(results: Results) -> Iterator[Section]:
    """Aggregates over tasks, the distribution of final scores, probabilities of improvement."""
    if results.meaning and results.aggregates:
        names = next(iter(results.aggregates.values()))
        height = 1.0 + 0.3 * len(results.aggregates)  # inches
        shown = [picture(partial(figures.intervals, results=results, key=key), key, 3.4, height) for key in names]
        yield Section(
            "Over all tasks",
            _panels(shown, "small panels") + _aggregates(results),
            (
                f"Final scores over {counted(len(results.scales), 'tasks')}, {results.meaning}. Line and number: the "
                "aggregate; bar and brackets: its 95 % bootstrap interval, runs drawn with replacement within each "
                "task. IQM: mean of the middle half of all runs. Median and mean: of the tasks' means. Optimality gap: "
                "by how much runs fall short of 1 on average. An arrow: far past the edge, at the number beside it."
            ),
        )
    yield Section(
        "Distribution and sample efficiency" if results.efficiency else "Distribution of final scores",
        _panels(_distributions(results)),
        _distribution_caption(results),
    )
    if results.pairwise:
        yield Section(
            "Probability of improvement",
            _pairwise(results),
            (
                "How likely a run of the row's group ends better than a run of the column's on the same task, averaged "
                "over tasks; a tie counts half. Brackets: 95 % bootstrap interval; bold where it leaves out one half. "
                "n=1: one of the two has a single run, from which there is no interval."
            ),
        )


def _curves_section(results: Results) -> Section:
    caption = "Line: straight between rows; dotted: the threshold of the table."
    if not results.single:
        caption += " Of several seeds the interquartile mean; band: its 95 % bootstrap interval; thin: single seeds."
    return Section("Learning curves", _panels(_curves(results)), caption)


def _scores_section(results: Results) -> Section:
    sure = "Interquartile mean over n seeds, in brackets its 95 % stratified bootstrap interval. "
    caption = f"{figures.title(results)}. {sure * (not results.single)}A heading sorts."
    if len(results.tasks) > 1:
        return Section("Scores by task", _rows(results), caption)
    draw = partial(figures.scores, results=results, task=next(iter(results.tasks)))
    drawn = _panels([picture(draw, "final scores", 5.4, 0.9 + 0.34 * len(results.groups))])
    if not results.single:
        caption += " Above: the line is the score, the bar its interval, each point a seed, at the edge one beyond it."
    return Section("Scores", drawn + _rows(results), caption)


def picture(draw: Callable[["Axes"], None], name: str, width: float = 4.6, height: float = 3.0) -> str:
    """A figure whose SVG takes its colours from the page; what `draw(axes)` draws."""
    svg = figures.panel(draw, width, height)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub("#[0-9a-f]{6}", lambda found: THEME.get(found[0], found[0]), svg)
    svg = re.sub(r' id="(group-\d+)"', r' class="\1"', svg)
    used, own = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg)), f"p{zlib.crc32(svg.encode()):x}"
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{own}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{own}-", svg)
    svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg))
    return f'<figure>{svg.replace("<svg", f"""<svg role="img" aria-label="{escape(name)}" """, 1)}</figure>'


def image(path: Path, caption: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def _panels(pictures: Iterable[str], kind: str = "panels") -> str:
    return f'<div class="{kind}">{"".join(pictures)}</div>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """`rows` are cells of HTML: td elements."""
    heads = "".join(f'<th scope="col"{WORDS.get(name, "")}>{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def text(words: str, kind: str = "text") -> str:
    return f'<td class="{kind}">{escape(words)}</td>'


def _figure(x: float, below: str = "") -> str:
    """A number to sort by, with what stands below it."""
    value = f' data-value="{x!r}"' if not math.isnan(x) else ' data-value="inf"'
    return f"<td{value}>{number(x)}{f'<small>{escape(below)}</small>' * bool(below)}</td>"


def _estimate(estimate: Estimate, seeds: int = 2) -> str:
    if math.isnan(estimate.point):
        return _figure(math.nan)
    return _figure(float(estimate.point), interval(estimate, seeds))


def _name(results: Results, group: str) -> str:
    return f'<td data-value="{results.groups.index(group)}">{_mark(results, group)}&nbsp;{escape(group)}</td>'


def _mark(results: Results, group: str) -> str:
    i = results.groups.index(group)
    dash = DASHES[i // len(COLORS) % len(DASHES)]
    return (
        f'<svg class="mark" viewBox="0 0 24 8" aria-hidden="true"><path d="M0 4H24" stroke-width="3.5" '
        f'stroke="var(--c{i % len(COLORS)})" stroke-dasharray="{dash}"/></svg>'
    )


def _legend(results: Results) -> str:
    chips = (
        f'<li><button data-group="{i}" aria-pressed="false">{_mark(results, name)}{escape(name)}</button></li>'
        for i, name in enumerate(results.groups)
    )
    return f'<ul class="legend">{"".join(chips)}</ul>'


def _aggregates(results: Results) -> str:
    rows = [[_name(results, name), *map(_estimate, of.values())] for name, of in results.aggregates.items()]
    return table(["group", *next(iter(results.aggregates.values()))], rows, "sortable aggregates")


def _distributions(results: Results) -> Iterator[str]:
    if results.profiles:
        yield picture(partial(figures.profile, results=results), "performance profiles", 5.4, 3.4)
    if results.efficiency:
        yield picture(partial(figures.efficiency, results=results), "sample efficiency", 5.4, 3.4)


def _distribution_caption(results: Results) -> str:
    side = "below" if results.lower and not results.meaning else "above"
    caption = f"Performance profile: the fraction of runs that end {side} each score; the higher line is the better."
    caption += " A score beyond the quartiles by three times their distance lies past the edge."
    if results.efficiency:
        caption += f" Sample efficiency: the IQM of normalised scores over runs and tasks, against {results.along}."
    return caption + " Bands: pointwise 95 % bootstrap intervals, runs drawn with replacement within each task."


def _pairwise(results: Results) -> str:
    names = [name for name in results.groups if any(name == a for a, _ in results.pairwise)]
    rows = [[_name(results, a), *(_chance(results.pairwise.get((a, b))) for b in names)] for a in names]
    return table(["", *names], rows, "pairwise")


def _chance(estimate: Estimate | None) -> str:
    if estimate is None:
        return "<td></td>"
    p, sure = float(estimate.point), estimate.low > 0.5 or estimate.high < 0.5
    tint = f"rgb(var(--{'more' if p > 0.5 else 'less'}) / {0.7 * abs(p - 0.5):.3f})"
    words = f"<b>{p:.2f}</b>" if sure else f"{p:.2f}"
    return f'<td style="background: {tint}">{words}<small>{interval(estimate, written="{:.2f}".format)}</small></td>'


def _curves(results: Results) -> Iterator[str]:
    for task, axis in dict.fromkeys((task, axis) for task, _, axis in results.curves):
        draw = partial(_learning, results=results, task=task, axis=axis)
        yield picture(draw, f"{results.metric} {task} over {results.called(axis)}")


def _learning(axes: "Axes", results: Results, task: str, axis: str) -> None:
    figures.learning(axes, results, task, axis)
    axes.set_title(task if len(results.tasks) > 1 else f"over {results.called(axis)}", fontsize=10, loc="left")
    short = f"{Metric.of(results.metric).quantity}, {figures.better(results.lower)}"
    axes.set_ylabel(words if len(words := figures.title(results)) < 36 else short)


def _rows(results: Results) -> str:
    several, more = len(results.tasks) > 1, not results.single
    reach = f"{results.unit} to threshold"
    head = ["group", *["task"] * several, *["n"] * more, "final", "best", "area", reach, "seconds"]
    rows = [
        [
            _name(results, row.group),
            *[text(row.task)] * several,
            *[_figure(row.seeds)] * more,
            *(_estimate(e, row.seeds) if more else _figure(float(e.point)) for e in (row.final, row.best, row.area)),
            _figure(row.steps_to_threshold),
            _figure(row.seconds_to_threshold),
            *[_figure(row.reached, f"of {row.seeds}")] * more,
        ]
        for row in results.rows
    ]
    return table([*head, *["reached"] * more], rows, "sortable scores")


def _list(lines: Iterable[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'


def _settings(results: Results, found: dict[str, dict[str, list[str]]]) -> str:
    rows = [
        [text(key, "path"), *(text(" or ".join(of.get(name, ())), "path") for name in results.groups)]
        for key, of in found.items()
        if not key.endswith(("._partial_", "._convert_"))
    ]
    return table(["", *results.groups], rows, "settings")


def _runs(results: Results) -> str:
    rows = [
        [
            text(str(run.folder), "path"),
            text(group),
            *[text(task)] * (len(results.tasks) > 1),
            _figure(run.seed),
            *(_figure(float(part[-1])) for part in run.curves[results.metric]),
            text("finished" if run.finished else "not finished"),
        ]
        for task, groups in results.tasks.items()
        for group, runs in groups.items()
        for run in runs
    ]
    head = ["folder", "group", *["task"] * (len(results.tasks) > 1), "seed", results.unit, "seconds", "final", "state"]
    return table(head, rows, "sortable runs")
