"""Originals that failed are kept with a note each, and can be put back where they came from."""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.faults.commands import put
from blurguard import __version__
from blurguard.errors import InputError, OutputError, StorageError
from blurguard.files.atomic import digest_bytes, remove_stale_parts
from blurguard.files.stamp import FileStamp
from blurguard.types import Outcome, Status
from blurguard.watch.quarantine import REPORT_KEYS, Quarantine
from tests.commands import small_disk
from tests.test_originals import NAMES, files, kills, mode_of

OUTCOME = Outcome(
    Path("in/a.jpg"), Status.FAILED, reason="in/a.jpg: cut off; send it again", error="InputError", exit_code=5
)
CRAFTED = [
    "/etc/passwd", "../a.jpg", "x/../../a.jpg", "..", ".", "", "a\0.jpg", "link/a.jpg", "link/x/a.jpg",
    "round/a.jpg", "file/a.jpg", "\ud800.jpg", "x/" * 3000 + "a", "n" * 256, None, 5, ["a.jpg"],
]  # fmt: skip


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture(params=["same disk", "other disk"])
def bad(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return the folder for failed originals."""
    if request.param == "other disk":
        with small_disk(tmp_path / "bad", "size=8m,mode=700") as disk:
            yield disk
    else:
        (tmp_path / "bad").mkdir(mode=0o700)
        yield tmp_path / "bad"


@pytest.fixture
def failures(bad: Path, inbox: Path, tmp_path: Path) -> Quarantine:
    return Quarantine(bad, inbox, tmp_path / "out/.blurguard/failed")


@pytest.fixture
def staying(inbox: Path, tmp_path: Path) -> Quarantine:
    """Return failures whose originals stay where they are."""
    return Quarantine(None, inbox, tmp_path / "out/.blurguard/failed")


def fail(failures: Quarantine, original: Path, content: bytes = b"photo") -> None:
    """Have an original that fails; its path tells the inbox by the name ``in``."""
    put(original, content)
    name = Path(*original.parts[original.parts.index("in") + 1 :])
    failures.add(name, OUTCOME, FileStamp.of(original))


def note_at(path: Path) -> dict[str, Any]:
    assert mode_of(path) == 0o600
    note = json.loads(path.read_bytes().decode("utf-8"))
    assert isinstance(note, dict)
    return note


def test_a_note_tells_what_went_wrong_and_with_what(staying: Quarantine, inbox: Path, tmp_path: Path) -> None:
    begun = datetime.now(UTC).replace(microsecond=0)
    fail(staying, inbox / "sub" / "a.jpg")
    stamp = FileStamp.of(inbox / "sub/a.jpg")
    note = note_at(tmp_path / "out/.blurguard/failed/sub/a.jpg.json")
    assert begun <= datetime.fromisoformat(note.pop("time")) <= datetime.now(UTC)
    assert note == {
        "name": "sub/a.jpg",
        "error": "InputError",
        "reason": "in/a.jpg: cut off; send it again",
        "exit_code": 5,
        "size": 5,
        "mtime_ns": stamp.mtime_ns,
        "version": __version__,
    }


def test_without_a_folder_the_original_stays_and_its_note_is_private(
    staying: Quarantine, inbox: Path, tmp_path: Path
) -> None:
    fail(staying, inbox / "sub" / "a.jpg")
    assert files(inbox) == {"sub/a.jpg": b"photo"}
    notes = tmp_path / "out/.blurguard/failed"
    assert {mode_of(path) for path in (notes.parent, notes, notes / "sub")} == {0o700}
    assert list(files(notes)) == ["sub/a.jpg.json"]
    assert staying.put_back() == 0 and list(files(notes)) == ["sub/a.jpg.json"]


def test_forgetting_removes_the_note_and_what_it_leaves_empty(staying: Quarantine, inbox: Path, tmp_path: Path) -> None:
    notes = tmp_path / "out/.blurguard/failed"
    staying.forget(Path("never/there.jpg"))
    for name in ("x/y/a.jpg", "x/b.jpg", "n" * 255):
        fail(staying, inbox / name)
    staying.forget(Path("x/y/a.jpg"))
    assert not (notes / "x/y").exists() and (notes / "x/b.jpg.json").exists()
    staying.forget(Path("x/b.jpg"))
    staying.forget(Path("n" * 255))
    assert list(notes.iterdir()) == []


def test_forgetting_leaves_what_is_no_note(staying: Quarantine, tmp_path: Path) -> None:
    stranger = put(tmp_path / "out/.blurguard/failed/a.jpg.json", b'{"name": "a.jpg"}')
    staying.forget(Path("a.jpg"))
    assert stranger.exists()


def test_with_a_folder_the_original_moves_and_its_note_lies_beside_it(
    failures: Quarantine, inbox: Path, bad: Path, tmp_path: Path
) -> None:
    fail(failures, inbox / "sub" / "a.jpg")
    assert files(inbox) == {} and (bad / "sub/a.jpg").read_bytes() == b"photo"
    assert note_at(bad / "sub/a.jpg.json")["name"] == "sub/a.jpg"
    assert sorted(files(bad)) == ["sub/a.jpg", "sub/a.jpg.json"] and not (tmp_path / "out").exists()
    assert mode_of(bad / "sub") == 0o700


def test_the_same_name_with_other_content_keeps_both_with_a_note_each(
    failures: Quarantine, inbox: Path, bad: Path
) -> None:
    for content in (b"one", b"two", b"one"):
        fail(failures, inbox / "a.jpg", content)
    assert sorted(files(bad)) == ["a.jpg", "a.jpg.json", "a~2.jpg", "a~2.jpg.json"]
    assert note_at(bad / "a~2.jpg.json")["name"] == "a.jpg"


def test_an_original_that_changed_or_is_gone_is_left_alone_without_a_note(
    failures: Quarantine, inbox: Path, bad: Path
) -> None:
    path = put(inbox / "a.jpg", b"photo")
    stamp = FileStamp.of(path)
    path.write_bytes(b"newer")
    failures.add(Path("a.jpg"), OUTCOME, stamp)
    assert files(inbox) == {"a.jpg": b"newer"}
    path.unlink()
    failures.add(Path("a.jpg"), OUTCOME, stamp)
    path.symlink_to("b.jpg")
    failures.add(Path("a.jpg"), OUTCOME, FileStamp.of(put(inbox / "b.jpg", b"other")))
    assert path.is_symlink() and files(bad) == {}


@pytest.mark.usefixtures("old_system")
def test_an_original_that_changes_while_it_is_moved_gets_no_note(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer, real = put(tmp_path / "newer", b"newer"), os.link

    def link(old: Path, new: Path) -> None:
        newer.replace(inbox / "a.jpg")
        real(old, new)

    monkeypatch.setattr(os, "link", link)
    fail(Quarantine(tmp_path / "bad", inbox, tmp_path / "notes"), inbox / "a.jpg")
    assert files(inbox) == {"a.jpg": b"newer"} and files(tmp_path / "bad") == {}


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_is_noted_in_valid_json_and_put_back(failures: Quarantine, inbox: Path, bad: Path, name: str) -> None:
    fail(failures, inbox / "x" / name)
    notes = [path for path in (bad / "x").iterdir() if path.suffix == ".json"]
    assert len(notes) == 1 and files(inbox) == {}
    assert notes[0].name in (f"{name}.json", f"{digest_bytes(os.fsencode(name))}.json")
    note = note_at(notes[0])
    assert os.fsdecode(bytes.fromhex(note.get("name_bytes", note["name"].encode().hex()))) == f"x/{name}"
    assert failures.put_back() == 1
    assert files(inbox) == {f"x/{name}": b"photo"} and list(bad.iterdir()) == []


def test_a_reason_that_is_no_text_is_escaped(staying: Quarantine, inbox: Path, tmp_path: Path) -> None:
    put(inbox / "a.jpg", b"")
    reason = os.fsdecode(b"\xff.jpg: no\n") + "\ud800"
    staying.add(Path("a.jpg"), Outcome(Path("a"), Status.FAILED, reason=reason), FileStamp.of(inbox / "a.jpg"))
    assert note_at(tmp_path / "out/.blurguard/failed/a.jpg.json")["reason"] == "\\udcff.jpg: no\n\\ud800"


def test_originals_that_are_named_as_notes_are_never_taken_for_some(
    failures: Quarantine, inbox: Path, bad: Path
) -> None:
    crafted = json.dumps(dict.fromkeys(REPORT_KEYS, "") | {"name": "b.jpg"}).encode()
    for name, content in {"a.jpg.json": crafted, "a.jpg": b"photo", "b.JSON": b"{}", "n" * 250 + ".json": b"1"}.items():
        fail(failures, inbox / name, content)
    before = {"a.jpg.json": crafted, "a.jpg": b"photo", "b.JSON": b"{}", "n" * 250 + ".json": b"1"}
    assert files(bad)["a.jpg.json.original"] == crafted
    assert failures.put_back() == 4
    assert files(inbox) == before and files(bad) == {}


def test_a_file_that_lies_where_a_note_would_is_not_replaced(failures: Quarantine, inbox: Path, bad: Path) -> None:
    put(bad / "a.jpg.json", b"somebody's")
    (bad / "b.jpg.json").mkdir()
    fail(failures, inbox / "a.jpg")
    fail(failures, inbox / "b.jpg")
    assert (bad / "a.jpg.json").read_bytes() == b"somebody's"
    assert failures.put_back() == 2
    assert files(bad) == {"a.jpg.json": b"somebody's"} and sorted(files(inbox)) == ["a.jpg", "b.jpg"]


def test_where_no_note_can_be_written_the_original_stays(failures: Quarantine, inbox: Path, bad: Path) -> None:
    for name in ("a.jpg.json", digest_bytes(b"a.jpg") + ".json"):
        put(bad / name, b"somebody's")
    with pytest.raises(OutputError, match=r"a\.jpg: no free name for its error report; remove .*\.json"):
        fail(failures, inbox / "a.jpg")
    assert files(inbox) == {"a.jpg": b"photo"} and not (bad / "a.jpg").exists()


def test_a_note_with_a_link_in_its_place_does_not_write_through_it(
    staying: Quarantine, inbox: Path, tmp_path: Path
) -> None:
    put(inbox / "b.jpg", b"")
    fail(staying, inbox / "b.jpg")
    notes = tmp_path / "out/.blurguard/failed"
    (notes / "a.jpg.json").symlink_to(put(tmp_path / "precious", (notes / "b.jpg.json").read_bytes()))
    before = (tmp_path / "precious").read_bytes()
    fail(staying, inbox / "a.jpg")
    assert (tmp_path / "precious").read_bytes() == before and (notes / "a.jpg.json").is_symlink()


def test_putting_back_takes_only_what_has_a_note(failures: Quarantine, inbox: Path, bad: Path) -> None:
    for name in ("a.jpg", "x/b.jpg", "x/y/c.jpg"):
        fail(failures, inbox / name, name.encode())
    put(bad / "strange.jpg", b"whose?")
    put(bad / "strange.json", b"{}")
    assert failures.put_back() == 3
    assert files(inbox) == {"a.jpg": b"a.jpg", "x/b.jpg": b"x/b.jpg", "x/y/c.jpg": b"x/y/c.jpg"}
    assert sorted(path.name for path in bad.iterdir()) == ["strange.jpg", "strange.json"]
    assert failures.put_back() == 0


def test_putting_back_makes_missing_folders_and_never_replaces(failures: Quarantine, inbox: Path, bad: Path) -> None:
    for name in ("x/a.jpg", "b.jpg", "c.jpg", "d/e.jpg"):
        fail(failures, inbox / name)
    (inbox / "x").rmdir()
    (inbox / "d").rmdir()
    put(inbox / "b.jpg", b"newer")
    put(inbox / "c.jpg", b"photo")
    put(inbox / "d", b"a file by now")
    assert failures.put_back() == 2
    assert files(inbox) == {"x/a.jpg": b"photo", "b.jpg": b"newer", "c.jpg": b"photo", "d": b"a file by now"}
    assert sorted(files(bad)) == ["b.jpg", "b.jpg.json", "d/e.jpg", "d/e.jpg.json"]


def crafted_note(path: Path, **values: Any) -> None:
    put(path, json.dumps(dict.fromkeys(REPORT_KEYS, "") | values).encode())


@pytest.mark.parametrize("name", CRAFTED, ids=range(len(CRAFTED)))
@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_crafted_note_leads_nowhere(failures: Quarantine, inbox: Path, bad: Path, name: Any, as_bytes: bool) -> None:
    (inbox.parent / "elsewhere").mkdir()
    (inbox / "link").symlink_to(inbox.parent / "elsewhere")
    (inbox / "round").symlink_to("round")
    put(inbox / "file", b"")
    fail(failures, inbox / "good.jpg")
    put(bad / "a.jpg", b"photo")
    if as_bytes and isinstance(name, str):
        crafted_note(bad / "a.jpg.json", name="a.jpg", name_bytes=name.encode("utf-8", "surrogatepass").hex())
    else:
        crafted_note(bad / "a.jpg.json", name=name)
    before = {path for path in inbox.parent.rglob("*") if bad not in path.parents}
    assert failures.put_back() in ((1, 2) if as_bytes and name == "\ud800.jpg" else (1,))
    after = {path for path in inbox.parent.rglob("*") if bad not in path.parents}
    assert {path.name for path in after - before} <= {"good.jpg", os.fsdecode(b"\xed\xa0\x80.jpg")}


def test_a_name_below_very_many_folders_is_put_back(failures: Quarantine, bad: Path, inbox: Path) -> None:
    put(bad / "a.jpg", b"photo")
    crafted_note(bad / "a.jpg.json", name="x/" * 1200 + "a.jpg")
    assert failures.put_back() == 1 and not (bad / "a.jpg").exists()
    place = inbox / ("x/" * 1200 + "a.jpg")
    assert place.read_bytes() == b"photo"
    place.unlink()
    for folder in place.parents[:1200]:  # deeper than the clean-up after tests can go
        folder.rmdir()


@pytest.mark.parametrize("told", ["zz", 5, None, ["61"], "612"])
def test_bytes_that_are_none_lead_nowhere(failures: Quarantine, bad: Path, inbox: Path, told: Any) -> None:
    put(bad / "a.jpg", b"photo")
    crafted_note(bad / "a.jpg.json", name="/a.jpg", name_bytes=told)
    assert failures.put_back() == 0 and files(inbox) == {}


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"5", b"[" * 100_000, b"null", b'{"name": "a.jpg"}'])
def test_what_is_no_note_is_none(failures: Quarantine, bad: Path, inbox: Path, content: bytes) -> None:
    put(bad / "a.jpg", b"photo")
    put(bad / "a.jpg.json", content)
    assert failures.put_back() == 0
    assert files(bad) == {"a.jpg": b"photo", "a.jpg.json": content} and files(inbox) == {}


@given(
    parts=st.lists(
        st.binary(min_size=1, max_size=9).filter(lambda raw: not set(raw) & set(b"/\0") and raw not in (b".", b"..")),
        min_size=1,
        max_size=3,
    )
)
def test_every_name_comes_back(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    base = tmp_path_factory.mktemp("names")
    failures = Quarantine(base / "bad", base / "in", base / "notes")
    name = Path(os.fsdecode(b"/".join(parts)))
    original = put(base / "in" / name, b"photo")
    failures.add(name, OUTCOME, FileStamp.of(original))
    assert not original.exists()
    assert failures.put_back() == 1
    assert original.read_bytes() == b"photo" and list((base / "bad").iterdir()) == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.jpg", "x/../a.jpg", "."])
def test_names_that_lead_out_of_the_inbox_are_not_noted(failures: Quarantine, staying: Quarantine, name: str) -> None:
    for some in (failures, staying):
        with pytest.raises(InputError, match="leads out of the inbox"):
            some.add(Path(name), OUTCOME, FileStamp())


def test_a_note_left_without_its_original_goes_once_the_file_is_done(
    failures: Quarantine, inbox: Path, bad: Path
) -> None:
    fail(failures, inbox / "x" / "a.jpg")
    failures.forget(Path("x/a.jpg"))
    assert sorted(files(bad)) == ["x/a.jpg", "x/a.jpg.json"]
    (bad / "x/a.jpg").unlink()
    failures.forget(Path("x/a.jpg"))
    assert list(bad.iterdir()) == []


def test_a_full_disk_leaves_the_original_and_no_note(inbox: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "bad", "size=64k,mode=700") as disk:
        with pytest.raises(StorageError, match="the disk is full"):
            fail(Quarantine(disk, inbox, tmp_path / "notes"), inbox / "a.jpg", bytes(200_000))
        assert files(disk) == {} and list(files(inbox)) == ["a.jpg"]
        put(disk / "filler", b"")
        with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(StorageError, match=r"a\.jpg: its error report cannot be written: the disk is full"):
            fail(Quarantine(disk, inbox, tmp_path / "notes"), inbox / "a.jpg")
        assert list(files(disk)) == ["filler"] and files(inbox) == {"a.jpg": b"photo"}


def test_an_unforeseen_error_of_the_disk_is_told(inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"a\.jpg: its error report cannot be written: Input/output error"):
        fail(Quarantine(None, inbox, tmp_path / "notes"), inbox / "a.jpg")
    assert files(tmp_path / "notes") == {}


def test_whenever_it_is_killed_a_failed_original_has_a_note_or_is_still_there(
    failures: Quarantine, inbox: Path, bad: Path
) -> None:
    original = put(inbox / "x" / "a.jpg", b"photo")
    stamp = FileStamp.of(original)

    def work() -> None:
        failures.add(Path("x/a.jpg"), OUTCOME, stamp)

    for _ in kills(work):
        there = {name for name in files(bad) if not Path(name).name.startswith(".")}
        assert original.exists() or there == {"x/a.jpg", "x/a.jpg.json"}
        assert there in (set(), {"x/a.jpg.json"}, {"x/a.jpg", "x/a.jpg.json"})
        remove_stale_parts(bad)
        if original.exists():
            failures.add(Path("x/a.jpg"), OUTCOME, FileStamp.of(original))
        assert sorted(files(bad)) == ["x/a.jpg", "x/a.jpg.json"] and files(inbox) == {}
        assert failures.put_back() == 1
        stamp = FileStamp.of(original)


def test_whenever_it_is_killed_what_is_put_back_is_there_once(failures: Quarantine, inbox: Path, bad: Path) -> None:
    fail(failures, inbox / "x" / "a.jpg")
    for _ in kills(failures.put_back):
        assert b"photo" in [*files(bad).values(), *files(inbox).values()]
        assert {data for name, data in files(inbox).items() if not name.startswith("x/.blurguard-")} <= {b"photo"}
        remove_stale_parts(inbox)
        failures.put_back()
        assert files(inbox) == {"x/a.jpg": b"photo"} and "x/a.jpg" not in files(bad)
        original = inbox / "x" / "a.jpg"
        failures.add(Path("x/a.jpg"), OUTCOME, FileStamp.of(original))
        assert stat.S_ISREG((bad / "x/a.jpg").lstat().st_mode)
