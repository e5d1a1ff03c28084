"""``kill -9`` at any moment: nothing partial, nothing unhidden but the originals, and the next run completes."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults.kills import Case, kill_once, make_films, make_photos, references, wrong_after_kill

FILM_SEEDS = (1, 2, 6)
SEEDS = (0, 2, 6, 8, 11)  # both ways to kill, in place and not, with drafts in scratch


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("kill") / "photos")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_films(tmp_path_factory.mktemp("kill") / "films")


@pytest.fixture
def case(photos: Path, tmp_path: Path) -> Iterator[Case]:
    """Yield a case as a kill at the end would leave it: two results, one draft that has only begun."""
    case = Case(photos, tmp_path / "out", dict(references(photos)))
    for name in list(case.expected)[:2]:
        (case.out / name).parent.mkdir(parents=True, exist_ok=True)
        (case.out / name).write_bytes(case.expected[name])
    draft(case, case.expected[Path("01.png")][:1000])
    assert list(wrong_after_kill(case, case.originals)) == []
    yield case
    assert len(list(wrong_after_kill(case, case.originals))) == 1


def draft(case: Case, data: bytes, mode: int = 0o600) -> None:
    folder = case.out / ".blurguard" / "scratch" / "0123456789abcdef"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o700)
    (folder / "draft").write_bytes(data)
    (folder / "draft").chmod(mode)


@pytest.mark.parametrize("seed", SEEDS)
def test_closed_whatever_moment_a_batch_is_killed_at(seed: int, photos: Path, tmp_path: Path) -> None:
    result = kill_once(seed, photos, tmp_path / "work")
    assert result.faults == (), result
    assert result.photos == 12


@pytest.mark.parametrize("seed", FILM_SEEDS)
def test_closed_whatever_moment_videos_are_killed_at(seed: int, films: Path, tmp_path: Path) -> None:
    result = kill_once(seed, films, tmp_path / "work")
    assert result.faults == (), result
    assert result.photos == 4


def test_a_part_of_the_source_video_in_scratch_would_be_seen(films: Path, tmp_path: Path) -> None:
    case = Case(films, tmp_path / "out", dict(references(films)))
    draft(case, (films / "00.mp4").read_bytes())
    assert len(list(wrong_after_kill(case, case.originals))) == 1


def test_a_partial_result_would_be_seen(case: Case) -> None:
    name = Path("02.webp")
    (case.out / name).write_bytes(case.expected[name][:-1])


def test_an_original_among_the_results_would_be_seen(case: Case) -> None:
    shutil.copy(case.photos / "02.webp", case.out / "02.webp")


def test_an_original_in_scratch_would_be_seen(case: Case) -> None:
    draft(case, (case.photos / "01.png").read_bytes())


def test_a_draft_that_others_may_read_would_be_seen(case: Case) -> None:
    draft(case, case.expected[Path("01.png")][:1000], mode=0o644)


def test_scratch_that_others_may_enter_would_be_seen(case: Case) -> None:
    (case.out / ".blurguard" / "scratch").chmod(0o755)


def test_anything_else_left_behind_would_be_seen(case: Case) -> None:
    (case.out / "00.jpg.tmp").write_bytes(b"")
