"""Checkpoints that are whole and safe: written beside and renamed, checked and read as data alone."""

import collections
import os
import pickletools
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rl_lab.core import files
from rl_lab.core.errors import UserError

FORMAT = "rl_lab checkpoint 1"
ANEW = "or delete it with the summary.json and metrics.jsonl beside it, to train anew by run="
LONGEST_ROW, ROWS_A_SECOND = 10_000, 100  # bytes, generously: a run writes 10 of some hundred
LARGEST_INDEX, MOST_OPCODES, MOST_PARTS = 16_000_000, 1_000_000, 20_000  # bytes; the tensors themselves lie beside it
LARGEST_TUPLE = 10_000  # values, what it shares counted each time: so long is it hashed, compared or shown
LARGEST_VIEW = 64_000_000  # bytes of a tensor that is more than what is stored of it


def write(path: Path, state: dict[str, Any], alone: bool = True) -> None:
    """Never half a file: the previous checkpoint stands until the new one is on disk.

    Raises OSError, and UserError where `read` would refuse it.

    alone: see `files.replacing`.
    """
    try:
        with files.replacing(path, alone) as beside, open(beside, "w+b") as file:
            torch.save({"format": FORMAT, **state}, file)
            _check_parts(path, file)  # what `read` would refuse is found now and not after a night
    except RuntimeError as error:  # torch reports a full disk so
        raise OSError(f"could not write {path}: {error}") from error


def read(path: Path, device: torch.device | str = "cpu", mapped: bool = False) -> dict[str, Any]:
    """Tensors, numbers and texts only; nothing in the file can run. Raises UserError where it is not one of ours.

    `mapped` tensors stay in the file until they are used: for a reader that wants a small part of a large checkpoint.
    """
    if not path.exists() and not path.is_symlink():
        raise UserError(f"no checkpoint at {path}; has the run saved one yet?")
    with files.opened(path) as file:
        _check_archive(path, file)
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except Exception:  # of as many kinds as there are ways to damage a pickle
        raise UserError(f"{path} is refused: it holds more than tensors, numbers and texts") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this library")
    if fault := _fault(state):
        raise UserError(f"{path} is refused: {fault}; bring back a whole copy, {ANEW}")
    return state


def fit(part: Any, name: str, saved: Mapping[str, Any], path: Path) -> None:
    """Loads `saved[name]` into the part of a run. Raises UserError where it does not fit."""
    try:
        part.load_state_dict(saved[name])
    except UserError:
        raise
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is of another experiment: its {name} does not fit this one ({unfit(error)}); leave out the "
            "settings that changed it, or bring back the run's own checkpoint"
        ) from error


def unfit(error: BaseException) -> str:
    """What a state lacks, or has of another kind, by what a look-up or torch's `load_state_dict` raised over it."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"it has no {text}"
    if found := re.search(
        r"size mismatch for (\S+): copying a param with shape torch\.Size\((.*?)\) from checkpoint, "
        r"the shape in current model is torch\.Size\((.*?)\)",
        text,
    ):
        return f"{found[1]} in it is {found[2]}, and {found[3]} is wanted"
    if found := re.search(r'(Missing|Unexpected) key\(s\) in state_dict: "(.*?)"', text):
        return f"it has no '{found[2]}'" if found[1] == "Missing" else f"it has '{found[2]}', which is not wanted"
    if isinstance(error, TypeError | AttributeError):
        return f"a part of it is of another kind: {text[:200]}"
    return text[:200]


PLAIN = {dict, collections.OrderedDict, list, tuple, torch.Size, int, float, bool, str, type(None)}


def foreign(node: Any) -> str | None:
    """The kind of the first value in a state that `read` would refuse."""
    if isinstance(node, torch.Tensor):
        return None
    if type(node) not in PLAIN:
        return f"{type(node).__module__}.{type(node).__name__}".removeprefix("builtins.")
    inside = [*node, *node.values()] if isinstance(node, dict) else node if isinstance(node, list | tuple) else []
    return next((kind for item in inside if (kind := foreign(item))), None)


def _check_archive(path: Path, file: BinaryIO) -> None:
    """An archive as torch writes it, its checksums right. Raises UserError."""
    try:
        _check_parts(path, file)
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums of what it reads
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is cut short or is not a checkpoint; bring back a whole copy, {ANEW}") from None
    if damaged:
        raise UserError(
            f"{path} is damaged: {files.printable(damaged)} fails its checksum; bring back a whole copy, {ANEW}"
        )


def _check_parts(path: Path, file: BinaryIO) -> None:
    """Nothing in the archive is packed, and no more parts nor a longer index than one of ours. Raises UserError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 2**16))
    _, is_there, end = file.read().rpartition(b"PK\5\6")  # of the archive, where the number of its parts stands
    if is_there and int.from_bytes(end[6:8], "little") > MOST_PARTS:
        raise UserError(f"{path} is refused: it has more parts than any checkpoint of ours")
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or (
            sum(part.file_size for part in parts) > size
        ):
            raise UserError(f"{path} is refused: it unpacks to more than it is, as no checkpoint of ours does")
        for part in (part for part in parts if part.filename.endswith("data.pkl")):
            if part.file_size > LARGEST_INDEX:
                raise UserError(f"{path} is refused: its index is larger than {LARGEST_INDEX / 1e6:g} MB")
            if fault := _odd_index(archive.read(part)):
                raise UserError(f"{path} is refused: {fault}")


