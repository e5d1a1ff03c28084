"""The calibration set: what is chosen, that it can be traced and made again, and what cannot be filled."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import CalibrationError, sample
from calibration.__main__ import main
from calibration.crops import load_pictures, split

Pixels = NDArray[np.uint8]
SIDE = 64
RECIPE = """
count = 10
seed = 0
side = 64
[size]
"6-10" = 0.5
"10-20" = 0.5
[light]
ordinary = 0.25
backlit = 0.25
dark = 0.25
bright = 0.25
[pose]
frontal = 0.5
turned = 0.5
[crowding]
"1" = 0.5
"2-5" = 0.4
"6+" = 0.1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, "utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of 24 pictures in 20 scenes, each with a red face, and with another one in every third."""
    home, random, lines = tmp_path / "data", np.random.default_rng(3), []
    home.mkdir()
    for index in range(24):
        pixels = random.integers(80, 120, (150, 200, 3), np.uint8)
        height = int(random.integers(9, 40))
        faces = [[20, 30, round(height * (0.8 if index % 2 else 0.5)), height, 0]]
        faces += [[100, 110, 16, 20, 0]] if index % 3 == 0 else [[60, 40, 16, 20, 8]]
        x, y, width, height = faces[0][:4]
        pixels[y : y + height, x : x + width] = (0, 0, 255)  # BGR
        cv2.imwrite(str(home / f"{index}.png"), pixels)
        where = {"event": "e", "scene": f"s{index % 20}", "width": 200, "height": 150}
        lines.append(json.dumps({"image": f"{index}.png", **where, "faces": faces}))
    (home / "faces.jsonl").write_text("\n".join(lines), "utf-8")
    return home


def made(folder: Path, out: Path, recipe: Path, *more: str) -> list[dict[str, Any]]:
    """Run the step and return its manifest."""
    assert main(["sample", str(folder), "--out", str(out), "--recipe", str(recipe), *more]) == 0
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]


def inside(folder: Path, line: dict[str, Any]) -> int:
    """Return how many faces that count have their center in the crop."""
    (picture,) = (one for one in load_pictures(folder) if one.path.name == line["image"])
    centers = (picture.faces[:, :2] + picture.faces[:, 2:] / 2)[~picture.ignored]
    corner, size = np.array(line["rectangle"][:2]), np.array(line["rectangle"][2:])
    return int(((centers >= corner) & (centers < corner + size)).all(axis=1).sum())


def test_each_crop_shows_its_face_and_can_be_traced(folder: Path, tmp_path: Path, recipe: Path) -> None:
    manifest = made(folder, tmp_path / "set", recipe, "--held", "0", "--count", "20")
    crops = sample.load_set(tmp_path / "set")
    assert crops.shape == (20, SIDE, SIDE, 3) and crops.dtype == np.uint8 and len(manifest) == 20
    checked = 0
    for crop, line in zip(crops, manifest, strict=True):
        assert line["crop_sha256"] == hashlib.sha256(crop.tobytes()).hexdigest()
        assert line["image_sha256"] == hashlib.sha256((folder / line["image"]).read_bytes()).hexdigest()
        x0, y0, x1, y1 = line["face"]
        assert 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE
        assert line["scale"] <= 2
        x, y, width, height = line["rectangle"]
        half = 0.51 / line["scale"]  # px that rounding the resized picture's size may add
        assert x >= 0 and y >= 0 and x + width <= 200 + half and y + height <= 150 + half  # no border
        assert width == height == pytest.approx(SIDE / line["scale"], abs=0.01)
        assert line["strata"]["crowding"] == ("2-5" if inside(folder, line) > 1 else "1")
        left, top = x + x0 / line["scale"], y + y0 / line["scale"]
        assert (round(left), round(top)) in {(20, 30), (100, 110)}
        if round(left) == 20:
            red, _, blue = crop[int((y0 + y1) / 2), int((x0 + x1) / 2)]
            assert red > 200 and blue < 60
            checked += 1
    assert checked > 5


