"""``blurguard dir``: a folder becomes a tree of the same names, once, and originals stay as they are."""

import os
from pathlib import Path

import numpy as np
import pytest

from bench.faults.commands import blurguard, put
from tests.commands import blank, face, lines, names, pixels, shows_face, snapshot

ODD_NAMES = ("caf\udce9.jpg", "two\nlines.jpg", "[red]x[/].jpg", "-n.jpg", "sub.jpg/a.jpg")


def counts(report: Path) -> tuple[int, int, int]:
    """Return how many files were done, skipped and failed."""
    found = [line["status"] for line in lines(report)]
    return found.count("done"), found.count("skipped"), found.count("failed")


def run(photos: Path, *options: object, code: int = 0) -> tuple[int, int, int]:
    """Run over a folder, quietly and quickly; returns done, skipped, failed."""
    report = photos.parent / "report.jsonl"
    blurguard("dir", photos, "--report", report, "--mode", "fast", "--jobs", 1, "-q", *options, code=code)
    return counts(report)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two pictures, one of them with a face."""
    put(tmp_path / "photos" / "a.jpg", face())
    put(tmp_path / "photos" / "sub" / "b.png", blank(".png"))
    return tmp_path / "photos"


@pytest.fixture
def out(photos: Path) -> Path:
    """Return the folder of the results of a first run."""
    assert run(photos) == (2, 0, 0)
    return photos.with_name("photos_blurred")


def test_a_library_becomes_a_tree_of_the_same_names_and_is_left_as_it_was(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "photos_blurred"
    wanted = ["a.jpg", "sub/b.png", "sub/deeper/c.webp", "no suffix", "wrong.png", "UPPER.JPG", *ODD_NAMES]
    for name in wanted:
        suffix = Path(name).suffix.lower()
        put(photos / name, face(suffix if suffix in (".webp",) else ".jpg"))
    put(photos / "text.jpg", b"no picture, whatever its name says")
    left_alone = {
        ".hidden.jpg": "hidden", ".thumbnails/a.jpg": "hidden", "notes.txt": "not media", "empty": "not media",
     }  # fmt: skip
    for name in left_alone:
        put(photos / name, b"" if name == "empty" else b"text" if name.endswith("txt") else face())
    (photos / "link.jpg").symlink_to("a.jpg")
    (photos / "round").symlink_to(".")
    (photos / "dangling.jpg").symlink_to("nowhere")
    os.mkfifo(photos / "pipe.jpg")
    before = snapshot(photos)

    done = blurguard("dir", photos, "--mode", "fast", "--jobs", 2, code=7)
    assert "left alone: 2 hidden, 3 links, 2 not media, 1 special" in done.stdout
    assert "text.jpg" in done.stderr and len(done.stderr.splitlines()) == 1
    assert names(out) == sorted(wanted)
    assert [name for name in wanted if shows_face(out / name)] == []
    assert all(pixels(out / name).shape == pixels(photos / name).shape for name in wanted)
    assert snapshot(photos) == before
    assert sorted(path.name for path in (out / ".blurguard").iterdir()) == ["journal.lock", "journal.sqlite"]

    finished = snapshot(out)
    assert run(photos, code=7) == (0, len(wanted), 1)
    assert {path: told for path, told in snapshot(out).items() if ".blurguard" not in path.parts} == {
        path: told for path, told in finished.items() if ".blurguard" not in path.parts
    }


def test_what_was_done_is_skipped_until_something_changes(photos: Path, out: Path) -> None:
    assert run(photos) == (0, 2, 0)
    (photos / "a.jpg").touch()
    assert run(photos) == (0, 2, 0)  # the same content
    put(photos / "a.jpg", face(turn=9))
    put(photos / "new.jpg", face())
    assert run(photos) == (2, 1, 0)
    assert not shows_face(out / "a.jpg")
    beside_the_face = np.s_[:, 114:]
    change = pixels(out / "a.jpg")[beside_the_face].astype(int) - pixels(face(turn=9))[beside_the_face]
    assert np.abs(change).max() < 12  # JPEG
    (out / "a.jpg").unlink()
    assert run(photos) == (1, 2, 0)
    assert not shows_face(out / "a.jpg")


@pytest.mark.parametrize("option", [("--style", "solid"), ("--margin", "0.4"), ("--min-score", "0.3"), ("--boxes",)])
def test_other_settings_are_another_result(photos: Path, out: Path, option: tuple[str, ...]) -> None:
    assert run(photos, *option) == (2, 0, 0)
    assert run(photos, *option) == (0, 2, 0)


def test_settings_that_change_no_result_redo_nothing(photos: Path, out: Path) -> None:
    assert run(photos, "--jobs", 2, "--max-pixels", 1_000_000, "--verbose") == (0, 2, 0)


def test_a_picture_of_somebody_else_is_never_replaced_unasked(photos: Path) -> None:
    foreign = put(photos.with_name("photos_blurred") / "a.jpg", face(turn=9))
    before = snapshot(foreign.parent)
    assert run(photos, code=7) == (1, 0, 1)
    assert before.items() <= snapshot(foreign.parent).items()
    assert run(photos, "--overwrite") == (1, 1, 0)
    assert not shows_face(foreign)


def test_a_result_that_was_edited_is_never_replaced_unasked(photos: Path, out: Path) -> None:
    put(out / "a.jpg", blank())
    assert run(photos, code=7) == (0, 1, 1)
    assert (out / "a.jpg").read_bytes() == blank()
    put(photos / "a.jpg", face(turn=9))
    assert run(photos, code=7) == (0, 1, 1)
    assert run(photos, "--overwrite") == (1, 1, 0)
    assert run(photos) == (0, 2, 0)


def test_a_link_in_place_of_a_result_is_not_followed(photos: Path, out: Path) -> None:
    (out / "a.jpg").unlink()
    (out / "a.jpg").symlink_to(photos / "a.jpg")
    assert run(photos, code=7) == (0, 1, 1)
    assert run(photos, "--overwrite") == (1, 1, 0)
    assert not (out / "a.jpg").is_symlink() and (photos / "a.jpg").read_bytes() == face()


def test_a_failure_is_tried_again(photos: Path, out: Path) -> None:
    put(photos / "c.jpg", face()[:-500])
    assert run(photos, code=7) == run(photos, code=7) == (0, 2, 1)
    put(photos / "c.jpg", face())
    assert run(photos) == (1, 2, 0)
    put(photos / "c.jpg", face()[:-500])
    assert run(photos, code=7) == (0, 2, 1)
    assert not shows_face(out / "c.jpg")  # the earlier result stays
    put(photos / "c.jpg", face())
    assert run(photos) == (1, 2, 0)


def test_in_place_replaces_originals_once(photos: Path) -> None:
    (photos / "a.jpg").chmod(0o640)
    assert run(photos, "--in-place") == (2, 0, 0)
    assert not shows_face(photos / "a.jpg")
    assert (photos / "a.jpg").stat().st_mode & 0o777 == 0o640
    finished = snapshot(photos / "sub")
    assert run(photos, "--in-place") == (0, 2, 0)
    put(photos / "a.jpg", face(turn=9))
    put(photos / "new.jpg", face())
    assert run(photos, "--in-place") == (2, 1, 0)
    assert not shows_face(photos / "a.jpg") and not shows_face(photos / "new.jpg")
    assert snapshot(photos / "sub") == finished
    assert not photos.with_name("photos_blurred").exists()


def test_a_folder_once_done_in_place_still_holds_originals(photos: Path) -> None:
    assert run(photos / "sub", "--in-place") == (1, 0, 0)
    put(photos / "sub" / "new.jpg", face())
    assert run(photos) == (3, 0, 0)
    assert not shows_face(photos.with_name("photos_blurred") / "sub" / "new.jpg")


def test_in_place_keeps_an_original_that_cannot_be_read(photos: Path) -> None:
    put(photos / "c.jpg", face()[:-500])
    assert run(photos, "--in-place", code=7) == (2, 0, 1)
    assert (photos / "c.jpg").read_bytes() == face()[:-500]


def test_a_dry_run_finds_and_writes_nothing(photos: Path) -> None:
    before = snapshot(photos.parent)
    done = blurguard("dir", photos, "--dry-run", "--jobs", 2, "--min-score", 0.5)
    assert "1 face" in done.stdout and "dry run" in done.stdout
    assert "dry run" in blurguard("dir", photos, "-n", "--in-place", "--jobs", 1).stdout
    assert snapshot(photos.parent) == before


def test_the_folder_itself_may_be_called_anything(tmp_path: Path) -> None:
    put(tmp_path / "a.b" / "a.jpg", face())
    (tmp_path / "link").symlink_to("a.b")
    for argument, cwd in (("a.b/", tmp_path), (".", tmp_path / "a.b"), ("../link", tmp_path / "a.b")):
        blurguard("dir", argument, "--mode", "fast", "--jobs", 1, cwd=cwd)
    assert names(tmp_path / "a.b_blurred") == names(tmp_path / "link_blurred") == ["a.jpg"]
    assert names(tmp_path / "a.b") == ["a.jpg"]


def test_results_may_lie_among_the_originals_and_are_not_taken_for_them(photos: Path) -> None:
    assert run(photos, "--out", photos / "hidden faces") == (2, 0, 0)
    assert run(photos, "--out", photos / "hidden faces") == (0, 2, 0)
    assert run(photos) == (2, 0, 0)


def test_a_link_in_the_output_never_leads_to_an_original(photos: Path, out: Path) -> None:
    before = snapshot(photos)
    (out / "sub" / "b.png").unlink()
    (out / "sub").rmdir()
    (out / "sub").symlink_to(photos / "sub")
    assert run(photos, "--overwrite", code=7) == (0, 1, 1)
    assert snapshot(photos) == before


def test_results_of_another_folder_are_not_replaced(photos: Path, out: Path) -> None:
    other = photos.with_name("other")
    put(other / "a.jpg", face(turn=9))
    finished = (out / "a.jpg").read_bytes()
    for _ in range(2):  # not even the second time
        assert run(other, "--out", out, code=7) == (0, 0, 1)
    assert (out / "a.jpg").read_bytes() == finished
    assert run(photos) == (0, 2, 0)
    assert run(other, "--out", out, "--overwrite") == (1, 0, 0)


def test_a_report_of_nothing_is_empty_and_tells_the_threshold_otherwise(photos: Path, tmp_path: Path) -> None:
    assert run(photos) == (2, 0, 0)
    report = lines(tmp_path / "report.jsonl")
    assert all(isinstance(line["settings"]["min_score"], float) for line in report)
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == (0, 0, 0)
