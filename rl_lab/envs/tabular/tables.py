"""Finite MDPs from elsewhere: tensors or arrays, a Gymnasium environment with a table `P`, an npz file."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from torch import Tensor

from rl_lab.core import files, room
from rl_lab.core.devices import Device
from rl_lab.core.errors import UserError
from rl_lab.core.settings import Count, Envs, Place, Unit
from rl_lab.envs import wrapping
from rl_lab.envs.naming import KNOWN
from rl_lab.envs.tabular.mdp import MDP, Layout, checked
from rl_lab.envs.tabular.stepper import MDPEnv

ARRAYS = {"next_state": "int64", "probability": "float64", "reward": "float64", "terminal": "bool", "start": "float64"}


def from_tables(
    next_state: Tensor | np.ndarray,  # [S, A, K] int64
    probability: Tensor | np.ndarray,  # [S, A, K] float64
    reward: Tensor | np.ndarray,  # [S, A, K] float64
    terminal: Tensor | np.ndarray,  # [S] bool
    start: Tensor | np.ndarray,  # [S] float64
    actions: Sequence[str] | None = None,  # None: their numbers
    *,
    gamma: Unit = 0.99,
    layout: Layout | None = None,
    name: str = "mdp",  # by which an error calls it
) -> MDP:
    """The MDP of these tables. Raises UserError that names the state and the action at fault."""
    onto, p, r, ends, first = (torch.as_tensor(x) for x in (next_state, probability, reward, terminal, start))
    if actions is None and onto.dim() > 1:
        actions = [str(a) for a in range(onto.shape[1])]
    return checked(MDP(onto, p, r, ends, first, tuple(actions or ()), gamma, layout), name)


# -- a file


def mdp_file(path: str, *, gamma: Unit = 0.99) -> MDP:
    """From an npz file of the arrays that `from_tables` takes. Raises UserError that names the file."""
    arrays, held = _read(path)
    for name, dtype in ARRAYS.items():
        if name not in arrays:
            raise UserError(f"{path}: no array {name}; it holds {', '.join(held) or 'none'}")
        if arrays[name].dtype != dtype:
            raise UserError(f"{path}: {name} must be {dtype}, not {arrays[name].dtype}")
    next_state, probability, reward, terminal, start = (arrays[name] for name in ARRAYS)
    return from_tables(next_state, probability, reward, terminal, start, gamma=gamma, name=str(path))


# What numpy raises over a file.
UNREADABLE = (
    OSError, ValueError, EOFError, TypeError, AttributeError, MemoryError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


def _read(path: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Of an npz file of numbers alone, which cannot run code: our arrays, and the names of all it holds."""
    try:
        with room.regular(files.home(path)) as packed:
            room.archive(packed, Path(path)).close()
            packed.seek(0)
            with np.load(packed, allow_pickle=False) as file:
                return {name: file[name] for name in file.files if name in ARRAYS}, file.files
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; write one with numpy.savez, of {', '.join(ARRAYS)}") from error
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UNREADABLE as error:
        raise UserError(f"{path}: not an npz file of numbers; write one with numpy.savez") from error


def file_env(
    path: Place,
    num_envs: Envs,
    time_limit: Count,
    *,
    gamma: Unit,
    obs: Literal["one_hot", "index"],
    device: Device,
) -> MDPEnv:
    """N walkers in the MDP of an npz file."""
    return MDPEnv(mdp_file(path, gamma=gamma), num_envs, time_limit, obs=obs, device=device)


# -- Gymnasium's toy texts


def toy_text(id: str, *, options: Mapping | None, gamma: Unit) -> MDP:
    """From the table `P` of a Gymnasium environment, P[s][a] = [(probability, successor, reward, done), ...].

    Gymnasium's `done` belongs to a transition. A state that is entered by done transitions alone becomes terminal;
    where others enter it too, the done ones lead to one more state where all ends. `options` go to gymnasium.make.
    Raises UserError.
    """
    env = _make(id, options or {})
    table = getattr(env, "P", None)
    if table is None:
        raise UserError(f"{id} has no table P, so no planner can solve it; agents learn in it with env=gym env.id={id}")
    rows = [[list(table[s][a]) for a in range(len(table[s]))] for s in range(len(table))]
    terminal = _terminal(rows)
    next_state, probability, reward = _tables(rows, terminal)
    if len(next_state) > len(terminal):
        terminal = np.append(terminal, True)
    start = np.zeros(len(terminal))
    given = getattr(env, "initial_state_distrib", None)
    start[: len(rows)] = ~terminal[: len(rows)] / (~terminal).sum() if given is None else given
    kind = type(env).__name__
    return from_tables(
        next_state,
        probability,
        reward,
        terminal,
        start,
        KNOWN.get(kind),
        gamma=gamma,
        name=id,
        layout=_layout(env, kind, rows, terminal),
    )


