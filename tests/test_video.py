"""Videos are read whole, or fail; and nothing but the file itself is read."""

import os
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from blurguard.errors import InputError
from blurguard.video.reader import open_video
from tests.children import read_watched
from tests.clips import CLIPS, GPS, RATE, STEP, Clip, Track, every, made, make
from tests.conftest import Starter
from tests.test_remux import pixels

MAX_PIXELS = 10_000_000
Array = np.ndarray[Any, Any]


def read(path: Path, salvage: bool = False, **options: Any) -> tuple[list[Fraction], list[Array], str]:
    """Return times and pictures (first plane) as our reader gives them, and what it says is lost."""
    with open_video(path, max_pixels=MAX_PIXELS, salvage=salvage, **options) as video:
        frames = [((frame.pts or 0) * video.info.time_base, pixels(frame)) for frame in video.frames()]
        return [time for time, _ in frames], [pixels for _, pixels in frames], video.damage.summary()


def independent(path: Path) -> tuple[list[Fraction], list[Array]]:
    """Return what plain PyAV reads."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = list(file.decode(stream))
        times = [(frame.pts or 0) * Fraction(stream.time_base or 0) for frame in frames]
        return times, [pixels(frame) for frame in frames]


@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_comes_at_its_time(name: str, tmp_path: Path) -> None:
    path = made(name, tmp_path)
    times, pictures, lost = read(path)
    known, known_pictures = independent(path)
    assert times == known
    assert all(np.array_equal(a, b) for a, b in zip(pictures, known_pictures, strict=True))
    assert lost == ""


def test_what_a_video_tells(tmp_path: Path) -> None:
    with open_video(made("hdr10", tmp_path), max_pixels=MAX_PIXELS) as video:
        info = video.info
        assert (info.kind, info.codec, info.codec_tag) == ("MP4 HEVC", "hevc", "hvc1")
        assert (info.width, info.height, info.pixel_format) == (96, 64, "yuv420p10le")
        assert (info.time_base, info.rate) == (Fraction(1, 12_800), Fraction(25))
        assert info.frames_expected == 12
        assert info.color == (1, 9, 16, 9)
        assert info.mastering is not None
        assert (info.mastering["WP"][0], info.mastering["L"][0]) == (Fraction(15_635, 50_000), Fraction(1000))
        assert info.content_light == (1000, 400)
        assert info.frame_bytes >= 96 * 64 * 3


@pytest.mark.parametrize(
    ("name", "degrees"),
    [
        ("plain", 0),
        ("turned-right", 270),
        ("turned-left", 90),
        ("turned-over", 180),
        ("turned-mirrored", 0),
        ("turned-transposed", 270),
    ],
)
def test_rotation_turns_upright(name: str, degrees: int, tmp_path: Path) -> None:
    with open_video(made(name, tmp_path), max_pixels=MAX_PIXELS) as video:
        assert video.info.rotation == degrees


def test_rotation_is_that_of_other_players(test_data: Path) -> None:
    path = test_data / "video" / "rot90_meta.mp4"
    with av.open(str(path)) as file:
        known = next(file.decode(video=0)).rotation
    with open_video(path, max_pixels=MAX_PIXELS) as video:
        assert video.info.rotation == known % 360


def test_a_trimmed_video_has_only_what_is_left(tmp_path: Path) -> None:
    times, _, _ = read(made("trimmed", tmp_path))
    assert len(times) == len(CLIPS["trimmed"].times) - 2


REFUSED: list[tuple[str, bytes | Clip, str]] = [
    ("empty.mp4", b"", "is empty"),
    ("words.mp4", b"no video at all, but a long enough text " * 20, "not supported"),
    ("head.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "ends before its index"),
    ("playlist.ts", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "not supported"),
    ("concat.mkv", b"ffconcat version 1.0\nfile /etc/passwd\n", "not supported"),
    ("sound", Clip("matroska", "libx264", videos=0), "has no video; nothing to hide"),
    ("two", Clip("matroska", videos=2), "2 video tracks"),
    ("two", Clip("mp4", videos=2), "2 video tracks"),
    ("large", Clip(size=(320, 240), times=every(STEP, 3)), "larger than --max-pixels"),
    (
        "locked",
        Clip(muxing={"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
                     "encryption_kid": "a7e61c373e219033c21091fa607bf3b8"}),
        "encrypted",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), REFUSED)
def test_what_cannot_be_read_is_refused_by_name(name: str, content: bytes | Clip, said: str, tmp_path: Path) -> None:
    if isinstance(content, Clip):
        path = make(content, tmp_path, name)
    else:
        path = tmp_path / name
        path.write_bytes(content)
    for salvage in (False, True):
        with (
            pytest.raises(InputError, match=said) as caught,
            open_video(path, max_pixels=50_000, salvage=salvage) as video,
        ):
            list(video.frames())
        assert str(path) in str(caught.value)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        open_video(tmp_path / "gone.mp4", max_pixels=MAX_PIXELS)


@pytest.mark.parametrize(
    "name", ["http:x.mp4", "concat:a|b.mp4", "pipe:0.mp4", "a%20b c.mp4", "ümläut\udcff.mp4", "-x.mp4"]
)
def test_names_are_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made("plain", tmp_path).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read(Path(name))[0]) == len(CLIPS["plain"].times)


def test_references_to_other_files_are_not_followed(tmp_path: Path, start_python: Starter) -> None:
    """A QuickTime file may say that its data lies in another file."""
    inside = make(Clip("mov", audio=()), tmp_path, "inside")
    data = inside.read_bytes()
    own = b"\0\0\0\x0curl \0\0\0\x01"
    assert data.count(own) + data.count(b"alis\0\0\0\x01") >= 1
    hostile = tmp_path / "hostile.mov"
    hostile.write_bytes(data.replace(b"alis\0\0\0\x01", b"alis\0\0\0\0").replace(own, own[:-1] + b"\0"))
    out, err = start_python(read_watched, hostile).communicate(timeout=100)
    assert err == ""
    assert out


@pytest.mark.parametrize("name", ["plain", "vp9", "hevc10", "mpeg2-ts", "prores"])
@pytest.mark.parametrize("threads", [1, 4])
def test_threads_change_nothing(name: str, threads: int, tmp_path: Path) -> None:
    path = made(name, tmp_path)
    assert read(path, threads=threads)[0] == independent(path)[0]


TRUNCATED = (
    "plain", "fragmented", "index-first", "many", "vp9", "vp8", "av1", "h264-ts", "hevc-ts", "mpeg2-ts", "m2ts",
    "mpeg4-avi", "mjpeg-avi", "h264-flv", "prores", "ffv1", "hevc10", "timecode",
)  # fmt: skip


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", TRUNCATED)
def test_a_file_that_ends_early_fails(name: str, share: float, tmp_path: Path) -> None:
    path = made(name, tmp_path)
    times, pictures, _ = read(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        InputError, match=r"ends early|ends before|damaged|no frame|not one frame|cannot be|are not there"
    ):
        read(path)
    try:
        some_times, some, lost = read(path, salvage=True)
    except InputError:
        return  # nothing to be had
    assert lost
    assert set(some_times) <= set(times)
    assert some_times[:-3] == times[: len(some_times[:-3])]
    assert all(np.array_equal(a, b) for a, b in zip(some[:-3], pictures, strict=False))


@pytest.mark.parametrize("name", ["h264-ts", "mpeg2-ts", "m2ts"])
def test_a_transport_stream_that_ends_between_packets_fails_inside_a_picture(name: str, tmp_path: Path) -> None:
    path = made(name, tmp_path)
    data = path.read_bytes()
    step = 192 if name == "m2ts" else 188
    path.write_bytes(data[: len(data) // 2 // step * step])
    count = len(CLIPS[name].times)
    try:
        times, _, _ = read(path)
    except InputError:
        return
    assert len(times) < count  # cut between two pictures, which nothing in such a file tells


@pytest.mark.parametrize("name", ["many", "h264-ts"])
def test_live_recordings_that_end_early_fail(name: str, tmp_path: Path) -> None:
    clip = CLIPS["vp9"]
    path = make(
        Clip(
            "matroska",
            clip.codec,
            times=every(40, 60),
            time_base=clip.time_base,
            last=40,
            audio=(),
            muxing={"live": "1"},
        ),
        tmp_path,
    )
    assert len(read(path)[0]) == 60
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match="ends early"):
        read(path)


def _flipped(data: bytes, seed: int, start: int, stop: int) -> bytes:
    rng = random.Random(seed)
    changed = bytearray(data)
    for _ in range(6):
        changed[rng.randrange(start, stop)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _payload(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as file:
        return [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size and packet.pos is not None]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "name", ["plain", "b-frames", "hevc10", "vp9", "av1", "h264-ts", "mpeg4-avi", "ffv1", "mjpeg-avi"]
)
def test_flipped_bits_fail_or_lose_no_frame(name: str, seed: int, tmp_path: Path) -> None:
    path = made(name, tmp_path)
    data, count = path.read_bytes(), len(CLIPS[name].times)
    path.write_bytes(_flipped(data, seed, len(data) // 10, len(data)))
    try:
        times, _, _ = read(path)
    except InputError as error:
        assert str(path) in str(error)
        return
    if name in ("plain", "b-frames", "hevc10"):
        return  # bits of the index say how many there are
    assert len(times) == count


@pytest.mark.parametrize("name", ["plain", "b-frames"])
def test_damage_that_shows_is_noticed(name: str, tmp_path: Path) -> None:
    """In H.264 most flipped bits lead to what cannot be."""
    path = made(name, tmp_path)
    data = path.read_bytes()
    _, pictures = independent(path)
    packets = _payload(path)
    noticed = changed = 0
    for seed in range(20):
        at, size = random.Random(seed).choice(packets)
        path.write_bytes(_flipped(data, seed, at + size // 3, at + size))
        try:
            _, now, _ = read(path)
        except InputError:
            noticed += 1
        else:
            changed += not all(np.array_equal(a, b) for a, b in zip(pictures, now, strict=True))
    assert noticed >= 10, (noticed, changed)


def test_salvage_takes_what_is_there_and_says_so(tmp_path: Path) -> None:
    path = made("plain", tmp_path)
    data = path.read_bytes()
    at, size = _payload(path)[5]
    path.write_bytes(data[: at + size // 3] + b"\xff" * (size - size // 3) + data[at + size :])
    with pytest.raises(InputError, match=r"damaged at 0\.\d\d s; get a complete copy, or give --salvage"):
        read(path)
    times, _, lost = read(path, salvage=True)
    assert len(times) >= 10
    assert "damaged" in lost


def _remuxed(path: Path, target: Path, change: Callable[[int, Any], bool]) -> Path:
    """Copy a video's packets; ``change`` may alter the n-th, and says whether it stays."""
    with av.open(str(path)) as file, av.open(str(target), "w", format="matroska") as output:
        template = file.streams.video[0]
        stream: Any = output.add_mux_stream("h264", width=96, height=64)
        stream.time_base = template.time_base
        for number, packet in enumerate(file.demux(template)):
            if packet.size and change(number, packet):
                packet.stream = stream
                output.mux(packet)
    return target


