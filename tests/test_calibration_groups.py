"""Hidden share by group: counted by hand, and the whole step on the example crowd."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from blurguard.cli.app import app
from blurguard.types import Detections
from calibration.__main__ import main
from calibration.groups import Group, Person, difference, groups_of, hidden_people
from calibration.score import IGNORE, Labeled

HEAD = "image,face,perceived_skin,perceived_gender,perceived_age"


def people_in(folder: Path, *rows: str) -> None:
    (folder / "people.csv").write_text("\n".join([HEAD, *rows]) + "\n", "utf-8")


def cells(printed: str) -> list[list[str]]:
    """Return the cells of every table row, without the heads."""
    rows = [line for line in printed.splitlines() if line.startswith("| ") and " --- |" not in line]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not row.startswith("| group ")]


def persons(*kinds: tuple[str, int, int]) -> list[tuple[Person, bool]]:
    """Return so many hidden and so many bare faces of each skin tone."""
    return [
        (Person(0, tone, "Female", "Adult"), index < hidden)
        for tone, hidden, bare in kinds
        for index in range(hidden + bare)
    ]


def test_tones_are_counted_alone_and_pooled() -> None:
    groups = groups_of(persons(("V", 3, 1), ("I", 8, 1), ("III", 1, 0), ("Not Sure", 0, 2)))
    assert [(group.name, group.faces, group.hidden) for group in groups] == [
        ("all", 16, 12),
        ("skin I", 9, 8),
        ("skin III", 1, 1),
        ("skin V", 4, 3),
        ("skin Not Sure", 2, 0),
        ("skin I-III", 10, 9),
        ("skin IV-VI", 4, 3),
        ("gender Female", 16, 12),
        ("age Adult", 16, 12),
    ]


def test_standard_errors_are_binomial() -> None:
    groups = groups_of(persons(("II", 90, 10), ("VI", 20, 5)))
    light, dark = (Group("", 100, 90), Group("", 25, 20))
    assert (light.share, light.error) == pytest.approx((90, 3))
    assert (dark.share, dark.error) == pytest.approx((80, 8))
    assert difference(groups) == f"I-III minus IV-VI: +10.0 points, standard error {math.hypot(3, 8):.1f}."


def test_one_pool_alone_is_compared_with_nothing() -> None:
    assert "cannot be compared" in difference(groups_of(persons(("VI", 1, 1))))


def test_only_faces_that_count_and_are_large_enough_are_seen() -> None:
    boxes = np.array([[10, 10, 50, 50], [60, 10, 79, 29], [100, 10, 140, 50], [150, 10, 170, 30]], np.float32)
    truth = Labeled(Path("a.jpg"), 200, 100, boxes, np.array([0, 0, IGNORE, 0]))
    everyone = {truth.path: [Person(face, "I", "Male", "Adult") for face in (3, 2, 1, 0)]}
    found = Detections(boxes, np.array([0.5, 0.9, 0.9, 0.4], np.float32))
    seen = hidden_people(everyone, [truth], [found], 0.5)
    assert [(person.face, hidden) for person, hidden in seen] == [(3, False), (0, True)]


def test_a_face_is_hidden_by_boxes_enlarged_as_elsewhere() -> None:
    truth = Labeled(Path("a.jpg"), 200, 100, np.array([[50, 20, 90, 60]], np.float32), np.zeros(1, np.int64))
    everyone = {truth.path: [Person(0, "I", "Male", "Adult")]}
    for inset, hidden in ((4, True), (7, False)):  # 41.6 px and 33.8 px when enlarged
        box = np.array([[50 + inset, 20 + inset, 90 - inset, 60 - inset]], np.float32)
        seen = hidden_people(everyone, [truth], [Detections(box, np.ones(1, np.float32))], 0.5)
        assert [found for _, found in seen] == [hidden]


def crowd_people(folder: Path) -> int:
    """Label the faces of the crowd in turns; return how many have 20 px and more."""
    faces = json.loads((folder / "faces.jsonl").read_text("utf-8"))["faces"]
    kinds = ("II,Female,Adult", "V,Male,Young Adult", "IV,Male,", "Not Sure,Not Sure,Not Sure")
    people_in(folder, *(f"crowd.jpg,{index},{kinds[index % 4]}" for index in range(len(faces))))
    return sum(face[3] >= 20 for face in faces)


def test_the_step_prints_a_table_per_mode(labeled_crowd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counted = crowd_people(labeled_crowd)
    assert main(["groups", str(labeled_crowd), "--mode", "fast", "--mode", "accurate"]) == 0
    printed = capsys.readouterr().out
    rows = cells(printed)
    half = rows[: len(rows) // 2]
    assert [row[0] for row in half] == [
        "all", "skin II", "skin IV", "skin V", "skin Not Sure", "skin I-III", "skin IV-VI",
        "gender Female", "gender Male", "gender Not Sure", "age Adult", "age Young Adult", "age Not Sure",
    ]  # fmt: skip
    assert [row[:2] for row in rows] == [row[:2] for row in half] * 2
    sizes = {row[0]: int(row[1]) for row in half}
    assert sizes["all"] == counted == sum(sizes[f"skin {tone}"] for tone in ("II", "IV", "V", "Not Sure"))
    assert sizes["skin IV-VI"] == sizes["skin IV"] + sizes["skin V"]
    assert all(50 < float(row[2].removesuffix(" %")) <= 100 for row in rows)
    assert printed.count("I-III minus IV-VI: ") == 2


def test_a_higher_score_hides_fewer(labeled_crowd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crowd_people(labeled_crowd)
    shares = []
    for more in ([], ["--min-score", "0.9"], ["--min-score", "1"]):
        assert main(["groups", str(labeled_crowd), "--mode", "fast", *more]) == 0
        shares.append(float(cells(capsys.readouterr().out)[0][2].removesuffix(" %")))
    assert shares[0] > shares[1] >= shares[2] == 0


@pytest.mark.parametrize("key", ["source", "image"])
def test_detections_of_a_file_stand_in_for_a_model(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    crowd_people(labeled_crowd)
    labels = json.loads((labeled_crowd / "faces.jsonl").read_text("utf-8"))["faces"]
    large = [(x, y, x + w, y + h) for x, y, w, h, _ in labels if h >= 20]
    faces = [{"box": box, "score": 0.3 if index else 0.7} for index, box in enumerate(large)]
    file = labeled_crowd / "found.jsonl"
    file.write_text(json.dumps({key: "elsewhere/crowd.jpg", "faces": faces}) + "\n\n", "utf-8")
    for score, hidden in (("0.3", len(large)), ("0.5", 1), ("0.8", 0)):
        assert main(["groups", str(labeled_crowd), "--found", str(file), "--min-score", score]) == 0
        row = cells(capsys.readouterr().out)[0]
        assert row[:3] == ["all", str(len(large)), f"{100 * hidden / len(large):.1f} %"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nobody.jpg,0,I,Male,Adult", "no picture 'nobody.jpg'"),
        ("crowd.jpg,9999,I,Male,Adult", "no face '9999'"),
        ("crowd.jpg,-1,I,Male,Adult", "no face '-1'"),
        ("crowd.jpg,,I,Male,Adult", "no face ''"),
        ("crowd.jpg,1,I,Male", "has no perceived_age"),
        ("crowd.jpg,0,I,Male,Adult", "second row for face 0"),
    ],
)
def test_rows_that_fit_no_face_are_refused(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str], row: str, message: str
) -> None:
    people_in(labeled_crowd, "crowd.jpg,0,V,Female,Adult", row)
    assert main(["groups", str(labeled_crowd)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "line 3" in error


def test_files_of_people_that_cannot_be_used_are_refused(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = labeled_crowd / "people.csv"
    for content, message in (
        (None, "cannot read the people"),
        (b"", "names no face"),
        (HEAD.encode(), "names no face"),
        (b"image,face\ncrowd.jpg,0\n", "has no perceived_skin, perceived_gender, perceived_age"),
        (b"\xff\xfe\x00", "cannot read the people"),
    ):
        if content is not None:
            file.write_bytes(content)
        assert main(["groups", str(labeled_crowd)]) == 1
        assert message in capsys.readouterr().err


def test_people_who_are_all_too_small_make_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"image": "a.jpg", "width": 100, "height": 80, "faces": [[10, 10, 19, 19, 0]]}
    (tmp_path / "faces.jsonl").write_text(json.dumps(record), "utf-8")
    (tmp_path / "found.jsonl").write_text(json.dumps({"image": "a.jpg", "faces": []}), "utf-8")
    people_in(tmp_path, "a.jpg,0,I,Male,Adult")
    found = ["--found", str(tmp_path / "found.jsonl"), "--min-score", "0.5"]
    assert main(["groups", str(tmp_path), *found]) == 1
    assert "no face of 20 px" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (None, "cannot read the detections"),
        ("{", "cannot read the detections"),
        ("[]", "cannot read the detections"),
        ('{"faces": []}', "cannot read the detections"),
        ('{"image": "crowd.jpg", "faces": [{"box": [1, 2, 3, 4]}]}', "cannot read the detections"),
        ('{"image": "crowd.jpg", "faces": [{"box": [1, 2], "score": 1}]}', "cannot read the detections"),
        ('{"source": "crowd.jpg", "faces": [], "error": "is damaged"}', "crowd.jpg: is damaged"),
        ('{"image": "other.jpg", "faces": []}', "no line for crowd.jpg"),
        ('{"image": "crowd.jpg", "faces": []}\n{"image": "b/crowd.jpg", "faces": []}', "same name"),
    ],
)
def test_detections_that_do_not_fit_are_refused(
    labeled_crowd: Path, capsys: pytest.CaptureFixture[str], lines: str | None, message: str
) -> None:
    crowd_people(labeled_crowd)
    file = labeled_crowd / "found.jsonl"
    if lines is not None:
        file.write_text(lines, "utf-8")
    assert main(["groups", str(labeled_crowd), "--found", str(file), "--min-score", "0.5"]) == 1
    assert message in capsys.readouterr().err


def test_scores_that_make_no_sense_are_refused(labeled_crowd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crowd_people(labeled_crowd)
    (labeled_crowd / "found.jsonl").write_text('{"image": "crowd.jpg", "faces": []}', "utf-8")
    for options, message in (
        (["--found", str(labeled_crowd / "found.jsonl")], "needs --min-score"),
        (["--min-score", "1.5"], "from 0 to 1"),
        (["--min-score", "nan"], "from 0 to 1"),
    ):
        assert main(["groups", str(labeled_crowd), *options]) == 1
        assert message in capsys.readouterr().err


def test_what_detect_writes_gives_the_same_shares(labeled_crowd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crowd_people(labeled_crowd)
    file = labeled_crowd / "found.jsonl"
    command = ["detect", str(labeled_crowd / "crowd.jpg"), "--mode", "fast", "--json", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 0
    shares = []
    for options in (["--mode", "fast"], ["--found", str(file), "--min-score", "0"]):
        assert main(["groups", str(labeled_crowd), *options]) == 0
        shares.append(cells(capsys.readouterr().out))
    assert shares[0] == shares[1]
