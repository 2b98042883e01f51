"""Trackers that keep a run's rows in its own folder: as metrics.csv, or for TensorBoard."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rl_lab.core import files
from rl_lab.core.errors import UserError
from rl_lab.core.rows import NAME, Row, content, parsed

AXES = "step", "seconds"  # of a row, what is no metric


@runtime_checkable
class Local(Protocol):
    """It begins in a folder whose rows, those of earlier sessions, are there already."""

    def begin(self, folder: Path) -> None: ...
    def log(self, row: Row) -> None: ...
    def media(self, name: str, path: Path, step: int) -> None: ...
    def finish(self) -> None: ...


def csv_run(*, id: str | None = None, **_: Any) -> "Csv | None":
    """`tracker=csv`: of a run folder, which has an id; what other commands make are files already."""
    return Csv() if id else None


def tensorboard_run(*, config: dict[str, Any], id: str | None = None, **_: Any) -> "TensorBoard | None":
    """`tracker=tensorboard`, likewise. Raises UserError where it is not installed."""
    return TensorBoard(config) if id else None


def summary_writer() -> Any:
    """Torch's class of that name. Raises UserError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError('tracker=tensorboard needs tensorboard; pip install "rl-lab[tensorboard]"') from error
    return SummaryWriter


class Csv:
    """metrics.csv: the rows of metrics.jsonl, a column for each metric in the order in which they appear."""

    def begin(self, folder: Path) -> None:
        self.folder, self.path, self.columns = folder, files.inside(folder, "metrics.csv"), list(AXES)
        self._write_all()

    def log(self, row: Row) -> None:
        """The row is in metrics.jsonl already. Raises OSError."""
        if row.keys() <= {*self.columns}:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._write_all()

    def media(self, name: str, path: Path, step: int) -> None: ...
    def finish(self) -> None: ...

    def _write_all(self) -> None:
        """Writes the file again with all columns that the rows have by now."""
        rows = _rows(self.folder)
        self.columns += dict.fromkeys(name for row in rows for name in row if name not in self.columns)
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, self.columns)
        table.writeheader()
        table.writerows(rows)
        files.write(self.path, text.getvalue())


class TensorBoard:
    """Events in the folder's tensorboard/, for `tensorboard --logdir runs`: rows, pictures, films as gifs, settings."""

    def __init__(self, config: dict[str, Any]):
        self._open = summary_writer()
        self._writer: Any = None  # until it begins
        self._config = config

    def begin(self, folder: Path) -> None:
        """TensorBoard discards what an earlier session sent from the last row on; those rows are sent again."""
        from omegaconf import OmegaConf

        rows = _rows(folder)
        place = files.inside(folder, "tensorboard/events").parent
        last = int(rows[-1]["step"]) if rows else 0
        self._writer = self._open(str(place), purge_step=last)
        for row in rows:
            if row["step"] >= last:
                self.log(row)
        if not rows:
            text = OmegaConf.to_yaml(OmegaConf.create(self._config))
            self._writer.add_text("settings", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, row: Row) -> None:
        for name in row.keys() - {*AXES}:
            self._writer.add_scalar(name, row[name], int(row["step"]))
        self._writer.flush()

    def media(self, name: str, path: Path, step: int) -> None:
        """A picture as it is, a film by the gif beside it, if there is one."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        path = path.with_suffix(".gif") if path.suffix == ".mp4" else path
        if not path.exists():
            return
        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def finish(self) -> None:
        if self._writer:
            self._writer.close()


def _rows(folder: Path) -> list[Row]:
    found: Iterable[Any] = parsed(content(files.inside(folder, NAME)))[0]
    return [row for _, _, row in found]
