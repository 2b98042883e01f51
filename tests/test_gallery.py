"""README's pictures are of the code as it is."""

import re

import pytest
from gallery import FILMS, GALLERY, ROOT, digest_of_code, digest_of_picture, made


@pytest.mark.parametrize("name", GALLERY)
def test_no_picture_is_older_than_the_code_that_draws_it(name):
    entry = made().get(name, {})
    words = f"runs/gallery/{name} is older than the code that draws it; python tests/gallery.py {name}"
    assert entry.get("code") == digest_of_code(GALLERY[name].code), words
    assert entry.get("picture") == digest_of_picture(name), words


def test_the_gallery_is_what_readme_shows():
    shown = re.findall(r"\]\(runs/gallery/([^)]+)\)", (ROOT / "README.md").read_text())
    assert {*shown} == {*GALLERY}


def test_words_about_the_code_do_not_count_and_the_code_does(tmp_path, monkeypatch):
    monkeypatch.setattr("gallery.ROOT", tmp_path)
    path = tmp_path / "draw.py"
    digests = []
    for text in (
        "def f():\n    return 1\n",
        '"""New."""\n\ndef f():\n    """Ten."""\n    return 1  # one\n',
        "def f():\n    return 2\n",
    ):
        path.write_text(text)
        digests.append(digest_of_code(("*.py",)))
    assert digests[0] == digests[1] != digests[2]
    assert all(any(ROOT.glob(pattern)) for pattern in FILMS)
