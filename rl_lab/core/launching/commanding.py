"""The commands that read run folders, from a command line to the call that conf/command/ describes."""

import inspect
import sys
from typing import Any

import hydra
from omegaconf import OmegaConf

from rl_lab.core import conf_dir, files
from rl_lab.core.errors import UserError, counted, nearest
from rl_lab.core.launching.arguments import check_settings, idle, split
from rl_lab.core.launching.composition import base, compose, find_wanted, groups, is_group, parsed, parts_of, quoted
from rl_lab.core.launching.explain import plain_errors
from rl_lab.core.launching.named import of_lab, runs_below, runs_of, with_runs

OF_RUNS = "agent.", "env.", "loop.", "data.", "model."


def command(root: str, name: str, arguments: list[str]) -> int:
    """Calls what conf/command/<root>/<name>.yaml says, with the folders named on the command line as `runs`.

    A study's folder stands for its runs, and any other that is no run for those below it. Beside run folders OF_RUNS
    are settings of theirs, and go to a command that has `changes` among its parameters; to one that has `choices`, the
    groups chosen and their names. A command that has `settings` takes those of `train`, beside its
    own. Returns the exit code, 0 where the call returns none.
    """
    from rl_lab.core import calls, checking

    folders, given = split(arguments)
    config_name = f"command/{root}/{name}"
    check_settings(given, {"env", "judge", "tracker"})
    if several := [o for o in given if parsed(o).is_sweep_override()]:
        raise UserError(f"{several[0]} is several values, and {name} takes one; a list is written [1,2]")
    changes = [o for o in given if folders and o.lstrip("+~").startswith(OF_RUNS)]
    own = OmegaConf.load(conf_dir() / f"{config_name}.yaml")
    taken = inspect.signature(calls.locate(own._target_)).parameters
    composes = "settings" in taken
    if "tracker" not in taken:  # it tracks nothing anyway
        given = [o for o in given if o != "tracker=none"]
    settings = [o for o in given if composes and parsed(o).key_or_group not in own]
    known = {*map(str, own), *map(str, base(root)), *groups(root)} - {"defaults"}
    for key in (parsed(o).key_or_group for o in settings):
        if key.isidentifier() and key not in known:
            raise UserError(f"no setting '{key}'{nearest(key, known, listing=False)}")
    overrides = [_as_mapping(o, own) for o in given if o not in changes + settings]
    with plain_errors(conf_dir(), config_name, overrides):
        cfg = compose(conf_dir(), config_name, overrides)
        find_wanted(cfg, parts_of(f"{root}-lab"))
        checking.check(cfg)
        parameters = inspect.signature(calls.locate(cfg._target_)).parameters
        if changes and "changes" not in parameters:
            raise UserError(f"{changes[0]} is a setting of the run, and {name} changes none; leave it out")
        if ignored := idle(changes):
            raise UserError(f"{ignored} would be ignored, as {name} trains nothing; leave it out")
        kept = folders if name == "study" else with_runs(folders)
        if left := [folder for folder in folders if folder not in kept]:
            others = f" and {counted(len(left) - 1, 'others')}" * (len(left) > 1)
            print(f"left out, as there is no run in it: {left[0]}{others}", file=sys.stderr)
        runs = kept if name == "study" else runs_of(kept)
        if name in ("compare", "sample") and cfg.out is not None:
            cfg.out = str(files.folder_for(cfg.out))
        if name not in ("study", "compare"):  # which reads runs without a checkpoint too
            runs = [run for folder in runs for run in runs_below(folder, f"{root}_lab")]
        if name != "study":
            runs, theirs = of_lab(runs, f"{root}_lab")
            if theirs:
                other = "gen-lab" if root == "rl" else "rl-lab"
                print(
                    f"left out: {counted(len(theirs), 'runs')} of {other}, which {root}-lab does not read",
                    file=sys.stderr,
                )
        more: dict[str, Any] = {"changes": changes} if changes else {"settings": settings} if composes else {}
        if "prog" in parameters:
            more["prog"] = f"{root}-lab"
        if "choices" in parameters:
            chosen = [o for o in map(parsed, overrides) if is_group(o.key_or_group) and not o.is_delete()]
            more["choices"] = {o.key_or_group: o.value() for o in chosen if isinstance(o.value(), str)}
        code = hydra.utils.call(cfg, runs=runs, **more)
    return code if isinstance(code, int) else 0


def _as_mapping(setting: str, settings: Any) -> str:
    """agent=my_agent:Mine as agent={name: my_agent:Mine}, where a command has such a mapping in place of the group."""
    key, value = (override := parsed(setting)).key_or_group, None if override.is_delete() else override.value()
    if not is_group(key) or "name" not in (settings.get(key) or {}) or isinstance(value, dict | None):
        return setting
    return f"{key}={{name: {quoted(str(value))}}}"