def _annexb(tmp_path: Path) -> Path:
    return make(
        Clip("mpegts", options={"bf": "0"}, time_base=Fraction(1, 90_000), times=every(3600), last=3600, audio=()),
        tmp_path,
    )


def _counted(data: bytes) -> bytes:
    """Number the packets of a joined transport stream anew (ISO/IEC 13818-1, 2.4.3.3)."""
    changed, counters = bytearray(data), dict[int, int]()
    for at in range(0, len(data), 188):
        pid = int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF
        counters[pid] = (counters.get(pid, -1) + bool(data[at + 3] & 0x10)) & 0xF
        changed[at + 3] = (data[at + 3] & 0xF0) | counters[pid]
    return bytes(changed)


def test_two_frames_of_one_time_are_both_kept(tmp_path: Path) -> None:
    def change(number: int, packet: Any) -> bool:
        if number == 5:
            packet.pts = packet.dts = packet.pts - 3600
        return True

    times, _, _ = read(_remuxed(_annexb(tmp_path), tmp_path / "same.mkv", change))
    assert len(times) == 12
    assert times[5] - times[4] == Fraction(1, 1000)
    assert times == sorted(set(times))


def test_times_that_run_backwards_are_refused(tmp_path: Path) -> None:
    source = _annexb(tmp_path)
    data = source.read_bytes()
    source.write_bytes(_counted(data + data))
    try:
        times, _, _ = read(source)
    except InputError as error:
        assert "backwards" in str(error)
    else:
        assert len(times) == 24
        assert times == sorted(set(times))


