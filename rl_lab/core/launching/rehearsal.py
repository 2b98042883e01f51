"""What a job of a sweep would be refused for, found before the first one begins."""

from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from rl_lab.core import conf_dir, reading
from rl_lab.core.errors import UserError
from rl_lab.core.launching.composed import check_graphs, check_values, precision_of, settle, written_out
from rl_lab.core.launching.composition import as_dict, find_wanted, parts_of
from rl_lab.core.launching.explain import plain_errors

HERE = "BasicLauncher", "JoblibLauncher"  # of Hydra's launchers, those of this machine
_TRIED: list[dict[str, Any]] = []  # worlds, by the rehearsals of this process


def rehearsal(composed: Callable[[list[str]], DictConfig], overrides: list[str], prog: str, root: str) -> None:
    """Raises UserError where the job that Hydra composes of these would be refused before its run begins."""
    of_study = HydraConfig.instance().cfg
    try:
        with plain_errors(conf_dir(), root, overrides):
            cfg = composed(overrides)
            HydraConfig.instance().set_config(cfg)
            with read_write(cfg), open_dict(cfg):
                del cfg["hydra"]
            rehearse(cfg, prog, root)
    finally:
        HydraConfig.instance().cfg = of_study


def rehearse(cfg: DictConfig, prog: str, root: str) -> None:
    """Raises UserError where `begin` would refuse what Hydra composed, or its world cannot be built."""
    from rl_lab.core import checking

    find_wanted(cfg, parts_of(prog))
    settle(cfg, prog, root)
    cfg = written_out(cfg)
    if not str(HydraConfig.get().launcher._target_).endswith(HERE):
        cfg.device = "cpu"  # what the machines have that the jobs are sent to is not known here
    checking.check(cfg.loop, "loop")
    checking.check(cfg.tracker, "tracker")
    check_values(cfg)
    resolved = reading.resolved(as_dict(cfg))
    check_graphs(resolved, parts_of(prog))
    precision_of(resolved, parts_of(prog))
    if isinstance(world := reading.resolved(as_dict(cfg) | {"device": "cpu"}).get("env"), dict):
        _try_world(world)


def _try_world(settings: dict[str, Any]) -> None:
    """Builds a single copy of it, once. Raises UserError; another error is told in full by the job that meets it."""
    from rl_lab.core import calls

    if settings in _TRIED:
        return
    try:
        world = calls.built(settings | ({"num_envs": 1} if "num_envs" in settings else {}))
    except UserError:
        raise
    except Exception:
        return
    world.close()
    _TRIED.append(settings)
