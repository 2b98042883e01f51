"""Adds what a command makes of a run, a film or a picture, to the W&B run of its folder."""

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rl_lab.core import reading, tracking
from rl_lab.core.folders import plain, summary
from rl_lab.core.tracker import EXIT_CODES, STOPPED


def join(tracker: Callable[..., Any] | None, folder: Path, media: Mapping[str, Path]) -> None:
    """Logs each file under its name at the step where the run stands; where it cannot, says why.

    `tracker` is a partial of `wandb_run`; with any other tracker the files are all there is.
    """
    if not isinstance(tracker, partial) or tracker.func is not tracking.wandb_run:
        return
    about = summary(folder)
    if why := _not_joined(folder, about):
        print(f"not sent to W&B: {why}", file=sys.stderr)
        return
    import wandb

    kinds = {name: wandb.Image if path.suffix == ".png" else wandb.Video for name, path in media.items()}
    run = tracker(**_as_before(folder, about, tracker.keywords))
    run.log({"step": about["step"], **{name: kinds[name](str(path)) for name, path in media.items()}})
    run.summary.update({**about["final"], "step": about["step"], "state": about["state"]})
    where = f"offline: {run.dir}" if run.offline else run.url
    tracking.finish(run, EXIT_CODES.get(about["state"], STOPPED))
    print(f"added to the W&B run of {folder}, {where}", file=sys.stderr)


def _not_joined(folder: Path, about: Mapping[str, Any]) -> str:
    """Why a film of this run cannot join its W&B run; "" where it can."""
    if not about.get("wandb"):
        return f"W&B has no run of {folder}, which was trained without tracker=wandb"
    if about.get("state") == "running":
        return f"{folder} has not ended, and W&B takes the rows of one process at a time; do it again when it has"
    name = str(about.get("name"))
    before = about.get("identity")
    if not isinstance(before, dict) or tracking.identity(folder, name)["id"] != before.get("id"):
        return f"{folder} is a copy of a run, and W&B has the run under its first folder"
    whole = type(about.get("step")) is int and isinstance(about.get("final"), dict)
    return "" if whole else f"{folder}/summary.json does not say where the run stands"


def _as_before(folder: Path, about: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that open the W&B run of a folder as its training did, so that nothing is renamed; what was `typed`
    now, such as tracker.mode, takes precedence.
    """
    config = plain(folder / "config.yaml")
    named = reading.tracker(config.get("tracker"), folder / "config.yaml")
    loop, choices = config["loop"], config.get("choices") or {}
    known = {key: named[key] for key in reading.NAMES if named.get(key) and typed.get(key) is None}
    own = {key: value for key, value in loop.items() if not str(value).startswith(("${", "['${"))}
    place, identity = str(about["wandb"]), about["identity"]
    if place.startswith("offline"):
        known.setdefault("mode", "offline")
    elif identity["folder"] == str(folder.resolve()) and typed.get("entity") is None:  # made here, by this user
        found = re.fullmatch(r"https?://[^/]+/([\w.-]+)/[^/]+/runs/.*", place)
        known |= {"entity": found[1]} if found else {}
    return {
        **known,
        "name": identity["name"],
        "id": identity["id"],
        "group": typed.get("group") or known.get("group") or config["name"],
        "job_type": str(loop["_target_"]).rpartition(".")[2],
        "config": {
            "name": config["name"],
            **choices,
            "seed": config["seed"],
            "settings": reading.resolved(config | {"device": about.get("device")}) | {"loop": own},
        },
    }