def test_only_faces_in_the_crop_make_it_crowded(tmp_path: Path, recipe: Path) -> None:
    cv2.imwrite(str(tmp_path / "tall.png"), np.full((400, 100, 3), 120, np.uint8))
    faces = [[40, 380, 12, 14, 0], [40, 5, 3, 3, 0], [20, 5, 3, 3, 0]]
    record = {"image": "tall.png", "width": 100, "height": 400, "faces": faces}
    (tmp_path / "faces.jsonl").write_text(json.dumps(record), "utf-8")
    found = sample.candidates(load_pictures(tmp_path), sample.load_recipe(recipe, {}))
    assert [one.strata["crowding"] for one in found] == ["1", "1"]


def test_a_second_run_gives_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path, recipe: Path) -> None:
    for name, seed in (("one", "0"), ("two", "0"), ("other", "1")):
        made(folder, tmp_path / name, recipe, "--held", "0", "--seed", seed)
    for name in ("set.npz", "manifest.jsonl", "contact.png"):
        one, two, other = ((tmp_path / run / name).read_bytes() for run in ("one", "two", "other"))
        assert one == two != other
    assert not list(tmp_path.glob("*/*.tmp"))


def test_no_two_crops_show_one_scene_and_none_a_held_back_picture(folder: Path, tmp_path: Path, recipe: Path) -> None:
    pictures = load_pictures(folder)
    scenes = {picture.path.name: picture.scene for picture in pictures}
    held = {picture.path.name for picture in split(pictures, 8)[1]}
    manifest = made(folder, tmp_path / "set", recipe, "--held", "8", "--count", "99")
    shown = Counter(scenes[line["image"]] for line in manifest)
    assert len(held) >= 6
    assert not held & {line["image"] for line in manifest}
    assert max(shown.values()) == 1
    assert set(shown) == {scene for name, scene in scenes.items() if name not in held}


def test_what_cannot_be_filled_is_told_and_goes_to_the_others(
    folder: Path, tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = made(folder, tmp_path / "set", recipe, "--held", "0")
    printed = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines()]
    numbers = {tuple(row[:2]): [float(number) for number in row[2:]] for row in rows if row[0] in ("size", "crowding")}
    assert numbers["crowding", "6+"] == [1, 0, 0]
    assert numbers["crowding", "1"][0] + numbers["crowding", "2-5"][0] == 9
    assert numbers["crowding", "1"][2] + numbers["crowding", "2-5"][2] == 10
    assert [numbers["size", name][2] for name in ("6-10", "10-20")] == [5, 5]
    for axis, stratum in (("size", "6-10"), ("crowding", "1"), ("crowding", "2-5")):
        assert sum(line["strata"][axis] == stratum for line in manifest) == numbers[axis, stratum][2]


@pytest.mark.parametrize(
    ("shares", "there", "count", "expected"),
    [
        ((0.5, 0.3, 0.2), (99, 99, 99), 10, (5, 3, 2)),
        ((0.5, 0.25, 0.25), (1, 99, 99), 9, (1, 4, 4)),
        ((0.4, 0.4, 0.2), (0, 3, 99), 10, (0, 3, 7)),
        ((0.5, 0.5), (2, 1), 10, (2, 1)),
        ((1.0, 0.0), (3, 99), 10, (3, 0)),
    ],
)
def test_shares_of_what_runs_short_go_to_the_others(
    shares: Sequence[float], there: Sequence[int], count: int, expected: tuple[int, ...]
) -> None:
    assert tuple(sample.targets(shares, there, count)) == expected


def candidate(index: int, **strata: str) -> sample.Candidate:
    return sample.Candidate(index, 1.0, (0, 0), (0, 0, 9, 9), strata)


def test_the_choice_has_the_shares_of_every_table_at_once() -> None:
    strata = {"size": {"a": 0.25, "b": 0.75}, "light": {"c": 0.5, "d": 0.5}}
    kinds = [("a", "c")] * 5 + [("a", "d")] * 5 + [("b", "c")] * 10 + [("b", "d")] * 300
    found = [candidate(index, size=size, light=light) for index, (size, light) in enumerate(kinds)]
    chosen = sample.choose(found, [str(one.picture) for one in found], sample.Recipe(16, 0, 64, strata))
    counts = Counter((axis, found[index].strata[axis]) for index in chosen for axis in strata)
    assert counts == {("size", "a"): 4, ("size", "b"): 12, ("light", "c"): 8, ("light", "d"): 8}
    kinds_taken = Counter(tuple(found[index].strata.values()) for index in chosen)
    assert kinds_taken == {("a", "c"): 2, ("a", "d"): 2, ("b", "c"): 6, ("b", "d"): 6}
    few = sample.choose(found, ["one"] * 200 + ["two"] * 120, sample.Recipe(16, 0, 64, strata))
    assert len(few) == 2


