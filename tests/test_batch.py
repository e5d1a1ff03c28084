"""Many files: one that goes wrong costs nobody else, and the record knows whose a file is."""

import functools
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.faults.commands import put
from blurguard.batch.discovery import folder_beside, targets_for
from blurguard.batch.journal import FileRecord, FileState, open_journal
from blurguard.batch.output_tree import FolderTask
from blurguard.batch.runner import anonymize_files, anonymize_folder, detect_files
from blurguard.batch.workers import Factory, WorkerConfig
from blurguard.errors import ConfigError, OutputError
from blurguard.types import Outcome, Status
from tests.commands import names, pixels
from tests.workers import TROUBLE, dying, editing, raising, steady

WORKERS = pytest.mark.parametrize("workers", [1, 2])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of six pictures; the third is the one that some detectors cannot bear."""
    for index in range(6):
        red = TROUBLE if index == 2 else 100 + index
        path = tmp_path / "photos" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (red, 120, 150)).save(path)
    return tmp_path / "photos"


def run(photos: Path, factory: Factory = steady, workers: int = 1, **options: bool) -> list[Outcome]:
    task = FolderTask(photos, photos.with_name("out"), WorkerConfig(factory, workers), **options)
    return list(anonymize_folder(task, task.discover().media))


def hidden(path: Path) -> bool:
    return bool((pixels(path)[4:28, 4:28] == 0).all())


def statuses(outcomes: list[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def only_the_third_failed(photos: Path, outcomes: list[Outcome]) -> Outcome:
    assert statuses(outcomes) == ["done"] * 2 + ["failed"] + ["done"] * 3
    assert [outcome.source.name for outcome in outcomes] == [f"{index}.png" for index in range(6)]
    assert names(photos.with_name("out")) == [f"{index}.png" for index in (0, 1, 3, 4, 5)]
    assert not (photos.with_name("out") / ".blurguard" / "scratch").exists()
    return outcomes[2]


def test_a_worker_that_dies_costs_its_own_file(photos: Path) -> None:
    failed = only_the_third_failed(photos, run(photos, dying, workers=2))
    assert failed.exit_code == 1 and "died" in failed.reason


@WORKERS
def test_what_nobody_foresaw_costs_its_own_file_and_is_1(photos: Path, workers: int) -> None:
    failed = only_the_third_failed(photos, run(photos, raising, workers))
    assert (failed.exit_code, failed.error) == (1, "ZeroDivisionError")
    assert "2.png" in failed.reason and "nobody foresaw this" in failed.reason


@WORKERS
def test_a_source_that_vanishes_costs_its_own_file(photos: Path, workers: int) -> None:
    task = FolderTask(photos, photos.with_name("out"), WorkerConfig(steady, workers))
    files = task.discover().media
    (photos / "2.png").unlink()
    failed = only_the_third_failed(photos, list(anonymize_folder(task, files)))
    assert (failed.exit_code, failed.error) == (5, "InputError")


@WORKERS
def test_outcomes_come_in_order_and_while_the_rest_is_still_to_be_done(photos: Path, workers: int) -> None:
    handed_out: list[Path] = []

    files = sorted(photos.iterdir()) * 5

    def told() -> Iterator[Path]:
        for path in files:
            handed_out.append(path)
            yield path

    outcomes = detect_files(told(), WorkerConfig(steady, workers))
    first = next(outcomes)
    assert first.source == files[0] and len(handed_out) < 12
    assert [first.source, *(outcome.source for outcome in outcomes)] == files


@WORKERS
def test_a_batch_that_is_given_up_leaves_what_was_finished_and_no_scratch(photos: Path, workers: int) -> None:
    task = FolderTask(photos, photos.with_name("out"), WorkerConfig(steady, workers))
    outcomes = anonymize_folder(task, task.discover().media)
    assert next(outcomes).status is Status.DONE
    assert isinstance(outcomes, Generator)
    outcomes.close()
    assert names(task.out) == ["0.png"] and hidden(task.out / "0.png")
    assert not (task.out / ".blurguard" / "scratch").exists()


def left_by_a_kill(photos: Path, change: Callable[[FileRecord], FileRecord]) -> None:
    """Make the record of a first run what a kill before the new result's name would have left."""
    with open_journal(photos.with_name("out")) as journal:
        for path in photos.iterdir():
            entry = journal.get(Path(path.name))
            assert entry is not None
            journal.put(Path(path.name), change(entry))