def test_a_change_of_size_is_refused(tmp_path: Path) -> None:
    first = _annexb(tmp_path).read_bytes()
    second = make(
        Clip(
            "mpegts",
            size=(128, 96),
            time_base=Fraction(1, 90_000),
            times=every(3600, start=43_200),
            last=3600,
            audio=(),
        ),
        tmp_path,
    )
    second.write_bytes(_counted(first + second.read_bytes()))
    with pytest.raises(InputError, match="changes from 96 x 64 yuv420p to 128 x 96"):
        read(second)


def test_a_start_in_the_middle_of_a_group_is_legitimate(tmp_path: Path) -> None:
    options = {"bf": "2", "g": "6", "x264-params": "open-gop=1:scenecut=0"}
    ticks: dict[str, Any] = {"time_base": Fraction(1, 90_000), "times": every(3600, 30), "last": 3600}
    clip = Clip("mpegts", options=options, audio=(Track("mp2"),), **ticks)
    path = make(clip, tmp_path)
    data = path.read_bytes()
    start = len(data) // 3 // 188 * 188
    path.write_bytes(data[start:])
    times, _, _ = read(path)
    assert times == independent(path)[0]
    assert len(times) >= 12


def test_closing_early_is_fine(tmp_path: Path) -> None:
    path = made("b-frames", tmp_path)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    for count in (0, 1, 5):
        with open_video(path, max_pixels=MAX_PIXELS) as video:
            for _, _ in zip(range(count), video.frames(), strict=False):
                pass
    if before:
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_gap_in_a_transport_stream_fails(tmp_path: Path) -> None:
    path = _annexb(tmp_path)
    data = path.read_bytes()
    cuts = range(188 * 6, len(data) - 188 * 6, 188)
    video = [at for at in cuts if int.from_bytes(data[at + 1 : at + 3], "big") & 0x5FFF == 0x100]
    at = video[len(video) // 2]
    path.write_bytes(data[:at] + data[at + 188 :])
    with pytest.raises(InputError, match="damaged"):
        read(path)


@pytest.mark.parametrize(
    "after",
    [GPS.encode(), b"\0\0" + GPS.encode() * 9, b"text at the end " * 9, bytes(100), b"\0\0\1\0abcd", b"\xff" * 50],
)
@pytest.mark.parametrize("name", ["plain", "index-first", "timecode"])
def test_bytes_after_the_end_are_no_part_of_it(name: str, after: bytes, tmp_path: Path) -> None:
    path = made(name, tmp_path)
    count = len(read(path)[0])
    path.write_bytes(path.read_bytes() + after)
    times, _, lost = read(path)
    assert (len(times), lost) == (count, "")


@pytest.mark.parametrize("kind", [b"moof", b"mdat", b"free", b"uuid"])
def test_a_box_that_is_not_all_there_is_an_early_end(kind: bytes, tmp_path: Path) -> None:
    path = made("plain", tmp_path)
    path.write_bytes(path.read_bytes() + (1000).to_bytes(4, "big") + kind + bytes(500))
    with pytest.raises(InputError, match="ends early: 492 bytes are missing"):
        read(path)


def test_a_packet_that_was_received_with_an_error_fails(tmp_path: Path) -> None:
    path = _annexb(tmp_path)
    data = bytearray(path.read_bytes())
    video = [at for at in range(0, len(data), 188) if int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF == 0x100]
    data[video[len(video) // 2] + 1] |= 0x80  # the transport error indicator
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"is damaged or ends early at \d"):
        read(path)
    assert "damaged" in read(path, salvage=True)[2]


def _joined(tmp_path: Path, first: bool, second: bool) -> Path:
    """Join two transport streams, each interlaced or not."""
    parts = [
        make(
            Clip(
                "mpegts", "mpeg2video", size=(96, 96), audio=(), interlaced=fields, options={"g": "6"},
                time_base=Fraction(1, RATE), times=every(1, 12, start=35 + 12 * number), last=1,
            ),
            tmp_path,
        ).read_bytes()
        for number, fields in enumerate((first, second))
    ]  # fmt: skip
    path = tmp_path / "joined.ts"
    path.write_bytes(_counted(b"".join(parts)))
    return path


def test_a_change_to_interlaced_is_refused_and_the_other_way_round_is_fine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"changes from progressive to interlaced at \d\.\d\d s; cut it there"):
        read(_joined(tmp_path, first=False, second=True))
    for second in (False, True):
        assert len(read(_joined(tmp_path, first=True, second=second))[0]) == 24


def test_a_frame_that_is_missing_from_interlaced_video_is_noticed(tmp_path: Path) -> None:
    with open_video(made("interlaced", tmp_path), max_pixels=MAX_PIXELS, threads=1) as video:
        frames = video.frames()
        for _ in range(3):
            assert next(frames).interlaced_frame
        video._pending.pts.add(100 * STEP)  # a packet whose frame the decoder keeps to itself
        with pytest.raises(InputError, match="1 frames could not be decoded"):
            list(frames)


def test_second_fields_are_not_missing(tmp_path: Path) -> None:
    with open_video(made("interlaced", tmp_path), max_pixels=MAX_PIXELS, threads=1) as video:
        for frame in video.frames():
            video._pending.pts.add((frame.pts or 0) + STEP // 2)
