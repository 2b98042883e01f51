"""A comparison as a W&B report: what the files say, above live panels of the same runs grouped by agent."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from rl_lab.core.comparing import tables
from rl_lab.core.comparing.figures import number
from rl_lab.core.comparing.results import Results
from rl_lab.core.errors import UserError, counted

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report


class Project(NamedTuple):
    """Where a report is saved."""

    name: str
    entity: str | None  # None: the key's own


def project(tracker: Callable[..., Any] | None) -> Project:
    """Of the tracker. Raises UserError where no report can be saved: before any work is done."""
    keywords = tracker.keywords if isinstance(tracker, partial) else {}
    if "project" not in keywords:
        raise UserError("report=true needs W&B; leave out tracker=none")
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError('report=true needs wandb-workspaces; pip install "rl-lab[report]"') from error
    from rl_lab.core.tracking import reachable, ready

    wandb = ready()
    if not wandb.login(prompt=False, verify=False):
        raise UserError("report=true needs a W&B server and its key; wandb login, or set WANDB_API_KEY")
    url = wandb.setup().settings.base_url
    if not reachable(url, keywords.get("init_timeout", 10.0)):
        raise UserError(f"report=true: {url} does not answer; leave out report=true to get the other files")
    return Project(keywords["project"], keywords.get("entity"))


def save(results: Results, captions: list[str], project: Project) -> str:
    """The report's address. Raises UserError."""
    import wandb

    try:
        report = build(results, captions, project.name, project.entity or wandb.Api().default_entity or "")
        report.save()
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise UserError(f"W&B refused the report: {' '.join(str(error).split())[:200]}") from error
    return str(report.url)


def build(results: Results, captions: list[str], project: str, entity: str) -> "Report":
    """Building it asks the server for the project."""
    import wandb_workspaces.reports.v2 as wr

    panels: list[Any] = [
        wr.LinePlot(
            title=f"{results.metric} over {x}",
            x=x,
            y=[results.metric],
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            layout=wr.Layout(x=12 * i, y=0, w=12, h=9),
        )
        for i, x in enumerate(("step", "Relative Time (Process)"))
    ]
    blocks: list[Any] = [wr.MarkdownBlock(text=markdown(results)), wr.UnorderedList(items=[*captions])]
    for task, groups in results.tasks.items():
        names = sorted({run.name for runs in groups.values() for run in runs})
        runset = wr.Runset(
            entity=entity,
            project=project,
            name=task or "runs",
            groupby=["config.agent"],
            filters=f"Metric('group') in {names!r}",
        )
        blocks += [wr.H2(text=task or results.metric), wr.PanelGrid(runsets=[runset], panels=panels)]
    return wr.Report(
        project=project,
        entity=entity,
        title=results.metric,
        blocks=blocks,
        width="fluid",
        description=f"{counted(len(results.groups), 'groups')}, {counted(len(results.runs), 'runs')}",
    )


def markdown(results: Results) -> str:
    """The aggregates, or for one task its final scores, as a table."""
    if results.meaning and results.aggregates:
        head, rows = list(next(iter(results.aggregates.values()))), results.aggregates
    else:
        head, rows = ["final", "area"], {row.group: {"final": row.final, "area": row.area} for row in results.rows}
    lines = [["group", *head], ["---", *["---:"] * len(head)]]
    lines += [
        [f"`{name}`", *(f"{number(e.point)} {tables.interval(e)}" for e in of.values())] for name, of in rows.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
