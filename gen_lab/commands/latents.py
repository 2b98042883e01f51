"""Shows what the latents of a run mean: traversals of each, interpolations between images, and a map of all codes."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from gen_lab.data import Images
from gen_lab.judging.pictures import WIDTH, write_sheet
from gen_lab.trained.loading import Trained, apart, load, some
from gen_lab.types import LatentModel
from rl_lab.core import room
from rl_lab.core.devices import double
from rl_lab.core.errors import UserError, spared, tell
from rl_lab.core.files import folder_for, inside, replacing
from rl_lab.core.settings import Bound, Count

AT_ONCE = 256  # images
POINT, CROWD = 9, 20_000  # square points of a map: of each image at most, and of all


def latents(
    runs: Sequence[Path],
    *,
    rows: Count,  # of each sheet
    steps: Count,  # images a row
    reach: Annotated[float, Bound(0, above=True), Bound(high=10_000)],  # standard deviations to either side
    out: str | None,  # a folder for the files; None: the run's own
    device: str,
    changes: Sequence[str] = (),  # of the runs' settings
) -> None:
    """Leaves traversals.png, interpolations.png and latent_map.png in the pictures of each run, or in `out` under its
    name. Raises UserError, once the others are done, where one cannot be read.
    """
    faults: list[UserError] = []
    found = some(runs, "latents")
    for folder, more in zip(found, apart(found), strict=True):
        with spared(faults):
            trained = load(folder, device, changes)
            place = (folder, "pictures/") if out is None else (folder_for(out), f"{trained.name}{more}_")
            draw(folder, trained, rows, steps, reach, *place)
    tell(faults, len(runs))


def draw(folder: Path, trained: Trained, rows: int, steps: int, reach: float, place: Path, first: str) -> None:
    """The three pictures of one run, in a place under names that begin so. Raises UserError where its model has no
    latents.
    """
    model, data = trained.model, trained.data
    if not isinstance(model, LatentModel):
        raise UserError(f"{folder}: this model has no latents to look at; an autoencoder has them")
    if len(data.test) < 2:
        raise UserError(
            f"{folder}: latents are seen between images, and there is one to test on; hold out more of them"
        )
    x, label, z = coded(model, data)
    known = label if model.spec.classes else None
    place.mkdir(parents=True, exist_ok=True)
    places = {name: inside(place, f"{first}{name}.png") for name in ("traversals", "interpolations", "latent_map")}
    room.memory(64 * rows * (steps + 2) * (math.prod(x.shape[1:]) + WIDTH**2), f"rows={rows} of steps={steps}")
    sheets = {
        "traversals": traversals(model, z, rows, steps, reach, None if known is None else known[:1]),
        "interpolations": interpolations(model, data.spec.scaled(x), z, rows, steps, known),
    }
    widest = z.std(0).argsort(descending=True)[:rows].tolist()
    captions = {
        "traversals": f"rows: latents {', '.join(map(str, widest))}, which vary most among images; columns: "
        f"from -{reach:g} to {reach:g} sigma of each",
        "interpolations": "outermost two images, between them what the line of their codes decodes to",
    }
    for name, images in sheets.items():
        across = steps + 2 * (name == "interpolations")
        print(write_sheet(places[name], images, across, f"{trained.name} · {captions[name]}"))
    print(write_map(places["latent_map"], z, label, f"{trained.name}: {data.name}"))


def coded(model: LatentModel, data: Images) -> tuple[Tensor, Tensor | None, Tensor]:
    """The test images as levels [N, C, H, W], their labels [N], and their codes [N, Z]."""
    batches = [*data.tested(AT_ONCE)]
    z = torch.cat([model.code(x, label) for x, label in batches])
    labels = [label for _, label in batches if label is not None]
    return torch.cat([x for x, _ in batches]), torch.cat(labels) if labels else None, z


def traversals(model: LatentModel, z: Tensor, rows: int, steps: int, reach: float, label: Tensor | None = None):
    """[rows x steps, C, H, W]: the first image's code with one number varied over its range in other images.

    A row each for the numbers that vary most among images z [N, Z].
    """
    spread, centre = z.std(0), z.mean(0)
    traversed = []
    for d in spread.argsort(descending=True)[:rows].tolist():
        code = z[:1].repeat(steps, 1)
        code[:, d] = centre[d] + spread[d] * torch.linspace(-reach, reach, steps, device=z.device)
        traversed.append(code)
    return decoded(model, torch.cat(traversed), label)


def interpolations(model: LatentModel, x: Tensor, z: Tensor, rows: int, steps: int, label: Tensor | None = None):
    """[rows x (steps + 2), C, H, W]: for each pair of images x [N, C, H, W] in [0, 1] the first, the decoded line
    between their codes z, and the second. A conditional model decodes all of it with the first one's label.
    """
    rows = min(rows, len(x) // 2)
    weight = torch.linspace(0, 1, steps, device=z.device)[:, None]
    lines = []
    for a, b in zip(range(0, 2 * rows, 2), range(1, 2 * rows, 2), strict=True):
        way = decoded(model, torch.lerp(z[a], z[b], weight), None if label is None else label[a : a + 1])
        lines += [x[a : a + 1], way, x[b : b + 1]]
    return torch.cat(lines)


def decoded(model: LatentModel, z: Tensor, label: Tensor | None) -> Tensor:
    """Decodes all of z [N, Z] with one label [1], or none."""
    return model.decode(z, None if label is None else label.expand(len(z)))


def principal(z: Tensor) -> tuple[Tensor, Tensor]:
    """z [N, Z] along its two directions of most variance [N, 2], and which share of the variance each has [2]."""
    centred = double(z - z.mean(0))
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    return u[:, :2] * s[:2], s[:2].square() / s.square().sum()


def write_map(path: Path, z: Tensor, label: Tensor | None, title: str) -> Path:
    """Plots two latents as they are, or more of them along their two directions of most variance; coloured by label."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from rl_lab.core.style import STYLE

    names = ["z1", "z2"]
    if z.shape[1] > 2:
        z, share = principal(z)
        names = [f"principal direction {i + 1}: {part:.0%} of the variance" for i, part in enumerate(share.tolist())]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.5, 6.5), layout="constrained")
        panel = figure.subplots()
        x, y = z.cpu().numpy().T[:2] if z.shape[1] > 1 else (z[:, 0].cpu().numpy(), 0 * z[:, 0].cpu().numpy())
        points = panel.scatter(
            x, y, s=min(POINT, CROWD / len(z)), c=None if label is None else label.cpu().numpy(), cmap="tab10"
        )
        if label is not None:
            handles, names_of_labels = points.legend_elements(num=None, fmt="{x:g}")  # type: ignore[arg-type]
            figure.legend(handles, names_of_labels, loc="outside right", title="label", frameon=False)  # type: ignore[call-overload]
        panel.set(title=title, xlabel=names[0], ylabel=names[1], aspect="equal")
        with replacing(path) as beside:
            figure.savefig(beside, dpi=150)
    return path
