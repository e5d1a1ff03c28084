"""Videos on the command line: beside photos, with the same options, promises and report."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image

from bench.faults.commands import blurguard, environment, put
from tests.commands import face, lines, names, shows_face, small_disk, snapshot
from tests.conftest import ROOT
from tests.films import FACE_FILM_FRAMES, FACE_FILM_SIDE, write_face_film

FRAMES, SIDE = FACE_FILM_FRAMES, FACE_FILM_SIDE


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_face_film(tmp_path_factory.mktemp("film") / "film.mp4").read_bytes()


@pytest.fixture
def mixed(tmp_path: Path, film: bytes) -> Path:
    """Return a folder with photos and videos, one of them cut off."""
    put(tmp_path / "mixed" / "a.jpg", face())
    put(tmp_path / "mixed" / "b.mp4", film)
    put(tmp_path / "mixed" / "below" / "c.mp4", film)
    return tmp_path / "mixed"


def tracks(path: Path) -> list[str]:
    with av.open(str(path)) as source:
        return [stream.type for stream in source.streams]


def film_shows_face(path: Path, folder: Path) -> bool:
    """Tell whether the face is there in any frame."""
    shown = []
    with av.open(str(path)) as source:
        for number, frame in enumerate(source.decode(video=0)):
            target = folder / f"{number}.png"
            Image.fromarray(frame.to_ndarray(format="rgb24")).save(target)
            shown.append(shows_face(target))
            target.unlink()
    assert len(shown) == FRAMES
    return any(shown)


@pytest.mark.parametrize("jobs", [1, 2])
def test_folder_of_photos_and_videos(mixed: Path, tmp_path: Path, jobs: int) -> None:
    before = snapshot(mixed)
    assert film_shows_face(mixed / "b.mp4", tmp_path)
    blurguard("dir", mixed, "--out", tmp_path / "out", "--jobs", jobs, "--report", tmp_path / "r.jsonl")
    assert names(tmp_path / "out") == ["a.jpg", "b.mp4", "below/c.mp4"]
    assert not film_shows_face(tmp_path / "out" / "b.mp4", tmp_path)
    assert not film_shows_face(tmp_path / "out" / "below" / "c.mp4", tmp_path)
    assert snapshot(mixed) == before
    told = {Path(line["source"]).name: line for line in lines(tmp_path / "r.jsonl")}
    assert told["b.mp4"]["kind"] == "MP4 H.264"
    assert (told["b.mp4"]["frames"], told["b.mp4"]["width"], told["b.mp4"]["height"]) == (FRAMES, SIDE, SIDE)
    assert any(seen["frames"] == [0, FRAMES - 1] for seen in told["b.mp4"]["faces"])
    again = blurguard("dir", mixed, "--out", tmp_path / "out")
    assert re.search(r"0 .* 3 .* 0 ", again.stdout), again.stdout


def test_single_video_and_its_sound(tmp_path: Path, film: bytes) -> None:
    source = put(tmp_path / "film.mp4", film)
    blurguard("file", source)
    assert tracks(tmp_path / "film_blurred.mp4") == ["video", "audio"]
    blurguard("file", source, "--audio", "drop", "--out", tmp_path / "mute.mp4")
    assert tracks(tmp_path / "mute.mp4") == ["video"]
    assert not film_shows_face(tmp_path / "mute.mp4", tmp_path)


def test_in_place(mixed: Path, tmp_path: Path) -> None:
    blurguard("dir", mixed, "--in-place")
    assert not film_shows_face(mixed / "b.mp4", tmp_path)
    assert tracks(mixed / "b.mp4") == ["video", "audio"]


def test_detect_tells_where_a_face_is_in_every_frame(tmp_path: Path, film: bytes) -> None:
    source = put(tmp_path / "film.mp4", film)
    (line,) = lines(blurguard("detect", source).stdout)
    assert max(len(seen["boxes"]) for seen in line["faces"]) == FRAMES
    assert names(tmp_path) == ["film.mp4"]


def test_dry_run_writes_nothing(mixed: Path, tmp_path: Path) -> None:
    blurguard("dir", mixed, "--dry-run", "--report", tmp_path / "r.jsonl")
    assert {line["status"] for line in lines(tmp_path / "r.jsonl")} == {"skipped"}
    assert not (tmp_path / "mixed_blurred").exists()


def test_cut_off_video_fails_alone_and_salvage_says_so(mixed: Path, tmp_path: Path, film: bytes) -> None:
    source = put(mixed / "cut.mkv", b"")
    write_face_film(source, 60)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) * 2 // 3])
    out = tmp_path / "out"
    failed = blurguard("dir", mixed, "--out", out, code=7)
    assert "cut.mkv" in failed.stderr and "--salvage" in failed.stderr
    assert names(out) == ["a.jpg", "b.mp4", "below/c.mp4"]
    blurguard("file", source, "--out", tmp_path / "cut_alone.mkv", code=5)
    blurguard("dir", mixed, "--out", out, "--salvage", "--report", tmp_path / "r.jsonl")
    told = {Path(line["source"]).name: line for line in lines(tmp_path / "r.jsonl")}
    assert told["cut.mkv"]["status"] == "done"
    assert told["cut.mkv"]["reason"]
    assert (out / "cut.mkv").exists()


def test_full_disk_leaves_nothing(tmp_path: Path, film: bytes) -> None:
    source = put(tmp_path / "film.mp4", film)
    with small_disk(tmp_path / "small", "size=16k") as small:
        failed = blurguard("file", source, "--out", small / "film.mp4", code=6)
        assert "disk is full" in failed.stderr
        assert names(small) == []
        assert not (small / ".blurguard").exists()


def test_json_log_tells_of_frames(tmp_path: Path, film: bytes) -> None:
    source = put(tmp_path / "film.mp4", film)
    told = lines(blurguard("file", source, "--log-json").stderr)
    frames = [line for line in told if line["event"] == "frames"]
    assert frames and frames[-1]["total"] == FRAMES


def on_a_terminal(*arguments: object) -> Iterator[str]:
    """Yield what a person sees, until the command ends."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "blurguard", *map(str, arguments)]
    env = environment(TERM="xterm-256color")
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    try:
        while True:
            select.select([ours], [], [], 60)
            try:
                yield os.read(ours, 65536).decode("utf-8", "replace")
            except OSError:  # the terminal is closed by the last one who had it
                break
        assert process.wait() == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("jobs", [1, 2])
def test_terminal_shows_frames_and_rate(mixed: Path, jobs: int) -> None:
    write_face_film(mixed / "long.mp4", 150)
    shown = "".join(on_a_terminal("dir", mixed, "--jobs", jobs))
    assert "long.mp4" in shown
    assert "/150" in shown
    assert "frames/s" in shown
