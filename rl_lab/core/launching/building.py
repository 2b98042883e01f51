"""From Python: builds what a command line would train with, from the same settings, or makes the whole run."""

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rl_lab.core import calls, checking, conf_dir, devices
from rl_lab.core.errors import UserError
from rl_lab.core.launching import launch
from rl_lab.core.launching.arguments import checked, split
from rl_lab.core.launching.composed import who
from rl_lab.core.launching.composition import as_dict, composed_with_choices, find_wanted, parsed, parts_of
from rl_lab.core.launching.explain import plain_errors
from rl_lab.core.launching.given import changes, settings
from rl_lab.core.randomness import stream


def parts(root: str, typed: Sequence[str], *names: str) -> tuple[list[Any], int, str]:
    """The checked settings that those `typed` make of the config groups named, such as env and agent; seed and device.

    Raises UserError.
    """
    overrides = checked(list(typed), root)
    with plain_errors(conf_dir(), root, overrides):
        cfg, choices = composed_with_choices(conf_dir(), root, overrides)
        if missing := [name for name in names if f"${{{name}}}" not in str(as_dict(cfg.loop))]:
            raise UserError(f"{who(missing[0], choices)} takes no {missing[0]} that could be built; leave it out, or "
                            "make the whole run with train")  # fmt: skip
        find_wanted(cfg, parts_of(f"{root}-lab"))
        cfg.device = devices.chosen(cfg.device, config=as_dict(cfg), exact=parts_of(f"{root}-lab").exact)
        for name in names:
            checking.check(cfg[name], name)
        return [OmegaConf.to_container(cfg[name], resolve=True) for name in names], int(cfg.seed), cfg.device


def built(root: str, typed: Sequence[str], *names: str) -> tuple[list[Any], int]:
    """The objects made of `parts`. What is built only when called, as an agent is for an env, is returned as a partial
    call. Raises UserError.
    """
    found, seed, _ = parts(root, typed, *names)
    return [calls.built(part) for part in found], seed


def world_and_agent(typed: Sequence[object], named: Mapping[str, object] = {}) -> tuple[Any, Any]:
    """Raises UserError where the agent is not for the loop of ours."""
    words = changes(settings(typed, named))
    for word in words:
        _refuse_several(word, "build", "builds one agent")
    if studies := [word for word in words if word.startswith("study=")]:
        raise UserError(f"{studies[0]} is for the command line, rl-lab train; build makes one environment and agent")
    if runs := [word for word in words if word.startswith("run=")]:
        raise UserError(f"{runs[0]} is a run that is there: load opens it, and build takes settings of a new one")
    (env, agent), seed = built("rl", words, "env", "agent")
    place = {"device": env.device, "seed": stream(seed, "agent")}
    try:
        inspect.signature(agent).bind(env.spec, **place)
    except TypeError:
        raise UserError("this agent is trained by a loop of its own, with train; choose another to build") from None
    return env, agent(env.spec, **place)


def _refuse_several(word: str, function: str, makes: str) -> None:
    """Raises UserError where a setting has several values, as for a sweep."""
    if "=" in word and parsed(word).is_sweep_override():
        key, _, values = word.partition("=")
        as_list = f", or write a list: {key}=[{values}]" if "." in key and "(" not in values else ""
        raise UserError(
            f"{word} is several values, and from Python each call {makes}; call {function} for each{as_list}"
        )


def trained(prog: str, root: str, typed: Sequence[object], named: Mapping[str, object] = {}) -> Path:
    """The folder of the run that `train` makes of these settings, or resumes. Raises UserError."""
    words = settings([os.fspath(word) if isinstance(word, os.PathLike) else word for word in typed], named)
    for word in words:
        if word.startswith(("-", "study=", "hydra.mode=")):
            raise UserError(f"{word} is for the command line, {prog} train; from Python each call is one run")
        _refuse_several(word, "train", "is one run")
    folders, before = split(words)[0], sys.argv
    try:
        launch.train(prog, root, words, begun=folders.append)
    finally:
        sys.argv = before
    return Path(os.path.relpath(folders[0]))