@pytest.mark.parametrize(
    ("face", "around", "far", "expected"),
    [
        (120, 120, 120, "ordinary"),
        (100, 200, 200, "backlit"),
        (100, 100, 220, "backlit"),  # in the shade of a bright picture
        (40, 60, 60, "dark"),
        (40, 90, 60, "dark"),
        (180, 120, 60, "bright"),
        (180, 200, 200, "bright"),
    ],
)
def test_light_is_told_by_the_face_and_what_is_around_it(face: int, around: int, far: int, expected: str) -> None:
    grey = np.full((100, 100), far, np.uint8)
    grey[30:60, 30:60], grey[40:50, 40:50] = around, face
    assert sample._light(grey, np.array([40, 40, 10, 10], np.float64)) == expected
    assert sample._light(np.full((30, 30), 120, np.uint8), np.array([25, 25, 5, 5], np.float64)) == "ordinary"


def test_strata_end_where_their_names_say() -> None:
    sizes, crowds = {"6-9": 0.5, "9-14": 0.5}, {"1": 0.3, "2-5": 0.3, "6+": 0.4}
    assert [sample._named(value, sizes) for value in (5.9, 6.0, 8.99, 9.0, 13.9, 14.0)] == [
        "",
        "6-9",
        "6-9",
        "9-14",
        "9-14",
        "",
    ]
    assert [sample._named(value, crowds) for value in (0, 1, 2, 5, 6, 900)] == ["", "1", "2-5", "2-5", "6+", "6+"]


def test_a_picture_that_does_not_fill_a_crop_is_not_taken(
    folder: Path, tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", str(folder), "--out", str(tmp_path / "set"), "--recipe", str(recipe)]
    assert main([*arguments, "--held=0", "--side=320"]) == 1
    assert "fits a crop of 320 px" in capsys.readouterr().err
    (folder / "faces.jsonl").write_text("")
    assert main(arguments) == 1
    assert "no labeled picture" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_the_recipe_that_is_shipped_can_be_read() -> None:
    recipe = sample.load_recipe(sample.RECIPE, {})
    assert (recipe.count, recipe.seed, recipe.side) == (200, 0, 384)
    spans = [sample._span(name) for name in recipe.strata["size"]]
    assert (spans[0][0], spans[-1][1]) == (6, 40)
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    assert sample.load_recipe(sample.RECIPE, {"count": 7, "seed": None}).count == 7


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed = 0", "", "cannot read the recipe"),
        ('"6-10" = 0.5', '"small" = 0.5', "cannot read the recipe"),
        ('"6-10" = 0.5', '"6-10" = 0.6', "each adding up to 1"),
        ("[pose]", "[poses]", "tables size, light, pose and crowding"),
        ("side = 64", "side = 65", "a multiple of 32"),
        ("count = 10", "count = 0", "count must be positive"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(old: str, new: str, told: str, recipe: Path) -> None:
    assert old in RECIPE
    recipe.write_text(RECIPE.replace(old, new, 1), "utf-8")
    with pytest.raises(CalibrationError, match=told):
        sample.load_recipe(recipe, {})


def test_a_set_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"cannot read the calibration set .*set\.npz"):
        sample.load_set(tmp_path)
    for content in (b"", b"no archive"):
        (tmp_path / "set.npz").write_bytes(content)
        with pytest.raises(CalibrationError, match="cannot read the calibration set"):
            sample.load_set(tmp_path)
    for crops in (np.zeros((2, 64, 64, 3), np.float32), np.zeros((2, 64, 32, 3), np.uint8), np.zeros(5, np.uint8)):
        np.savez(tmp_path / "set.npz", crops=crops)
        with pytest.raises(CalibrationError, match="is no calibration set"):
            sample.load_set(tmp_path)
    np.savez(tmp_path / "set.npz", others=np.zeros(5, np.uint8))
    with pytest.raises(CalibrationError, match="cannot read the calibration set"):
        sample.load_set(tmp_path)