def _make(id: str, options: Mapping) -> gymnasium.Env:
    id = wrapping.register([], id)
    options = {k: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for k, v in options.items()}
    try:
        return gymnasium.make(id, **options).unwrapped
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(wrapping.unknown(id)) from error
    except (gymnasium.error.Error, TypeError, ValueError, KeyError, ImportError) as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"gymnasium.make refuses id={id} with options={options} ({text})") from error


def _terminal(rows: list) -> np.ndarray:
    """The states [S] that only done transitions enter, but for those that leave such a state."""
    entered = [(s, to, done) for s, row in enumerate(rows) for entries in row for p, to, _, done in entries if p > 0]
    ends = {to for _, to, done in entered if done}
    while alive := {to for s, to, done in entered if not done and to in ends and s not in ends}:
        ends -= alive
    return np.isin(np.arange(len(rows)), list(ends))


def _tables(rows: list, terminal: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """next_state, probability and reward [S, A, K]; one state more where a done transition has no terminal one."""
    sink = len(rows)
    merged: list[list[dict[tuple[int, float], float]]] = [[{} for _ in row] for row in rows]  # (to, reward): p
    for s, row in enumerate(rows):
        for a, entries in enumerate([[(1.0, s, 0.0, True)]] * len(row) if terminal[s] else row):
            for p, to, r, done in entries:
                key = (sink if done and not terminal[to] else int(to)), float(r)
                merged[s][a][key] = merged[s][a].get(key, 0.0) + p
    if any(to == sink for row in merged for entries in row for to, _ in entries):
        merged.append([{(sink, 0.0): 1.0} for _ in rows[0]])
    shape = len(merged), len(rows[0]), max(len(entries) for row in merged for entries in row)
    next_state = np.broadcast_to(np.arange(shape[0])[:, None, None], shape).copy()
    probability, reward = np.zeros((2, *shape))
    for s, row in enumerate(merged):
        for a, entries in enumerate(row):
            for k, ((to, r), p) in enumerate(entries.items()):
                next_state[s, a, k], probability[s, a, k], reward[s, a, k] = to, p, r
    return next_state, probability, reward


def _layout(env: Any, kind: str, rows: list, terminal: np.ndarray) -> Layout | None:
    """The layout of the two that are boards. Holes pay 0 and end; the cliff costs and sends back to the start."""
    paid = {
        int(to): float(r)
        for s, row in enumerate(rows)
        if not terminal[s]
        for entries in row
        for _, to, r, done in entries
        if done
    }
    if kind == "FrozenLakeEnv":
        board = np.char.replace(env.desc.astype(str), "F", ".")
    elif kind == "CliffWalkingEnv":
        board = np.where(env._cliff, "X", ".")
        board.flat[env.start_state_index], board.flat[-1] = "S", "G"
        paid |= dict.fromkeys(np.flatnonzero(env._cliff).tolist(), -100.0)
    else:
        return None
    cells = tuple(np.ndindex(*board.shape))
    return Layout(
        tuple("".join(row) for row in board),
        cells,
        {cells[s]: r for s, r in paid.items()},
        frozenset(cells[s] for s in np.flatnonzero(terminal[: len(cells)])),
    )


def toy_text_env(
    id: str,
    num_envs: Envs,
    time_limit: Count,
    *,
    options: dict | None,
    gamma: Unit,
    obs: Literal["one_hot", "index", "planes", "coordinates"],
    device: Device,
) -> MDPEnv:
    """N walkers in the MDP of a Gymnasium toy text."""
    return MDPEnv(toy_text(id, options=options, gamma=gamma), num_envs, time_limit, obs=obs, device=device)
