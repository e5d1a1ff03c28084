"""Labeled pictures brought into one form: four forms of sources, checks, copies, scenes, the teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from blurguard.types import Detections
from calibration import CalibrationError, data, sources
from calibration.__main__ import main
from calibration.crops import load_pictures, split
from calibration.score import load_truth

Pixels = NDArray[np.uint8]
IGNORE = 8
FACES: dict[str, list[list[float]]] = {
    "party/one_1.png": [[10, 20, 30, 40, 0], [60, 20, 12, 15, IGNORE]],
    "party/two_7.png": [[5, 6, 20, 20, 0]],
    "street/three_3.png": [],
}


def scenery(seed: int, width: int = 160, height: int = 120) -> Pixels:
    """Return (height, width, 3) of soft blobs, others for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def save(path: Path, pixels: Pixels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def label(folder: Path, **records: dict[str, Any]) -> Path:
    """Write faces.jsonl; a record's name is that of its PNG."""
    lines = [json.dumps({"image": f"{name}.png", "faces": []} | record) for name, record in records.items()]
    (folder / "faces.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "faces.jsonl").read_text("utf-8").splitlines()]


def table(text: str) -> dict[str, int]:
    """Return the numbers that the step printed."""
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|"))
    return {name: int(number) for name, number in rows if number.isdigit()}


def as_lines(folder: Path) -> Path:
    records = [
        {"image": name, "width": 160, "height": 120, "event": name.split("/")[0], "faces": faces}
        for name, faces in FACES.items()
    ]
    (folder / "faces.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    return folder


def as_coco(folder: Path) -> Path:
    images = [{"id": i, "file_name": name, "width": 160, "height": 120} for i, name in enumerate(FACES)]
    boxes: list[dict[str, Any]] = [
        {"image_id": i, "category_id": 2, "bbox": face[:4], "iscrowd": int(face[4] > 0)}
        for i, faces in enumerate(FACES.values())
        for face in faces
    ]
    boxes.append({"image_id": 0, "category_id": 1, "bbox": [0, 0, 100, 100]})
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "Human face"}]
    path = folder / "labels" / "all.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}), "utf-8")
    return path


def as_wider(folder: Path) -> Path:
    lines = []
    for name, faces in FACES.items():
        rows = [f"{x} {y} {w} {h} 0 0 0 {int(flags > 0)} 2 0 " for x, y, w, h, flags in faces]
        lines += [name, str(len(rows)), *(rows or ["0 0 0 0 0 0 0 0 0 0 "])]
    path = folder / "split" / "bbx_gt.txt"
    path.parent.mkdir()
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("form", [as_lines, as_coco, as_wider])
def test_every_form_of_labels_comes_out_the_same(form: Callable[[Path], Path], tmp_path: Path) -> None:
    home = tmp_path / "set"
    base = home if form is as_lines else home / "images"
    for seed, name in enumerate(FACES):
        save(base / name, scenery(seed))
    assert main(["data", str(form(home)), "--out", str(tmp_path / "out")]) == 0
    pictures, truth = load_pictures(tmp_path / "out"), load_truth(tmp_path / "out")
    assert [picture.path for picture in pictures] == [base / name for name in FACES]
    assert [picture.event for picture in pictures] == ["party", "party", "street"]
    for picture, labeled, faces in zip(pictures, truth, FACES.values(), strict=True):
        rows = np.array(faces, np.float32).reshape(-1, 5)
        np.testing.assert_array_equal(picture.faces, rows[:, :4])
        np.testing.assert_array_equal(picture.ignored, rows[:, 4] == IGNORE)
        assert (labeled.path, labeled.width, labeled.height) == (picture.path, 160, 120)
        np.testing.assert_array_equal(labeled.boxes[:, 2:], rows[:, :2] + rows[:, 2:4])


def test_a_list_without_rows_of_zeros_and_with_the_pictures_elsewhere_is_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n0\nb.png\n1\n1 2 3 4 0 0 0 0 0 0\n", "utf-8")
    with pytest.raises(CalibrationError, match=r"list\.txt do not lie beside it: give --pictures"):
        sources.read(tmp_path / "list.txt")
    first, second = sources.read(tmp_path / "list.txt", tmp_path / "there")
    assert (first.path, second.path) == (tmp_path / "there" / "a.png", tmp_path / "there" / "b.png")
    assert first.rows is not None and second.rows is not None
    assert (first.rows.shape, second.rows.tolist()) == ((0, 5), [[1, 2, 3, 4, 0]])


def test_pictures_that_do_not_fit_their_labels_are_dropped_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("good", "small", "broken", "many")):
        save(tmp_path / f"{name}.png", scenery(seed))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    many = [[1, 2, 30, 40, 0]] * 12 + [[5, 5, 9, 9, 0]]
    label(tmp_path, good={}, small={"width": 161, "height": 120}, broken={}, many={"faces": many}, nowhere={})
    assert main(["data", str(tmp_path), "--check-only"]) == 1
    told = capsys.readouterr()
    assert "4 of 5 pictures are unfit" in told.err
    assert not (tmp_path / "dropped.jsonl").exists()
    assert main(["data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    for name, why in (
        ("small", "another size than stated ((160, 120), upright, stated (161, 120))"),
        ("broken", "picture cannot be decoded"),
        ("nowhere", "picture missing"),
        ("many", "most boxes repeated (11 times)"),
    ):
        assert f"{tmp_path / name}.png: {why}" in told.out
    counts = table(told.out)
    assert (counts["pictures read"], counts["pictures kept"], counts["dropped: picture missing"]) == (5, 1, 1)
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text("utf-8").splitlines()]
    assert [Path(record["image"]).stem for record in dropped] == ["small", "broken", "many", "nowhere"]


