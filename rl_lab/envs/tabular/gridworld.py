"""Gridworlds drawn as text: '#' wall, 'S' start, '.' floor, and letters that pay, end the episode or jump elsewhere."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy import ndarray

from rl_lab.core import files, room
from rl_lab.core.errors import UserError, nearest
from rl_lab.core.settings import Unit, conform, placed
from rl_lab.envs.tabular.mdp import MDP, Layout

MOVES = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1)}
TURNS = {"forward": 0, "right": 1, "back": 2, "left": 3}  # quarters clockwise from the move intended
SLIPS = {"sideways": {"right": 0.5, "left": 0.5}, "uniform": dict.fromkeys(TURNS, 0.25)}

LARGEST_MAP, MOST_CELLS = 2**22, 2**21  # bytes of a file, cells of a drawing


def _is_file(map: str) -> bool:
    return len(map.split()) == 1 and map.strip().endswith(".txt")


def whole_path(map: Any, path: str) -> Any:
    """Of a map in a file; any other as it is. Raises UserError where a pattern fits several files."""
    return placed(map.strip(), path) if isinstance(map, str) and _is_file(map) else map


def gridworld(
    map: Annotated[str, whole_path],  # as text, or a file of it that ends in .txt
    *,
    rewards: Mapping[str, float] | None,  # of letters; None: {G: 1, X: -1}
    ends: Sequence[str] | None = None,  # those of the letters where an episode ends; None: all
    living_reward: float,  # of every other cell
    noise: Unit,  # probability that a step slips
    slip: str | Mapping[str, float],  # sideways, uniform, or shares of forward, right, back, left and stay
    convention: Literal["transition", "state"],
    jumps: Mapping[str, Sequence] | None = None,  # {A: [a, 10]}: any action in A leads to a and pays 10 instead
    wind: str | None = None,  # a digit a column: cells by which a step from there is blown upwards
    bump: float | None = None,  # pays instead for a step that a wall or the rim cuts short
    gamma: Unit,
) -> MDP:
    """An MDP of one state a free cell, row by row; walls and the rim stop a move.

    The two conventions of Russell and Norvig: `transition` pays a cell on entering it (4th edition); `state` pays
    each cell when it is left, the ends too, into one more state where all ends (3rd edition).
    Raises UserError where the map cannot be a world.
    """
    rewards = _numbers("rewards", {"G": 1.0, "X": -1.0} if rewards is None else rewards)
    ends = _ends(rewards if ends is None else ends, rewards)
    jumps = {str(letter): _jump(letter, jump, ends) for letter, jump in _mapping("jumps", jumps or {}).items()}
    grid = _grid(map, {*rewards, *jumps, *(target for target, _ in jumps.values())})
    ys, xs = np.nonzero(grid != "#")
    glyphs = grid[ys, xs]

    paid = np.full(len(glyphs), living_reward)
    for letter, pay in rewards.items():
        paid[glyphs == letter] = pay
    arrival, stopped = _moves(grid, _wind(wind, grid.shape[1]))
    directions, probability = _slips(noise, slip)
    next_state = arrival[:, directions]  # [S, A, K]
    reward = paid[next_state] if convention == "transition" else _per_state(paid, next_state)
    if bump is not None:
        reward[stopped[:, directions]] = bump
    leaps: dict[int, int] = {}  # from a state to the one it jumps to
    for letter, (target, pay) in jumps.items():
        sources, landing = np.flatnonzero(glyphs == letter), _only(glyphs, letter, target)
        next_state[sources], reward[sources], paid[sources] = landing, pay, pay
        leaps |= dict.fromkeys(sources.tolist(), landing)
    next_state, reward, terminal = _ended(next_state, reward, paid, np.isin(glyphs, ends), convention)

    start = np.zeros(len(terminal))
    start[: len(glyphs)] = (glyphs == "S") / (glyphs == "S").sum()
    return MDP(
        torch.from_numpy(next_state),
        torch.from_numpy(probability).expand(next_state.shape),
        torch.from_numpy(reward),
        torch.from_numpy(terminal),
        torch.from_numpy(start),
        tuple(MOVES),
        gamma,
        _layout(grid, paid, {*rewards, *jumps}, ends, leaps),
    )


def _moves(grid: ndarray, wind: ndarray) -> tuple[ndarray, ndarray]:
    """The state where each move and then none ends, [S, 5], and whether something stopped it.

    A step goes across first, then up or down by what move and wind make together (Sutton and Barto, example 6.5).
    """
    height, width = grid.shape
    index = np.full((height + 2, width + 2), -1)  # a rim of wall
    free = np.argwhere(grid != "#")
    ys, xs = free.T
    index[ys + 1, xs + 1] = np.arange(len(free))
    index, stride = index.ravel(), width + 2
    home = (ys + 1) * stride + xs + 1  # places in the flat map
    arrival, stopped = np.empty((len(home), 5), np.int64), np.zeros((len(home), 5), bool)
    for move, (dy, dx) in enumerate([*MOVES.values(), (0, 0)]):
        rise = dy - wind[xs]
        strides = [dx, *(np.sign(rise) * (np.abs(rise) > i) * stride for i in range(np.abs(rise).max()))]
        place = home
        for step in strides:
            walled = index[place + step] < 0
            place = np.where(walled, place, place + step)
            stopped[:, move] |= walled
        arrival[:, move] = index[place]
    return arrival, stopped


def _slips(noise: float, slip: str | Mapping[str, float]) -> tuple[ndarray, ndarray]:
    """Which column of `_moves` a step becomes, [A, K], with the probabilities [K]; those of 0 left out."""
    if isinstance(slip, str):
        if slip not in SLIPS:
            raise UserError(f"env.mdp.slip={slip} is not a choice{nearest(slip, SLIPS)}")
        slip = SLIPS[slip]
    shares = _numbers("slip", slip)
    for name, share in shares.items():
        if name not in (*TURNS, "stay"):
            raise UserError(f"no setting 'env.mdp.slip.{name}'{nearest(name, (*TURNS, 'stay'))}")
        if share < 0:
            raise UserError(f"env.mdp.slip.{name}={share:g} must be at least 0")
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise UserError(f"env.mdp.slip: its shares of the noise must sum to 1, not {sum(shares.values()):.6g}")
    chance = {"forward": 1.0 - noise}
    for name, share in shares.items():
        chance[name] = chance.get(name, 0.0) + noise * share
    chance = {name: p for name, p in chance.items() if p > 0}
    moves = np.arange(len(MOVES))
    columns = [np.full(4, 4) if name == "stay" else (moves + TURNS[name]) % 4 for name in chance]
    return np.stack(columns, axis=1), np.array(list(chance.values()))


def _ended(next_state: ndarray, reward: ndarray, paid: ndarray, over: ndarray, convention: str) -> tuple:
    """The tables with the ends [S] made terminal, or, in the `state` convention, leading to one that is."""
    if convention == "transition" or not over.any():
        next_state[over], reward[over] = np.flatnonzero(over)[:, None, None], 0.0
        return next_state, reward, over
    last = len(over)
    next_state[over], reward[over] = last, paid[over, None, None]
    next_state = np.concatenate([next_state, np.full_like(next_state[:1], last)])
    reward = np.concatenate([reward, np.zeros_like(reward[:1])])
    return next_state, reward, np.arange(last + 1) == last


def _per_state(paid: ndarray, like: ndarray) -> ndarray:
    return np.broadcast_to(paid[:, None, None], like.shape).copy()


def _layout(grid: ndarray, paid: ndarray, letters: set[str], ends: list[str], leaps: dict[int, int]) -> Layout:
    free = grid != "#"
    ys, xs = (axis.tolist() for axis in np.nonzero(free))
    glyphs, cells = grid[free], tuple(zip(ys, xs, strict=True))
    return Layout(
        tuple("".join(row) for row in grid),
        cells,
        {cells[s]: float(paid[s]) for s in np.flatnonzero(np.isin(glyphs, list(letters)))},
        frozenset(cells[s] for s in np.flatnonzero(np.isin(glyphs, ends))),
        {cells[s]: cells[to] for s, to in leaps.items()},
    )


# -- what the user wrote


def _grid(map: str, letters: set[str]) -> ndarray:
    """The map as single characters [H, W]."""
    text = _text(map)
    rows = text.split()
    if not rows or len({len(row) for row in rows}) > 1:
        hint = "; a free cell is a '.', not a space" if any(len(line.split()) > 1 for line in text.splitlines()) else ""
        raise UserError(f"env.mdp.map: all rows must have the same length, not {sorted({len(r) for r in rows})}{hint}")
    if len(rows) * len(rows[0]) > MOST_CELLS:
        raise UserError(
            f"env.mdp.map: {len(rows)} x {len(rows[0])} cells are more than {MOST_CELLS:,}; draw a smaller one"
        )
    grid = np.array(rows)[:, None].view("U1")
    if unknown := set(np.unique(grid)) - set("#S.") - letters:
        raise UserError(
            f"env.mdp.map: {', '.join(sorted(unknown))} has no meaning; give it a reward in env.mdp.rewards"
        )
    if not (grid == "S").any():
        raise UserError("env.mdp.map: no start cell; mark at least one with S")
    return grid


def _text(map: str) -> str:
    if not _is_file(map):
        return map
    path = files.home(map.strip())
    try:
        with room.regular(path) as file:
            text = file.read(LARGEST_MAP).decode()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"env.mdp.map={path}: cannot be read ({why})") from error
    if not text.strip():
        raise UserError(f"env.mdp.map={path}: the file is empty; draw a map of '#', 'S', '.' and letters in it")
    return text


def _mapping(setting: str, value: Mapping) -> Mapping:
    if not isinstance(value, Mapping):
        raise UserError(f"env.mdp.{setting}={value} must be a mapping, such as {{G: 1}}")
    return value


def _numbers(setting: str, mapping: Mapping[str, float]) -> dict[str, float]:
    numbers = {}
    for key, value in _mapping(setting, mapping).items():
        path = f"env.mdp.{setting}.{key}"
        if setting == "rewards" and (len(str(key)) != 1 or str(key) in "#S."):
            raise UserError(f"{path}: only single letters have rewards, except '#', 'S' and '.', which have a meaning")
        numbers[str(key)] = _number(path, value)
    return numbers


def _number(path: str, value: float) -> float:
    value = conform(path, value, float)
    if not math.isfinite(value):
        raise UserError(f"{path}={value} must be finite")
    return float(value)


def _ends(letters: Sequence[str] | Mapping[str, float], known: Mapping[str, float]) -> list[str]:
    if not isinstance(letters, Sequence | Mapping):
        raise UserError(f"env.mdp.ends={letters} must be a list of letters")
    letters = [str(letter) for letter in letters]
    if unknown := sorted(set(letters) - set(known)):
        raise UserError(f"env.mdp.ends: {unknown[0]} has no reward; give it one in env.mdp.rewards, which may be 0")
    return letters


def _jump(letter: str, jump: Sequence, ends: list[str]) -> tuple[str, float]:
    if isinstance(jump, str) or not isinstance(jump, Sequence) or len(jump) != 2:
        raise UserError(f"env.mdp.jumps.{letter}={jump} must be a cell and a reward, such as [a, 10]")
    if letter in ends:
        raise UserError(f"env.mdp.jumps.{letter}: an episode ends there; leave it out of env.mdp.ends")
    return str(jump[0]), _number(f"env.mdp.jumps.{letter}[1]", jump[1])


def _only(glyphs: ndarray, letter: str, target: str) -> int:
    found = np.flatnonzero(glyphs == target)
    if len(found) != 1:
        raise UserError(f"env.mdp.jumps.{letter}: the map must show its target {target} once, not {len(found)} times")
    return int(found[0])


def _wind(wind: str | None, columns: int) -> ndarray:
    wind = "0" * columns if wind is None else wind
    if len(wind) != columns or not (wind.isascii() and wind.isdigit()):
        raise UserError(f"env.mdp.wind={wind} must be a digit for each of the map's {columns} columns")
    return np.array([int(digit) for digit in wind])