def _odd_index(pickled: bytes) -> str | None:
    """What no checkpoint's index has: other names than torch's, or tuples of tuples that double at each level.

    Read as it stands, without building anything: a pickle is a list of simple orders to a machine with a stack, and
    here each thing on it is the number of values it would build.
    """
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    try:
        for count, (order, argument, _) in enumerate(pickletools.genops(pickled)):
            name = order.name
            if count > MOST_OPCODES:
                return "its index is longer than any of ours"
            if name in ("GLOBAL", "INST") and not str(argument).startswith(("torch", "collections OrderedDict")):
                return f"it holds more than tensors, numbers and texts ({files.printable(argument)[:60]})"
            if name == "MARK":
                marks.append(len(stack))
            elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                memo[len(memo) if argument is None else int(str(argument))] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[int(str(argument))])
            elif any(kind is pickletools.markobject for kind in order.stack_before):
                held, stack = stack[marks[-1] :], stack[: marks.pop()]
                before = stack.pop() if name in ("APPENDS", "SETITEMS", "ADDITEMS") else 0
                stack.append(1 + before + sum(held))
            else:
                taken = [stack.pop() for _ in order.stack_before]
                stack += [1 + sum(taken)] * len(order.stack_after)
            if name.startswith("TUPLE") and stack[-1] > LARGEST_TUPLE:
                return f"a tuple in it holds more than {LARGEST_TUPLE:,} values"
    except (ValueError, IndexError, KeyError, AttributeError):  # torch says that it is damaged
        return None
    return None


def _fault(state: dict[str, Any]) -> str | None:
    """What no run of ours would have written: impossible numbers, tensors larger than what is stored of them."""
    for name, least in {"step": 0, "bytes": 0, "seconds": 0}.items():
        value = state.get(name, least)
        whole = isinstance(value, int) or (name == "seconds" and isinstance(value, float))
        if isinstance(value, bool) or not whole or not least <= value < 2**62:
            return f"{name}={str(value)[:40]} is impossible"
    written = state.get("written")
    rows = written.get("bytes", 0) if isinstance(written, dict) else state.get("bytes", 0)
    if isinstance(rows, int) and rows > LONGEST_ROW * (1_000 + ROWS_A_SECOND * (state.get("seconds", 0) + 60)):
        return f"{rows:,} bytes of rows in {state.get('seconds', 0):,.0f} seconds are impossible"
    left: list[object] = [state]
    seen: set[int] = set()
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            left += node.values()
        elif isinstance(node, list | tuple | set):
            left += node
        elif isinstance(node, torch.Tensor) and (
            node.layout is not torch.strided
            or node.device.type == "meta"
            or node.numel() * node.element_size() > max(LARGEST_VIEW, node.untyped_storage().nbytes())
        ):
            return f"a tensor of {' x '.join(map(str, node.shape))} is not whole in it"
    return None