def test_boxes_are_cut_at_the_edge_and_those_that_are_none_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.png", scenery(0))
    nothing = [[9, 9, 0, 5, 0], [9, 9, 5, -4, 0], [9, math.nan, 5, 5, 0], [9, 9, 5, math.inf, 0]]
    outside = [[160, 10, 20, 20, 0], [-30, 10, 30, 20, 0]]
    cut = [[-10, 100, 30, 40, 0], [150, 0, 10.01, 20, 0]]
    twice = [[50, 50, 20, 20, IGNORE], [50, 50, 20, 20, 0], [50, 50, 20, 21, 0]]
    label(tmp_path, a={"faces": nothing + outside + cut + twice})
    assert main(["data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    counts = table(capsys.readouterr().out)
    assert counts["boxes without size, or no numbers: dropped"] == 4
    assert counts["boxes outside the picture: dropped"] == 2
    assert (counts["boxes cut at the picture's edge"], counts["boxes repeated"]) == (1, 1)
    assert (counts["faces"], counts["faces 10-20 px high"], counts["faces 20-40 px high"]) == (4, 0, 4)
    (record,) = written(tmp_path / "out")
    kept = [[0, 100, 20, 20, 0], [150, 0, 10, 20, 0], [50, 50, 20, 20, 0], [50, 50, 20, 21, 0]]
    assert record["faces"] == kept


def test_labels_are_for_the_upright_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # stored lying: a quarter turn to the right makes it upright
    for name, seed in (("upright", 0), ("lying", 1)):
        Pillow.fromarray(scenery(seed)).save(tmp_path / f"{name}.jpg", exif=exif)
    sizes = {"upright": (120, 160), "lying": (160, 120)}
    records = [
        {"image": f"{name}.jpg", "width": width, "height": height, "faces": [[0, 130, 20, 30, 0]]}
        for name, (width, height) in sizes.items()
    ]
    (tmp_path / "faces.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    assert main(["data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "lying.jpg: another size than stated ((120, 160)" in capsys.readouterr().out
    (record,) = written(tmp_path / "out")
    assert (record["width"], record["height"], record["faces"]) == (120, 160, [[0, 130, 20, 30, 0]])


def test_of_copies_the_one_with_most_faces_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = scenery(0), scenery(1)
    save(tmp_path / "whole.png", one)
    save(tmp_path / "again.png", one)
    shrunk = np.asarray(cv2.resize(one, (80, 60), interpolation=cv2.INTER_AREA), np.uint8)
    packed = cv2.imencode(".jpg", shrunk, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    save(tmp_path / "small.png", np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8))
    save(tmp_path / "other.png", other)
    for shade in (40, 80):  # a print of nothing is like no other
        save(tmp_path / f"flat{shade}.png", np.full((120, 160, 3), shade, np.uint8))
    two, ignored = [[5, 5, 9, 9, 0], [30, 5, 9, 9, 0]], [[x, 50, 9, 9, IGNORE] for x in (0, 20, 40)]
    label(
        tmp_path,
        whole={"faces": two[:1]},
        again={"faces": ignored},
        small={"faces": two},
        other={},
        flat40={},
        flat80={},
    )
    assert main(["data", str(tmp_path), "--out", str(tmp_path / "out"), "--check-only"]) == 0
    assert main(["data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    counts = table(capsys.readouterr().out)
    assert counts["dropped: the same pixels as another"] == counts["dropped: nearly the same as another"] == 1
    assert [Path(one["image"]).stem for one in written(tmp_path / "out")] == ["small", "other", "flat40", "flat80"]


def test_what_looks_alike_is_one_scene_and_never_on_both_sides(tmp_path: Path) -> None:
    wide = scenery(0, 200, 120)
    views = {"shot_1": wide[:, :160], "shot_2": wide[:, 9:169], "clip_7": wide[:, 4:164]}
    for name, view in views.items():
        save(tmp_path / f"{name}.png", np.ascontiguousarray(view))
    save(tmp_path / "shot_3.png", scenery(9))
    for name in ("given_a", "given_b"):
        save(tmp_path / f"{name}.png", scenery(len(name) + ord(name[-1])))
    given = {"event": "e1", "scene": "s"}
    label(tmp_path, shot_1={}, shot_2={}, shot_3={}, clip_7={"event": "e2"}, given_a=given, given_b=given)
    assert main(["data", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    where = {Path(one["image"]).stem: (one["event"], one["scene"]) for one in written(tmp_path / "out")}
    assert where["shot_1"] == where["shot_2"] == where["clip_7"]
    assert where["given_a"] == where["given_b"] == ("e1", "s")
    assert len(set(where.values())) == 3
    pictures = load_pictures(tmp_path / "out")
    for seed in range(20):
        sides = [{(p.event, p.scene) for p in side} for side in split(pictures, 3, seed)]
        assert not sides[0] & sides[1]


def seen(name: str, bits: int, scene: str = "") -> data.Looked:
    """Return a picture whose print differs from another's by as many bits as their numbers do."""
    print_of = np.ones(data.BITS, np.float32)
    print_of[:bits] = -1
    return data.Looked(sources.Entry(Path("p") / name, np.zeros((0, 5)), (9, 9), "", scene), name.encode(), print_of)


def test_neighbors_by_number_are_one_scene_where_strangers_are_not() -> None:
    pictures = [seen("v_3.png", 0), seen("v_4.png", 25), seen("w_5.png", 50), seen("v_6.png", 75)]
    assert [one.entry.scene for one in data.scenes(pictures)] == ["p/v_3.png", "p/v_3.png", "p/w_5.png", "p/v_6.png"]


def test_what_is_one_scene_by_two_ways_is_one() -> None:
    pictures = [seen("a.png", 0), seen("b.png", 15, "s"), seen("c.png", 70, "s"), seen("d.png", 88), seen("e.png", 120)]
    assert len({one.entry.scene for one in data.scenes(pictures)[:4]}) == 1
    assert data.scenes(pictures)[4].entry.scene == "p/e.png"


class Sure:
    """Stands in for CenterFace, which is another project's: finds the same three faces in every picture."""

    def detect(self, bgr: Pixels) -> Detections:
        boxes = [[10, 10, 30, 34], [60, 60, 80, 84], [100, 10, 108, 20]]
        return Detections(np.array(boxes, np.float32), np.array([0.9, 0.6, 0.3], np.float32))


def taught(entry: sources.Entry, unsure: float = 0.25) -> list[list[float]]:
    teacher = data.Teacher(Sure(), 0.5, unsure)  # type: ignore[arg-type]  # it only detects
    looked = data.look(entry, teacher, data.Report())
    assert looked is not None and looked.entry.rows is not None
    rows: list[list[float]] = looked.entry.rows.tolist()
    return rows


def test_the_teacher_labels_plain_pictures_by_how_sure_it_is(tmp_path: Path) -> None:
    save(tmp_path / "trip" / "b.png", scenery(0))
    (entry,) = sources.read(tmp_path)
    sure = [[10, 10, 20, 24, 0], [60, 60, 20, 24, 0]]
    assert taught(entry) == [*sure, [100, 10, 8, 10, IGNORE]]
    assert taught(entry, unsure=0.35) == sure
    assert (entry.event, entry.path) == ("trip", tmp_path / "trip" / "b.png")
    with pytest.raises(CalibrationError, match=r"b\.png has no labels: give --teacher"):
        data.look(entry, None, data.Report())


def test_in_labeled_pictures_the_teacher_adds_only_what_was_overlooked_and_ignores_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", scenery(0))
    rows: list[list[float]] = [[12, 12, 20, 20, 0]]
    assert taught(sources.Entry(path, np.array(rows))) == [*rows, [60, 60, 20, 24, IGNORE]]
    assert taught(sources.Entry(path, np.zeros((0, 5)))) == [[10, 10, 20, 24, IGNORE], [60, 60, 20, 24, IGNORE]]
    crowd: list[list[float]] = [[0, 0, 160, 120, IGNORE]]
    assert taught(sources.Entry(path, np.array(crowd))) == crowd


def test_the_same_pictures_give_the_same_bytes_and_their_result_is_a_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(FACES):
        save(tmp_path / "set" / name, scenery(seed))
    as_lines(tmp_path / "set")
    folders = [tmp_path / name for name in ("set", "one", "two", "three")]
    for source, target in ((0, 1), (0, 2), (1, 3)):
        assert main(["data", str(folders[source]), "--out", str(folders[target])]) == 0
    one, two, three = ((folder / "faces.jsonl").read_bytes() for folder in folders[1:])
    assert one == two == three
    assert main(["data", str(folders[1]), str(folders[0]), "--out", str(folders[1])]) == 1
    assert "would replace its labels" in capsys.readouterr().err
    assert (folders[1] / "faces.jsonl").read_bytes() == one


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{broken", "cannot read the labels"),
        ('{"images": []}', "cannot read the labels"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}',
            "face",
        ),
        ("a.png\nmany\n", "cannot read the labels"),
        ("a.png\n1\n1 2 3\n", "cannot read the labels"),
        ("a.png\n2\n1 2 3 4 0 0 0 0 0 0\n", "ends after 1"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text(content, "utf-8")
    with pytest.raises(CalibrationError, match=told) as caught:
        sources.read(tmp_path / "labels")
    assert str(tmp_path / "labels") in str(caught.value)


def test_a_step_that_cannot_do_anything_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "set" / "a.png", scenery(0))
    (tmp_path / "empty").mkdir()
    for arguments, told in (
        (["set"], "give --out FOLDER, or --check-only"),
        (["empty", "--check-only"], "neither faces.jsonl nor pictures"),
        (["set", "--check-only"], "give --teacher"),
        (["nowhere", "--check-only"], "cannot read the labels"),
        (["set", "--check-only", "--teacher", "--teacher-network", "gone.onnx"], "gone.onnx: not found; pip install"),
        (["set", "--check-only", "--teacher", "--teacher-unsure", "0.1"], "--teacher-unsure must lie between 0.2"),
    ):
        assert main(["data", str(tmp_path / arguments[0]), *arguments[1:]]) == 1
        assert told in capsys.readouterr().err
