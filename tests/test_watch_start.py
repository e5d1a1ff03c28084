"""What a drop folder's daemon refuses at its start, with which exit code and message; and what it only tells."""

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from bench.faults.commands import blurguard, put
from tests.commands import face, lines, shows_face, small_disk, snapshot
from tests.drop import Drop

NOT_ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a folder with an inbox, in which one picture lies, and links to all kinds of folders."""
    put(tmp_path / "in" / "below" / "a.jpg", face())
    (tmp_path / "other").mkdir()
    (tmp_path / "to_in").symlink_to("in")
    (tmp_path / "to_other").symlink_to("other")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "other" / "to_in").symlink_to("../in")
    return tmp_path


def refused(here: Path, *arguments: object, code: int = 3, told: str, env: dict[str, str] | None = None) -> str:
    """Check that a daemon ends at once, says why on standard error, and has changed nothing; returns what it said."""
    before = snapshot(here)
    done = blurguard("watch", *arguments, code=code, cwd=here, env=env)
    said = " ".join(done.stderr.split())
    assert told in said, done.stderr
    assert snapshot(here) == before
    return said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("in in", "in: the inbox is also the outbox"),
        ("in in/out", "in/out: the outbox lies inside the inbox"),
        ("in/below in", "in/below: the inbox lies inside the outbox"),
        ("in to_in/out", "in/out: the outbox lies inside the inbox"),
        ("in to_in", "in: the inbox is also the outbox"),
        ("in other/to_in/below/out", "in/below/out: the outbox lies inside the inbox"),
        ("to_in/below in", "in/below: the inbox lies inside the outbox"),
        ("in out --failed in/failed", "in/failed: the failed folder lies inside the inbox"),
        ("in/below out --failed in", "in/below: the inbox lies inside the failed folder"),
        ("in out --failed out", "out: the outbox is also the failed folder"),
        ("in out --failed out/failed", "out/failed: the failed folder lies inside the outbox"),
        ("in other/out --failed to_other", "other/out: the outbox lies inside the failed folder"),
        ("in out --originals move --move-to in/done", "in/done: the originals folder lies inside the inbox"),
        ("in/below out --originals move --move-to in", "in/below: the inbox lies inside the originals"),
        ("in out --originals move --move-to out", "out: the outbox is also the originals"),
        ("in out --originals move --move-to to_in/done", "in/done: the originals folder lies inside the inbox"),
        (
            "in out --originals move --move-to bad/done --failed bad",
            "bad/done: the originals folder lies inside the failed",
        ),
        ("in out --originals move --move-to bad --failed bad", "bad: the failed folder is also the originals"),
        ("in circle", "circle: cannot be resolved"),
    ],
)
def test_folders_that_are_not_apart_are_refused(here: Path, arguments: str, told: str) -> None:
    said = refused(here, *arguments.split(), told=told)
    assert "choose a" in said or "name another" in said


def test_a_mount_of_the_inbox_under_another_name_is_no_way_round(here: Path) -> None:
    (here / "mounted").mkdir()
    mount = ["mount", "--bind", str(here / "in"), str(here / "mounted")]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount")
    try:
        refused(here, "in", "mounted", told="the inbox lies inside the outbox")
        refused(here, "in", "mounted/out", told="mounted/out: the outbox lies inside the inbox")
    finally:
        subprocess.run(["umount", str(here / "mounted")], check=True)


@pytest.mark.parametrize(
    ("inbox", "told"),
    [
        ("to_in", "to_in: is a link, which may be redirected; name the folder it points to"),
        ("missing", "missing: the inbox does not exist; create it first"),
        ("in/below/a.jpg", "a.jpg: is not a folder; name the folder for new originals"),
    ],
)
def test_an_inbox_that_is_none_is_refused(here: Path, inbox: str, told: str) -> None:
    refused(here, inbox, "out", told=told)


def test_an_outbox_that_is_a_file_is_refused(here: Path) -> None:
    put(here / "file", b"")
    refused(here, "in", "file", told="file: is not a folder; remove it or name another one")


@pytest.mark.parametrize("role", ["in", "out", "failed", "done"])
def test_a_folder_that_everybody_can_write_to_is_refused(here: Path, role: str) -> None:
    (here / role).mkdir(exist_ok=True)
    (here / role).chmod(0o1777)
    options = ("--failed", "failed", "--originals", "move", "--move-to", "done")
    refused(here, "in", "out", *options, told=f"{role}: every user can write to it; run chmod o-w on it")


def test_folders_of_everybody_are_used_when_that_is_allowed(tmp_path: Path) -> None:
    with Drop(tmp_path, "--allow-shared") as drop:
        drop.settle()
    for folder in (drop.inbox, drop.outbox):
        folder.chmod(0o777)
    with Drop(tmp_path, "--allow-shared") as drop:
        put(drop.inbox / "a.jpg", face())
        drop.until((drop.outbox / "a.jpg").exists)
    assert not shows_face(drop.outbox / "a.jpg")


def test_a_folder_of_everybody_above_is_nobodys_concern(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with Drop(tmp_path) as drop:
        put(drop.inbox / "a.jpg", face())
        drop.until((drop.outbox / "a.jpg").exists)


@pytest.mark.parametrize(
    ("options", "env", "code", "told"),
    [
        ("--model nobody", {}, 4, "nobody"),
        ("", {"BLURGUARD_MODEL": "nobody"}, 4, "nobody"),
        ("--config bad.toml", {}, 3, "bad.toml: [watch]: settle must lie between 0 and 3600, not -1"),
        ("--config unknown.toml", {}, 3, "unknown.toml: [watch]: unknown setting setle"),
        ("--config none.toml", {}, 3, "none.toml: cannot read the settings"),
        ("--config once.toml", {}, 3, "give --retry-failed on the command line"),
        ("", {"BLURGUARD_WATCH_GRACE": "soon"}, 3, "BLURGUARD_WATCH_*): grace must be of type float, not 'soon'"),
        ("--settle -1", {}, 2, "settle must lie between 0 and 3600"),
        ("--jobs 0", {}, 2, "jobs must lie between 1 and 256"),
        ("--no-such-option", {}, 2, "No such option"),
        ("--dry-run", {}, 2, "No such option"),
        ("--originals burn", {}, 2, "'burn' is not one of"),
        ("--originals move", {}, 3, "originals is move, but move_to names no folder"),
        ("--move-to done", {}, 3, "set originals to move, or remove move_to"),
    ],
)
def test_bad_settings_are_refused(here: Path, options: str, env: dict[str, str], code: int, told: str) -> None:
    put(here / "bad.toml", b"[watch]\nsettle = -1\n")
    put(here / "unknown.toml", b"[watch]\nsetle = 1\n")
    put(here / "once.toml", b"[watch]\nretry_failed = true\n")
    before = sorted(here.rglob("*"))
    done = blurguard("watch", "in", "out", *options.split(), code=code, cwd=here, env=env)
    # Click draws a frame round what it refuses, and breaks lines in it.
    assert told.replace(" ", "") in "".join(done.stderr.replace("│", "").split()), done.stderr
    left = {path for path in here.rglob("*") if path not in before}
    assert all(path == here / "out" or ".blurguard" in path.parts for path in left)  # no result, nothing elsewhere


def test_a_missing_argument_is_a_matter_of_usage(here: Path) -> None:
    refused(here, "in", code=2, told="Missing argument 'outbox'")


def test_a_second_daemon_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with Drop(tmp_path) as drop:
        drop.settle()
        for inbox in (drop.inbox, tmp_path / "other"):
            done = blurguard("watch", inbox, drop.outbox, code=6)
            assert f"{drop.outbox}: another blurguard is working in this folder; wait for it" in done.stderr
        status = json.loads(blurguard("status", drop.outbox, "--json", "--check").stdout)
        assert (status["state"], status["healthy"]) == ("running", True)
        put(drop.inbox / "a.jpg", face())
        drop.until((drop.outbox / "a.jpg").exists)


def test_no_batch_works_in_the_outbox_of_a_living_daemon(tmp_path: Path) -> None:
    photos = put(tmp_path / "photos" / "b.jpg", face()).parent
    with Drop(tmp_path) as drop:
        put(drop.inbox / "a.jpg", face())
        drop.until((drop.outbox / "a.jpg").exists)
        result = (drop.outbox / "a.jpg").read_bytes()
        done = blurguard("dir", photos, "--out", drop.outbox, "--overwrite", code=6)
        assert "another blurguard is working in this folder" in done.stderr
        assert not (drop.outbox / "b.jpg").exists()
        put(drop.inbox / "c.jpg", face(turn=1))
        drop.until((drop.outbox / "c.jpg").exists)
        assert (drop.outbox / "a.jpg").read_bytes() == result


def test_a_daemon_that_cannot_tell_how_it_is_says_so_and_works(tmp_path: Path) -> None:
    health, metrics = tmp_path / "none" / "health.json", tmp_path / "none" / "blurguard.prom"
    with Drop(tmp_path, "--health", str(health), "--metrics", str(metrics)) as drop:
        put(drop.inbox / "a.jpg", face())
        drop.until((drop.outbox / "a.jpg").exists)
        drop.until(lambda: any(f"{health}: cannot be kept up to date" in note for note in drop.notes()))
        blurguard("status", drop.outbox, "--check", "--health", health, code=1)
        health.parent.mkdir()
        drop.until(lambda: health.exists() and metrics.exists())
        blurguard("status", drop.outbox, "--check", "--health", health)
    assert sum("cannot be kept up to date" in note for note in drop.notes()) == 1


def test_an_outbox_on_a_disk_that_is_read_only_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.jpg", face())
    with small_disk(tmp_path / "disk", "size=4m,mode=755") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for outbox in (disk, disk / "out"):
            done = blurguard("watch", tmp_path / "in", outbox, code=6)
            assert f"{disk}" in done.stderr and "the file system is read-only" in done.stderr
        assert list(disk.iterdir()) == []


@NOT_ROOT
def test_an_outbox_that_is_not_ours_to_write_to_is_refused(here: Path) -> None:
    (here / "out").mkdir(mode=0o500)
    refused(here, "in", "out", code=6, told="Permission denied")


@pytest.fixture(scope="module")
def done_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a place where a daemon has done a picture and stopped; not to be changed."""
    place = tmp_path_factory.mktemp("done")
    with Drop(place) as drop:
        put(drop.inbox / "a.jpg", face())
        drop.until((drop.outbox / "a.jpg").exists)
    return place