def other_result(entry: FileRecord, recipe: str) -> FileRecord:
    """Return the entry of another result that never got its name; the earlier one is still there."""
    return replace(
        entry,
        state=FileState.PUBLISHING,
        config_digest=recipe,
        output_size=entry.output_size + 1,
        output_digest="of the new result",
        replaced_digest=entry.output_digest,
    )


def test_an_earlier_result_is_not_taken_for_the_new_one_that_a_kill_prevented(photos: Path) -> None:
    """It was hidden with other settings, or shows another picture: it is ours, but out of date."""
    pixelated = functools.partial(steady, "pixelate")
    assert statuses(run(photos, pixelated)) == ["done"] * 6
    left_by_a_kill(photos, functools.partial(other_result, recipe=steady().recipe))
    assert statuses(run(photos)) == ["done"] * 6
    assert all(hidden(photos.with_name("out") / path.name) for path in photos.iterdir())


def test_a_result_that_a_kill_left_unnamed_in_the_record_is_not_done_again(photos: Path) -> None:
    run(photos)
    left_by_a_kill(photos, lambda entry: replace(entry, state=FileState.PUBLISHING))
    assert statuses(run(photos)) == ["skipped"] * 6


def test_in_place_an_original_that_is_edited_meanwhile_keeps_the_edit(photos: Path) -> None:
    task = FolderTask(photos, photos, WorkerConfig(functools.partial(editing, photos / "2.png")))
    outcomes = list(anonymize_folder(task, task.discover().media))
    assert statuses(outcomes) == ["done"] * 2 + ["failed"] + ["done"] * 3
    assert "changed while it was processed" in outcomes[2].reason
    assert (photos / "2.png").read_bytes().endswith(b"edited")
    assert not hidden(photos / "2.png") and hidden(photos / "3.png")


def test_dry_runs_leave_no_record(photos: Path) -> None:
    assert statuses(run(photos, dry_run=True)) == ["skipped"] * 6
    assert not photos.with_name("out").exists()


def test_results_are_named_after_their_sources_and_never_one_of_them(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jpg", tmp_path / "sub" / "b.png"
    assert targets_for([a, b], None) == [(a, tmp_path / "a_blurred.jpg"), (b, tmp_path / "sub" / "b_blurred.png")]
    assert targets_for([a, b], tmp_path / "x.y") == [(a, tmp_path / "x.y" / "a.jpg"), (b, tmp_path / "x.y" / "b.png")]
    assert targets_for([a], tmp_path / "new") == [(a, tmp_path / "new" / "a.jpg")]
    assert targets_for([a], tmp_path / "new.JPEG") == [(a, tmp_path / "new.JPEG")]
    for files, out in (
        ([a], a),
        ([a], tmp_path),
        ([a], tmp_path / "a.png"),
        ([a, tmp_path / "sub" / "a.jpg"], tmp_path / "new"),
        ([a, tmp_path / "a_blurred.jpg"], None),
        ([a, b], put(tmp_path / "file.jpg", b"")),
    ):
        with pytest.raises(ConfigError):
            targets_for(files, out)


def test_the_folder_of_results_is_named_after_the_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folder_beside(Path("photos")) == Path("photos_blurred")
    assert folder_beside(Path("a.b/")) == Path("a.b_blurred")
    assert folder_beside(Path()) == tmp_path.with_name(f"{tmp_path.name}_blurred")
    assert folder_beside(Path("x/..")) == tmp_path.with_name(f"{tmp_path.name}_blurred")
    with pytest.raises(ConfigError):
        folder_beside(Path("/"))


def test_several_files_share_scratch_and_leave_none(photos: Path, tmp_path: Path) -> None:
    pairs = targets_for(sorted(photos.iterdir()), tmp_path / "out")
    put(tmp_path / "out" / "1.png", b"somebody's")
    outcomes = list(anonymize_files(pairs, WorkerConfig(steady, 2)))
    assert statuses(outcomes) == ["done", "failed", "done", "done", "done", "done"]
    assert outcomes[1].error == OutputError.__name__
    assert (tmp_path / "out" / "1.png").read_bytes() == b"somebody's"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{index}.png" for index in range(6)]
    assert np.array_equal(pixels(photos / "0.png")[40:], pixels(tmp_path / "out" / "0.png")[40:])
