"""From Python: builds what a command line would train with, from the same settings, or makes the whole run."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from rl_lab.core import checking, conf_dir, devices
from rl_lab.core.errors import UserError
from rl_lab.core.launching import launch
from rl_lab.core.launching.arguments import checked, split
from rl_lab.core.launching.composition import as_dict, compose, parts_of
from rl_lab.core.launching.execution import find_wanted
from rl_lab.core.launching.explain import plain_errors
from rl_lab.core.randomness import stream


def parts(root: str, typed: Sequence[str], *names: str) -> tuple[list[Any], int, str]:
    """The checked settings that those `typed` make of the config groups named, such as env and agent; seed and device.

    Raises UserError.
    """
    overrides = checked(list(typed), root)
    with plain_errors(conf_dir(), root, overrides):
        cfg = compose(conf_dir(), root, overrides)
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
    return [hydra.utils.instantiate(part) for part in found], seed


def world_and_agent(typed: Sequence[str]) -> tuple[Any, Any]:
    """Raises UserError where the agent is not for the loop of ours."""
    (env, agent), seed = built("rl", typed, "env", "agent")
    try:
        return env, agent(env.spec, device=env.device, seed=stream(seed, "agent"))
    except TypeError as error:
        raise UserError(f"this agent is trained by a loop of its own, with rl-lab train ({error})") from error


def trained(prog: str, root: str, typed: Sequence[str]) -> Path:
    """The folder of the run that `train` makes of these settings, or resumes. Raises UserError."""
    for word in typed:
        if word.startswith(("-", "study=", "hydra.mode=")):
            raise UserError(f"{word} is for the command line, {prog} train; from Python each call is one run")
    folders, before = split(list(typed))[0], sys.argv
    try:
        launch.train(prog, root, list(typed), begun=folders.append)
    finally:
        sys.argv = before
    return Path(os.path.relpath(folders[0]))


def run_of(path: str | Path) -> Path:
    """One run folder, as `run=` names it on the command line: a path, a pattern or wandb:... Raises UserError."""
    found = split([f"run={path}"])[0]
    if len(found) > 1:
        raise UserError(f"{path} is {len(found)} folders, and this takes one run; name one of them, such as {found[0]}")
    return found[0]
