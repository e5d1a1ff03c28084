"""What comes out of a video that is read and written again: everything as it was, but for what must not travel."""

import hashlib
import os
import stat
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from blurguard.encoders import ENCODERS
from blurguard.errors import InputError, OutputError
from blurguard.remux import Recorder
from blurguard.video import open_video
from tests.clips import CLIPS, GPS, SECRET, Clip, every, made, make
from tests.conftest import Starter

MOST_PIXELS = 10_000_000
HDR = ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")


@dataclass
class Survey:
    """What plain PyAV finds in a file."""

    pts: list[Fraction] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    tracks: list[dict[str, Any]] = field(default_factory=list)
    chapters: list[Any] = field(default_factory=list)
    attachments: list[Any] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    kinds: list[str] = field(default_factory=list)


def survey(path: Path) -> Survey:
    """Read a file with nothing of ours."""
    found = Survey()
    with av.open(str(path)) as file:
        streams: Any = file.streams
        real = [stream for stream in streams.video if not stream.disposition & Disposition.attached_pic]
        (video,) = real
        found.kinds = sorted(
            f"{stream.type} {int(stream.disposition) & int(Disposition.attached_pic)}" for stream in file.streams
        )
        frame: Any
        for frame in file.decode(video):
            found.pts.append(frame.pts * Fraction(video.time_base or 0))
            found.pictures.append(pixels(frame))
        context = video.codec_context
        found.about = {
            "codec": context.codec.canonical_name, "size": (context.width, context.height), "pixels": context.pix_fmt,
            "range": frame.color_range, "matrix": frame.colorspace, "primaries": frame.color_primaries,
            "transfer": frame.color_trc, "aspect": video.sample_aspect_ratio or 1,
            "display": [bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"],
            "hdr": sorted(bytes(data) for data in frame.side_data if data.type.name in HDR),
            "interlaced": frame.interlaced_frame,
            "seconds": video.duration and video.duration * Fraction(video.time_base or 0),
            "time base": video.time_base, "language": video.language or "und", "disposition": int(video.disposition),

            "tag": context.codec_tag if context.codec.canonical_name == "hevc" else "",
        }  # fmt: skip
        found.chapters = [
            (c["start"] * Fraction(c["time_base"] or 0), c["end"] * Fraction(c["time_base"] or 0), c["metadata"])
            for c in file.chapters()
        ]
        found.attachments = [
            (stream.name, stream.mimetype, stream.data) for stream in streams if stream.type == "attachment"
        ]
        found.metadata = dict(file.metadata) | {
            f"{s.index} {k}": v for s in file.streams for k, v in s.metadata.items()
        }
        found.seconds = (file.duration or 0) / 1e6
    with av.open(str(path)) as file:
        copied = [stream for stream in file.streams if stream.type in ("audio", "subtitle")]
        tracks = {stream.index: _track(stream) for stream in copied}
        packet: Any
        for packet in file.demux(copied) if copied else ():
            if packet.size:
                base = Fraction(packet.time_base)
                tracks[packet.stream_index]["packets"].append(
                    (
                        packet.pts * base,
                        packet.dts * base,
                        (packet.duration or 0) * base,
                        hashlib.md5(bytes(packet), usedforsecurity=False).hexdigest(),
                    )
                )
                if packet.has_sidedata("skip_samples"):
                    tracks[packet.stream_index]["skips"].append(bytes(packet.get_sidedata("skip_samples")))
        found.tracks = list(tracks.values())
    return found


def pixels(frame: av.VideoFrame) -> Any:
    """Return the first plane, (H, W): PyAV makes no arrays of odd sizes."""
    plane, deep = frame.planes[0], frame.format.components[0].bits > 8
    rows = np.frombuffer(bytes(plane), np.uint16 if deep else np.uint8)
    return rows.reshape(plane.height, -1)[:, : plane.width].copy()


def _track(stream: Any) -> dict[str, Any]:
    context = stream.codec_context
    header = context.extradata if context.codec.canonical_name != "mov_text" else b""  # FFmpeg adds its bit rate to it
    names = {key.lower(): value for key, value in stream.metadata.items()}
    return {
        "codec": context.codec.canonical_name,
        "language": names.get("language", "und"), "title": names.get("title", ""),
        "disposition": int(stream.disposition), "header": header, "packets": [], "skips": [],
    }  # fmt: skip


def rewrite(source: Path, folder: Path, **options: Any) -> Path:
    """Send a video through, unhidden."""
    target = folder / f"out{source.suffix}"
    target.touch(0o600)
    with open_video(source, max_pixels=MOST_PIXELS) as video, Recorder(video, target, **options) as recorder:
        for frame in video.frames():
            recorder.write(frame)
        assert not recorder.left_out
    return target


def check_same(source: Path, target: Path) -> tuple[Survey, Survey]:
    """Compare two files as the independent reader sees them."""
    was, now = survey(source), survey(target)
    assert now.pts == was.pts
    assert now.about == was.about
    assert now.tracks == was.tracks
    assert now.chapters == was.chapters
    assert now.seconds == pytest.approx(was.seconds, abs=0.0015)  # Matroska rounds to a millisecond
    for before, after in zip(was.pictures, now.pictures, strict=True):
        white = 255 if before.dtype == np.uint8 else 1023
        assert np.abs(before.astype(float) - after).mean() / white < 0.03
    return was, now


@pytest.mark.parametrize("name", CLIPS)
def test_everything_is_as_it_was(name: str, tmp_path: Path) -> None:
    source = made(name, tmp_path)
    check_same(source, rewrite(source, tmp_path))


REAL = (
    "base_540p_audio.mp4", "hevc10.mp4", "noaudio.mp4", "noface.mp4", "odd_size_444.mp4", "pan_small_gt.mp4",
    "rot90_meta.mp4", "two_audio_subs.mkv", "vfr_audio.mp4", "video_starts_0.7s_late.mp4", "vp9_opus.webm",
)  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_as_they_were(name: str, test_data: Path, tmp_path: Path) -> None:
    source = test_data / "video" / name
    target = rewrite(source, tmp_path)
    check_same(source, target)
    assert target.stat().st_size < 1.6 * source.stat().st_size


def test_nothing_is_said(start_python: Starter, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import tests.test_remux as t\n"
        "for name in ('plain', 'hevc10', 'av1', 'vp9'):\n"
        "    t.rewrite(t.made(name, Path(sys.argv[1])), Path(sys.argv[1]))"
    )
    out, err = start_python(code, tmp_path).communicate(timeout=100)
    assert (out, err) == ("", "")


def test_no_option_is_a_slip_of_the_pen() -> None:
    for encoder in ENCODERS.values():
        context: Any = av.CodecContext.create(encoder.name, "w")
        formats: Any = av.Codec(encoder.name, "w").video_formats
        context.width, context.height, context.pix_fmt = 96, 64, formats[0].name
        context.time_base, context.options = Fraction(1, 25), dict(encoder.options)
        context.open()
        assert context.options == {}, encoder.name


def test_audio_can_be_dropped(tmp_path: Path) -> None:
    source = made("many", tmp_path)
    now = survey(rewrite(source, tmp_path, keep_audio=False))
    assert [track["codec"] for track in now.tracks] == ["subrip"]


def test_pictures_and_unknown_things_stay_behind(tmp_path: Path) -> None:
    was, now = check_same(source := made("many", tmp_path), target := rewrite(source, tmp_path))
    assert len(was.attachments) == 3  # and the cover, which reads as a video track
    assert now.attachments == [was.attachments[0]]
    assert now.kinds == ["attachment 0", "audio 0", "audio 0", "subtitle 0", "video 0"]
    data = target.read_bytes()
    assert b"\xff\xd8\xff" not in data
    assert SECRET.encode() not in data


def test_data_tracks_stay_behind(tmp_path: Path) -> None:
    was, now = check_same(source := made("mpeg2-ts", tmp_path), rewrite(source, tmp_path))
    assert "data 0" in was.kinds
    assert now.kinds == ["audio 0", "video 0"]
    assert GPS.encode() not in (tmp_path / "out.ts").read_bytes()
    was, now = check_same(source := made("timecode", tmp_path), rewrite(source, tmp_path))
    assert "data 0" in was.kinds
    assert now.kinds == ["audio 0", "video 0"]


def test_metadata_stays_behind(tmp_path: Path) -> None:
    source = made("tagged", tmp_path)
    assert SECRET in survey(source).metadata.values()
    target = rewrite(source, tmp_path)
    own = {"major_brand", "minor_version", "compatible_brands"}
    assert {key for key in survey(target).metadata if key.split()[-1] not in {"language", "handler_name"}} <= own | {
        "0 vendor_id",
        "1 vendor_id",
    }
    data = target.read_bytes()
    assert not any(text in data for text in (SECRET.encode(), GPS.encode(), b"Maker", b"Mobile", b"Lavf"))


def test_keep_metadata_keeps_when_and_which_camera(tmp_path: Path) -> None:
    source = made("tagged", tmp_path)
    target = rewrite(source, tmp_path, keep_metadata=True)
    now = survey(target).metadata
    assert (now["make"], now["model"]) == ("Maker", "Mobile 7")
    assert now["creation_time"] == "2024-05-06T07:08:09.000000Z"
    data = target.read_bytes()
    assert not any(text in data for text in (SECRET.encode(), GPS.encode()))


def test_times_are_those_of_the_frames_not_of_a_rate(tmp_path: Path) -> None:
    target = rewrite(made("vfr", tmp_path), tmp_path)
    now = survey(target)
    assert [time * 12_800 for time in now.pts] == list(CLIPS["vfr"].times)
    # MP4 tells durations in the order of decoding, so that of the last frame shows in the track's only.
    assert now.about["seconds"] == Fraction(9700, 12_800)


def test_hdr10_is_carried(tmp_path: Path) -> None:
    for name in ("hdr10", "hdr10-av1"):
        now = survey(rewrite(made(name, tmp_path), tmp_path))
        assert len(now.about["hdr"]) == 2


def test_only_the_target_is_written_and_stays_private(start_python: Starter, tmp_path: Path) -> None:
    source = made("index-first", tmp_path)
    folder = tmp_path / "scratch"
    folder.mkdir()
    target = folder / "draft"
    target.touch(0o600)
    seen = []
    with open_video(source, max_pixels=MOST_PIXELS) as video, Recorder(video, target) as recorder:
        for frame in video.frames():
            recorder.write(frame)
            seen.append(os.listdir(folder))  # noqa: PTH208
    assert all(names == ["draft"] for names in [*seen, os.listdir(folder)])  # noqa: PTH208
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    data = target.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert check_same(source, target)


def test_a_failure_leaves_an_unfinished_file_for_its_owner(tmp_path: Path) -> None:
    source, target = made("plain", tmp_path), tmp_path / "draft"
    target.touch(0o600)
    with (
        pytest.raises(RuntimeError, match="elsewhere"),
        open_video(source, max_pixels=MOST_PIXELS) as video,
        Recorder(video, target) as recorder,
        closing(video.frames()) as frames,
    ):
        for _ in range(6):
            recorder.write(next(frames))
        raise RuntimeError("elsewhere")
    with pytest.raises(InputError):
        open_video(target, max_pixels=MOST_PIXELS)


def test_what_was_in_the_target_is_gone(tmp_path: Path) -> None:
    source, target = made("plain", tmp_path), tmp_path / "out.mp4"
    target.write_bytes(SECRET.encode() * 100_000)
    rewrite(source, tmp_path)
    assert SECRET.encode() not in target.read_bytes()


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    source, target = made("plain", tmp_path), tmp_path / "draft"
    with (
        open_video(source, max_pixels=MOST_PIXELS) as video,
        pytest.raises(OutputError, match="no frame"),
        Recorder(video, target),
    ):
        pass


FULL = """
import resource, signal, sys
from pathlib import Path
import tests.test_remux as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
source = t.made(sys.argv[2], Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    t.rewrite(source, Path(sys.argv[1]))
except t.OutputError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["plain", "index-first", "many", "h264-ts"])
@pytest.mark.parametrize("room", [0, 700, 3000])
def test_a_full_disk_is_an_output_error(name: str, room: int, start_python: Starter, tmp_path: Path) -> None:
    out, err = start_python(FULL, tmp_path, name, room).communicate(timeout=100)
    assert "cannot write" in out
    assert err == ""


def test_a_folder_that_is_gone_is_an_output_error(tmp_path: Path) -> None:
    source = made("plain", tmp_path)
    with open_video(source, max_pixels=MOST_PIXELS) as video, pytest.raises(OutputError):
        Recorder(video, tmp_path / "gone" / "draft")


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (
            Clip("avi", "wmv2", time_base=Fraction(1, 25), times=every(1), last=1, audio=()),
            "wmv2 video cannot be written",
        ),
        (Clip("webm", "libvpx-vp9", "yuva420p", audio=()), "transparency"),
        (Clip("mov", "prores_ks", "yuva444p10le", audio=()), "yuva444p1"),
        (Clip("matroska", "mpeg4", interlaced=True, audio=()), ""),
    ],
)
def test_what_cannot_be_written_as_it_was_is_refused(clip: Clip, said: str, tmp_path: Path) -> None:
    source = make(clip, tmp_path)
    if not said:
        rewrite(source, tmp_path)
        return
    with pytest.raises(InputError, match=said):
        rewrite(source, tmp_path)


def test_painted_frames_are_what_is_written(tmp_path: Path) -> None:
    source, target = made("plain", tmp_path), tmp_path / "out.mp4"
    with open_video(source, max_pixels=MOST_PIXELS) as video, Recorder(video, target) as recorder:
        for frame in video.frames():
            frame.make_writable()
            np.frombuffer(frame.planes[0], np.uint8)[:] = 0  # type: ignore[call-overload]
            recorder.write(frame)
    assert max(int(picture.max()) for picture in survey(target).pictures) < 20


def test_jpeg_frames_keep_no_exif(tmp_path: Path) -> None:
    import io

    from PIL import Image

    exif = Image.Exif()
    exif[0x010F] = SECRET
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w", format="avi") as output:
        stream = output.add_mux_stream("mjpeg", rate=25, width=64, height=48)
        stream.time_base = Fraction(1, 25)
        for number in range(5):
            file = io.BytesIO()
            Image.effect_mandelbrot((64, 48), (-2, -2, 1, 2), 50 + number).convert("RGB").save(file, "JPEG", exif=exif)
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            output.mux(packet)
    assert SECRET.encode() in path.read_bytes()
    target = rewrite(path, tmp_path)
    assert len(survey(target).pts) == 5
    assert SECRET.encode() not in target.read_bytes()
