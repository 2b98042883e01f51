"""Settings that are not there: what else they may have been meant to be."""

import inspect
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rl_lab.core.checking import of_another
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.launching.composition import flatten, is_group, snake

MOST = 4  # settings that an answer names


def refuse_through_reference(cfg: DictConfig, key: str) -> None:
    """Refuses to set something within a reference, such as loop.eval_env, which is ${env}. Raises UserError."""
    names = key.lstrip("+~").split(".")
    parent: Any = cfg
    for i, name in enumerate(names[:-1]):
        if not isinstance(parent, DictConfig) or name not in parent:
            return
        if OmegaConf.is_interpolation(parent, name):
            path, rest = ".".join(names[: i + 1]), ".".join(names[i + 1 :])
            to = str(parent._get_node(name)).strip("${}")
            raise UserError(f"{path} is the same as {to}; set {to}.{rest}=...")
        parent = parent._get_node(name)


PEERS = {  # names that Stable-Baselines3, CleanRL, Keras and papers use -> ours
    "learning_rate": "lr", "n_envs": "num_envs", "total_timesteps": "total_steps", "ent_coef": "entropy_coef",
    "vf_coef": "value_coef", "gae_lambda": "lambda_", "clip_range": "clip", "clip_coef": "clip", "n_epochs": "epochs",
    "update_epochs": "epochs", "n_steps": "rollout_length", "num_steps": "rollout_length",
    "num_minibatches": "minibatches",
    "buffer_size": "capacity", "grad_clip": "max_grad_norm", "anneal_lr": "decay_steps", "ema": "average",
    "ema_decay": "average", "early_stopping": "patience", "latent_dim": "latents", "z_dim": "latents", "env_id": "id",
}  # fmt: skip


def unknown(cfg: DictConfig, key: str, more: Sequence[str] = ()) -> str:
    """The message for a setting that does not exist, or that the signature has and the YAML leaves at its default."""
    from rl_lab.core import calls

    refuse_through_reference(cfg, key)
    if "/" in key and is_group(key):
        return f"{key} is not for the chosen {key.partition('/')[0]}; leave it out"
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else None
    if parent and "." in parent and node is None and parent in set(flatten(cfg)):
        return f"{parent} is null; give it as a whole: '{parent}={{{name}: ...}}'"
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    differs = parent == "loop.eval_env" and not target  # from env, by what it has
    if differs:
        target = OmegaConf.select(cfg, "env._target_")
    parameters = inspect.signature(call := calls.locate(target)).parameters if target else {}
    if target:
        partial = bool(isinstance(node, DictConfig) and node.get("_partial_"))
        by_lab = calls.filled(parameters, calls.annotations(call), parent, partial)
        if name in by_lab:
            return f"{key} is set by the lab itself; leave it out"
        parameters = {of: p for of, p in parameters.items() if of not in by_lab}
    if OmegaConf.is_dict(there := OmegaConf.select(cfg, key)) and "_target_" not in there:
        return f"'{key}' takes new entries one by one: +{key}.<name>=..."
    if name in parameters and differs:
        return f"'{key}' is env.{name}; write +{key}=... to set it for evaluations alone"
    if name in parameters:
        return f"'{key}' has its default and is not in the YAML; write +{key}=... to set it"
    passed_on = OmegaConf.is_config(node) and not target  # a mapping such as env.options
    if parent not in ("", "checkpoint") and passed_on:
        return f"'{key}' is not in the YAML; write +{key}=... to add it"
    parts = ((k, node._get_node(k)) for k in node) if isinstance(node, DictConfig) and target else ()
    for k, part in parts:
        inner = part.get("_target_") if isinstance(part, DictConfig) and name not in part else None
        if inner and name in inspect.signature(calls.locate(inner)).parameters:
            return f"no setting '{key}'; write +{parent}.{k!s}.{name}=... to set it"
    if (ours := PEERS.get(name)) and (found := _ending(cfg, ours, key)):
        return f"no setting '{key}'; did you mean {' or '.join(found)}?"
    there = (k for k in flatten(cfg) if not k.rpartition(".")[2].startswith("_"))
    known = [*there, *(f"{parent}.{p}" for p in parameters), *more]
    beside = [k for k in known if k.startswith(f"{key.partition('.')[0]}.") and k.endswith(f".{name}")]
    here = [k for k in flatten(cfg) if parent and k.count(".") == 1 and k.endswith(f".{name}")]
    elsewhere = of_another(key) + f"; here there is {' and '.join(here)}" * bool(here)
    elsewhere = elsewhere if parent else _whole(cfg, name)
    if not (elsewhere or beside) and (found := _ending(cfg, name, key)):
        return f"no setting '{key}'; did you mean {' or '.join(found)}?"
    meant = elsewhere or nearest(key, beside or known)
    if parent.partition(".")[0] == "env" and OmegaConf.is_dict(OmegaConf.select(cfg, "env.options")):
        own = f"an argument of the environment's own is +env.options.{name}=..."
        meant = f"; {own}" if parent != "env" else f"{meant} ({own})"
    return f"no setting '{key}'{meant}"


def _ending(cfg: DictConfig, name: str, key: str) -> list[str]:
    """The settings here of that name, the shortest first; those of the key's own group where there are any."""
    found = sorted((k for k in flatten(cfg) if k.endswith(f".{name}") and ".eval_env." not in k), key=len)[:MOST]
    return [k for k in found if k.partition(".")[0] == key.partition(".")[0]] or found


def _whole(cfg: DictConfig, name: str) -> str:
    """Which settings here, or else of other choices, a name without its path may be: lr, or env_id."""
    if within := _ending(cfg, name, name):
        return f"; did you mean {' or '.join(within)}?"
    keys = (f"{group}.{name.removeprefix(f'{group}_')}" for group in ("env", "agent", "data", "model") if group in cfg)
    return next((found for key in keys if (found := of_another(key, key))), "")


def any_world(id: str) -> str:
    """What chooses a game or an environment of Gymnasium's by the name that it has there, ALE/Breakout-v5."""
    from rl_lab.core.comparing.scales import ATARI

    game = snake(id.removeprefix("ALE/")).removesuffix("_no_frameskip")
    if game in ATARI:
        return f"; it is a game: env=atari env.game={game}"
    return f"; env=gym env.id={id} makes an environment of Gymnasium's" if re.search(r"-v\d+$", id) else ""
