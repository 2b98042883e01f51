"""The worked notebooks, executed cell by cell as Jupyter would."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))


def sources(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def shown(path, **settings) -> SimpleNamespace:
    """In place of what IPython shows inline: the file must be there."""
    return SimpleNamespace(size=Path(path).stat().st_size)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_cell_is_python(path):
    assert [compile(source, path.name, "exec") for source in sources(path)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_shows_is_kept_and_names_no_machine(path):
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert {"image/png", "image/gif"} <= {kind for output in outputs for kind in output.get("data", {})}
    assert not re.search(r"/home/|/work/|/tmp/|\.venv", path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_the_first_cell_to_the_last(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("pandas")
    import matplotlib

    matplotlib.use("Agg")
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.get_ipython, ipython.version_info, display.Image = lambda: None, (9,), shown
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    session: dict = {}
    for source in sources(path):
        exec(compile(source, path.name, "exec"), session)
    final = {row["group"]: row["final"] for row in session["table"]}
    assert {*final} == {"dqn_four_rooms", "a2c_four_rooms"} and max(final.values()) < 0.05
    assert session["curves"].shape[1] == 4 and session["steps"] >= 10
    assert Path("four_rooms.mp4").is_file() and Path("four_rooms.gif").is_file()
