"""Sheets of images, planes of points, and films of them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from gen_lab.judging.pictures import side_by_side, thinned, write_film, write_sheet, write_training_film


def test_a_sheet_shows_every_image_in_reading_order(tmp_path):
    images = torch.zeros(3, 1, 4, 8)
    images[1] = 1
    images[2, :, 0] = 0.5
    sheet = np.asarray(Image.open(write_sheet(tmp_path / "new/sheet.png", images, columns=2)))
    assert sheet.shape == (2 * (4 * 6 + 2) + 2, 2 * (8 * 6 + 2) + 2, 3)  # each pixel a square of 6, gaps of 2
    assert (sheet[2:26, 2:50] == 0).all() and (sheet[2:26, 52:100] == 255).all()
    assert (sheet[28:34, 2:50] == 128).all() and (sheet[34:52, 2:50] == 0).all()
    assert (sheet[:2] == sheet[0, 0]).all() and len(set(sheet[0, 0].tolist())) == 3


def test_colours_stay_colours(tmp_path):
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 60, 60)
    sheet = np.asarray(Image.open(write_sheet(tmp_path / "sheet.png", red)))
    assert sheet.shape == (64, 64, 3) and (sheet[2:62, 2:62] == [255, 0, 0]).all()


def test_side_by_side():
    assert side_by_side(torch.tensor([1, 3]), torch.tensor([2, 4])).tolist() == [1, 2, 3, 4]
    assert side_by_side(*torch.arange(6).view(3, 2)).tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 784])
def test_a_film_is_thinned_evenly_and_ends_with_the_end(count):
    kept = thinned(iter(range(count)), most=8)
    steps = {b - a for a, b in pairwise(kept[:-1])}
    assert kept[0] == 0 and kept[-1] == count - 1 and len(kept) <= 8 and len(steps) <= 1
    assert len(kept) >= min(count, 4)


def test_a_film_shows_each_sheet_and_holds_the_last(tmp_path):
    frames = [torch.full((2, c, 4, 4), value) for c in (1, 3) for value in (0.0, 1.0, 0.0)]
    for i, three in enumerate((frames[:3], frames[3:])):
        with Image.open(write_film(tmp_path / f"{i}.gif", three)) as film:
            assert film.n_frames == 3 and film.size == (2 * 50 + 2, 50 + 2)
            seen, times = [], []
            for k in range(3):
                film.seek(k)
                seen.append(film.convert("L").getpixel((20, 20)))
                times.append(film.info["duration"])
            assert seen == [0, 255, 0] and times == [40, 40, 2000]


def test_images_of_two_values_are_points_of_a_plane(tmp_path):
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.25]]).view(4, 1, 1, 2)
    plane = np.asarray(Image.open(write_sheet(tmp_path / "plane.png", points))).sum(2)
    assert plane.shape == (384, 384) and (plane == 765).sum() == 4 * 9
    for row, column in ((381, 0), (381, 381), (0, 381), (286, 190)):  # y upwards
        assert (plane[row : row + 3, column : column + 3] == 765).all()


def test_a_film_of_training_shows_sheet_after_sheet(tmp_path):
    shades = [torch.full((1, 1, 4, 4), value) for value in (0.0, 1.0, 0.5)]
    sheets = [write_sheet(tmp_path / f"{i}.png", x) for i, x in enumerate(shades)]
    with Image.open(write_training_film(tmp_path / "videos/training.gif", sheets)) as film:
        seen, times = [], []
        for k in range(film.n_frames):
            film.seek(k)
            seen.append(film.convert("L").getpixel((20, 20)))
            times.append(film.info["duration"])
    assert seen == [0, 255, 128] and times == [250, 250, 2000]


def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for name in "sheet.png", "film.gif", "training.gif":
        (tmp_path / name).symlink_to(tmp_path / "mine.txt")
    images = torch.rand(3, 1, 4, 4)
    write_film(tmp_path / "film.gif", [images, images])
    sheet = write_sheet(tmp_path / "sheet.png", images)
    write_training_film(tmp_path / "training.gif", [sheet, sheet])
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not any((tmp_path / name).is_symlink() for name in ("sheet.png", "film.gif", "training.gif"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.gif", "mine.txt", "sheet.png", "training.gif"]
