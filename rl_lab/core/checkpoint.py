"""Checkpoints that are whole and safe: written beside and renamed, checked and read as data alone."""

import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch

from rl_lab.core import files
from rl_lab.core.errors import UserError

FORMAT = "rl_lab checkpoint 1"


def write(path: Path, state: dict) -> None:
    """Never half a file: the previous checkpoint stands until the new one is on disk. Raises OSError."""
    try:
        with files.replacing(path) as beside, open(beside, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
    except RuntimeError as error:  # torch reports a full disk so
        raise OSError(f"could not write {path}: {error}") from error


def read(path: Path, device: torch.device | str = "cpu", mapped: bool = False) -> dict:
    """Tensors, numbers and texts only; nothing in the file can run. Raises UserError where it is not one of ours.

    `mapped` tensors stay in the file until they are used: for whoever wants a small part of a large checkpoint.
    """
    if not path.exists():
        raise UserError(f"no checkpoint at {path}; has the run saved one yet?")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums of what it reads
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        raise UserError(f"{path} is cut short or is not a checkpoint; delete it to start again") from None
    if damaged:
        raise UserError(f"{path} is damaged: {damaged} fails its checksum; delete it to start again")
    try:
        state = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except (UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise UserError(f"{path} is refused: it holds more than tensors, numbers and texts") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of rl_lab or gen_lab")
    return state