def journal_of(place: Path) -> Path:
    return place / "outbox" / ".blurguard" / "journal.sqlite"


@pytest.fixture
def stopped(done_once: Path, tmp_path: Path) -> Path:
    """Return a copy of that place."""
    return shutil.copytree(done_once, tmp_path / "place")


@pytest.mark.parametrize(
    "harm", [b"This is no record of anything at all. " * 200, b"SQLite format 3\0" + b"\xff" * 4000]
)
def test_a_damaged_record_is_refused_and_nothing_is_touched(stopped: Path, harm: bytes) -> None:
    result = (stopped / "outbox" / "a.jpg").read_bytes()
    journal_of(stopped).write_bytes(harm)
    done = blurguard("watch", "inbox", "outbox", code=6, cwd=stopped)
    assert "remove it to start afresh" in done.stderr and "journal.sqlite" in done.stderr
    assert journal_of(stopped).read_bytes() == harm
    assert (stopped / "outbox" / "a.jpg").read_bytes() == result
    blurguard("status", "outbox", code=6, cwd=stopped)


def test_a_record_of_a_later_version_is_refused(stopped: Path) -> None:
    with sqlite3.connect(journal_of(stopped)) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    refused(stopped, "inbox", "outbox", code=6, told="written by another version of blurguard (schema 99)")
    blurguard("status", "outbox", code=6, cwd=stopped)


def test_a_truncated_record_is_refused_or_made_afresh_but_never_costs_a_result(stopped: Path) -> None:
    result = (stopped / "outbox" / "a.jpg").read_bytes()
    os.truncate(journal_of(stopped), 5000)
    done = blurguard("watch", "inbox", "outbox", code=6, cwd=stopped)
    assert "remove it to start afresh" in done.stderr
    assert (stopped / "outbox" / "a.jpg").read_bytes() == result


def test_a_settings_file_that_a_variable_names_counts(here: Path) -> None:
    put(here / "bad.toml", b"[watch]\nrescan = 0\n")
    refused(here, "in", "out", told="rescan must lie between", env={"BLURGUARD_CONFIG": "bad.toml"})


def test_the_refusal_is_a_line_of_json_when_those_are_asked_for(here: Path) -> None:
    done = blurguard("watch", "in", "in/out", "--log-json", code=3, cwd=here)
    (line,) = lines(done.stderr)
    assert (line["event"], "lies inside the inbox" in line["text"]) == ("error", True)
    assert done.stdout == ""
