"""Which code made a run: the revision, and a digest of what differs from it."""

import re
import subprocess
from pathlib import Path

import pytest

from rl_lab.core.provenance import revision


@pytest.fixture
def code(tmp_path) -> Path:
    """A repository with the file lab/a.py, committed."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/a.py").write_text("x = 1\n")
    (tmp_path / ".gitignore").write_text("runs/\n")
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path / "lab"


def now(code: Path) -> str | None:
    revision.cache_clear()
    return revision(code)


def test_what_differs_from_the_revision_has_a_digest_of_its_own(code):
    clean = now(code)
    assert re.fullmatch("[0-9a-f]{4,40}", clean or "")
    found = [clean]
    for name, text in {"lab/a.py": "x = 2\n", "lab/b.py": "y = 1\n", "conf/c.yaml": "z: 1\n"}.items():
        path = code.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        found.append(now(code))
    path.write_text("z: 2\n")
    found.append(now(code))
    assert len(set(found)) == 5 and all(re.fullmatch(rf"{clean}\+dirty\.[0-9a-f]{{8}}", x) for x in found[1:])
    assert now(code) == found[-1], "the same difference, the same digest"


def test_neither_ignored_files_nor_data_make_code_another(code):
    (code.parent / "runs").mkdir()
    (code.parent / "runs/config.yaml").write_text("x: 1\n")
    (code.parent / "notes.txt").write_text("x")
    assert "dirty" not in now(code)


def test_code_that_the_repository_around_it_does_not_know_has_no_revision(code):
    installed = code.parent / "runs/site-packages"
    installed.mkdir(parents=True)
    (installed / "a.py").write_text("x = 1\n")
    assert now(installed) is None and now(Path("/")) is None
