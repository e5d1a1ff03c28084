"""``kill -9`` of the drop folder's daemon, again and again: each file comes out once, and bare faces never do."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from bench.faults.commands import put
from bench.faults.drop_kills import kill_again, wrong_at_rest
from bench.faults.dropping import Dropper, Plan, Yard
from bench.faults.inspector import Lookout
from bench.faults.kills import make_photos
from blurguard.batch.journal import FileRecord, FileState, open_journal
from blurguard.files.atomic import digest_bytes
from blurguard.files.stamp import FileStamp

# Every policy, with and without a folder for failures; the first two have a consumer.
SEEDS = (0, 1, 5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("watch") / "photos", 6)


@pytest.mark.parametrize("seed", SEEDS)
def test_closed_however_often_the_daemon_is_killed(seed: int, photos: Path, tmp_path: Path) -> None:
    result = kill_again(Plan(seed), photos, tmp_path / "work")
    assert result.faults == (), result
    assert (result.results, result.looks > result.plan.photos) == (58, True)


def test_seeds_try_every_policy_and_a_consumer() -> None:
    plans = [Plan(seed) for seed in SEEDS]
    assert {plan.policy for plan in plans} == {"keep", "move", "delete"}
    assert {plan.consumer for plan in plans} == {plan.has_failed for plan in plans} == {False, True}


@pytest.fixture(params=SEEDS, ids=lambda seed: f"{Plan(seed).policy}-{seed}")
def yard(request: pytest.FixtureRequest, photos: Path, tmp_path: Path) -> Yard:
    """Return a yard as a perfect daemon would leave it, had anybody looked at all times."""
    yard = Yard.of(Plan(request.param, photos=8, standing=True), photos, tmp_path / "work")
    Dropper(yard, Event()).run()
    return yard


@pytest.fixture
def lookout(yard: Yard) -> Iterator[Lookout]:
    """Yield the lookout of a day on which all went well until now; the test must spoil it."""
    lookout = Lookout(yard)
    for name, data in yard.expected.items():
        put(yard.outbox / name, data)
    lookout.look()
    for name in yard.originals:
        put_away(yard, name)
    with open_journal(yard.outbox) as journal:
        for name, data in yard.originals.items():
            size, mtime = lookout.stamps.get(name, (-1, -1))
            result = digest_bytes(yard.expected[name]) if name in yard.expected else ""
            state = FileState.DONE if result else FileState.FAILED
            journal.put(name, FileRecord(state, FileStamp(), digest_bytes(data), "", size, mtime, result, error="x"))
    lookout.look()
    assert [*lookout.faults, *wrong_at_rest(yard, lookout)] == []
    yield lookout
    lookout.look()
    assert [*lookout.faults, *wrong_at_rest(yard, lookout)] != []


def put_away(yard: Yard, name: Path) -> None:
    """Do with an original what a daemon does in the end."""
    if name not in yard.expected:
        note = yard.note_on(name)
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in note.parent.relative_to(yard.work).parents:
            (yard.work / folder).chmod(0o700)
        record = {"name_bytes": os.fsencode(name).hex(), "reason": "damaged", "size": len(yard.originals[name])}
        note.write_text(json.dumps(record), "utf-8")
    if yard.goes(name):
        folder = yard.moved if name in yard.expected else yard.failed
        put(folder / name, yard.originals[name])
        (yard.inbox / name).unlink()
        if folder == yard.moved and yard.plan.policy == "delete":
            (folder / name).unlink()


def good(yard: Yard) -> Path:
    return next(iter(yard.expected))


def draft(yard: Yard, data: bytes, mode: int = 0o600) -> Path:
    path = put(yard.outbox / ".blurguard" / "scratch" / "0123456789abcdef" / "draft", data)
    path.chmod(mode)
    for folder in path.parents[:2]:
        folder.chmod(0o700)
    return path


def told(lookout: Lookout) -> str:
    lookout.look()
    return "\n".join(lookout.faults)


def test_a_partial_result_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    put(yard.outbox / good(yard), yard.expected[good(yard)][:-1])
    assert "neither whole and hidden nor absent" in told(lookout)


def test_an_original_among_the_results_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    put(yard.outbox / good(yard), yard.originals[good(yard)])
    assert "neither whole and hidden nor absent" in told(lookout)


def test_a_result_that_comes_out_again_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    again = put(yard.work / "again", yard.expected[good(yard)])
    again.replace(yard.outbox / good(yard))
    lookout.look()
    assert lookout.out[good(yard)] == 2


def test_anything_else_in_the_outbox_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    put(yard.outbox / "a" / "draft.tmp", b"")
    assert "neither whole and hidden nor absent" in told(lookout)


def test_an_original_in_scratch_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    path = draft(yard, yard.originals[good(yard)])
    assert "is not of a hidden picture" in told(lookout)
    path.unlink()


def test_the_beginning_of_a_result_in_scratch_must_be_private(yard: Yard, lookout: Lookout) -> None:
    path = draft(yard, yard.expected[good(yard)][:100])
    assert told(lookout) == ""
    path.chmod(0o644)
    assert "others may read it" in told(lookout)


def test_scratch_that_stays_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    shutil.rmtree(draft(yard, b"").parent)
    assert "the daemon left scratch behind" in list(wrong_at_rest(yard, lookout))


def test_a_note_that_is_missing_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    yard.note_on(yard.damaged[0]).unlink()
    assert any("has no note" in fault for fault in wrong_at_rest(yard, lookout))


def test_a_journal_that_tells_something_else_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    with open_journal(yard.outbox) as journal:
        journal.mark([good(yard)], FileState.WORKING)
    assert any("journal: is working, not done" in fault for fault in wrong_at_rest(yard, lookout))


def test_an_original_that_is_changed_would_be_seen(yard: Yard, lookout: Lookout) -> None:
    folder = yard.failed if yard.plan.has_failed else yard.inbox
    put(folder / yard.damaged[0], b"")
    assert any("an original is not as it must be" in fault for fault in wrong_at_rest(yard, lookout))


def test_an_original_that_goes_before_its_result_is_there_would_be_seen(yard: Yard) -> None:
    lookout = Lookout(yard)
    lookout.look()
    assert lookout.faults == {}
    (yard.inbox / good(yard)).unlink()
    assert "an original was gone before it might" in told(lookout)


@pytest.mark.parametrize("way", range(5))
def test_every_way_of_dropping_brings_the_file_in_whole(way: int, yard: Yard) -> None:
    dropper = Dropper(yard, Event())
    target = yard.inbox / "dropped"
    dropper.ways[way](target, b"content")
    assert target.read_bytes() == b"content"
    assert not target.with_name("dropped.part").exists()
