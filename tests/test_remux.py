"""What comes out of a video that is read and written again: everything as it was, but for what must not travel."""

import base64
import hashlib
import io
import os
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from PIL import Image

from blurguard.errors import InputError, OutputError
from blurguard.video.encoders import ENCODERS, encoder_for
from blurguard.video.passthrough import scrub_extradata
from blurguard.video.reader import open_video
from blurguard.video.writer import SideDataFilter, VideoWriter
from tests.children import rewrite_clips, rewrite_on_full_disk
from tests.clips import BRANDS, CLIPS, GPS, SECRET, Clip, Track, every, made, make
from tests.conftest import Starter

MAX_PIXELS = 10_000_000
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
    with open_video(source, max_pixels=MAX_PIXELS) as video, VideoWriter(video, target, **options) as recorder:
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
    out, err = start_python(rewrite_clips, tmp_path, "plain", "hevc10", "av1", "vp9").communicate(timeout=100)
    assert (out, err) == ("", "")


def test_no_option_is_a_slip_of_the_pen() -> None:
    for encoder in ENCODERS.values():
        context: Any = av.CodecContext.create(encoder.name, "w")
        formats: Any = av.Codec(encoder.name, "w").video_formats
        context.width, context.height, context.pix_fmt = 96, 64, formats[0].name
        context.time_base, context.options = Fraction(1, 25), dict(encoder.options)
        context.open()
        assert context.options == {}, encoder.name


@pytest.mark.parametrize("size", [(96, 64), (3840, 2160)])
def test_no_reordering_in_transport_streams(size: tuple[int, int], tmp_path: Path) -> None:
    with open_video(made("hevc-ts", tmp_path), max_pixels=MAX_PIXELS) as video:
        info = replace(video.info, width=size[0], height=size[1])
    assert encoder_for(info, threads=0, quick=False).options["bf"] == "0"


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
    now = survey(target).metadata
    # Every QuickTime track has a handler, which FFmpeg calls so when it is told nothing.
    handlers = {key: now.pop(key) for key in list(now) if key.endswith("handler_name")}
    assert set(handlers.values()) <= {"VideoHandler", "SoundHandler"}
    assert {key for key in now if key.split()[-1] != "language"} <= own | {"0 vendor_id", "1 vendor_id"}
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
    with open_video(source, max_pixels=MAX_PIXELS) as video, VideoWriter(video, target) as recorder:
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
        open_video(source, max_pixels=MAX_PIXELS) as video,
        VideoWriter(video, target) as recorder,
        closing(video.frames()) as frames,
    ):
        for _ in range(6):
            recorder.write(next(frames))
        raise RuntimeError("elsewhere")
    with pytest.raises(InputError):
        open_video(target, max_pixels=MAX_PIXELS)


def test_what_was_in_the_target_is_gone(tmp_path: Path) -> None:
    source, target = made("plain", tmp_path), tmp_path / "out.mp4"
    target.write_bytes(SECRET.encode() * 100_000)
    rewrite(source, tmp_path)
    assert SECRET.encode() not in target.read_bytes()


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    source, target = made("plain", tmp_path), tmp_path / "draft"
    with (
        open_video(source, max_pixels=MAX_PIXELS) as video,
        pytest.raises(OutputError, match="no frame"),
        VideoWriter(video, target),
    ):
        pass


@pytest.mark.parametrize("name", ["plain", "index-first", "many", "h264-ts"])
@pytest.mark.parametrize("room", [0, 700, 3000])
def test_a_full_disk_is_an_output_error(name: str, room: int, start_python: Starter, tmp_path: Path) -> None:
    out, err = start_python(rewrite_on_full_disk, tmp_path, name, room).communicate(timeout=100)
    assert "cannot write" in out
    assert err == ""


def test_a_folder_that_is_gone_is_an_output_error(tmp_path: Path) -> None:
    source = made("plain", tmp_path)
    with open_video(source, max_pixels=MAX_PIXELS) as video, pytest.raises(OutputError):
        VideoWriter(video, tmp_path / "gone" / "draft")


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
    with open_video(source, max_pixels=MAX_PIXELS) as video, VideoWriter(video, target) as recorder:
        for frame in video.frames():
            frame.make_writable()
            np.frombuffer(frame.planes[0], np.uint8)[:] = 0  # type: ignore[call-overload]
            recorder.write(frame)
    assert max(int(picture.max()) for picture in survey(target).pictures) < 20


@pytest.mark.parametrize("muxer", ["avi", "mov", "matroska"])
def test_jpeg_frames_keep_nothing_but_pixels(muxer: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = SECRET
    path = tmp_path / f"clip{BRANDS[muxer]}"
    with av.open(str(path), "w", format=muxer) as output:
        stream = output.add_mux_stream("mjpeg", rate=25, width=64, height=48)
        stream.time_base = Fraction(1, 25)
        for number in range(5):
            file = io.BytesIO()
            Image.effect_mandelbrot((64, 48), (-2, -2, 1, 2), 50 + number).convert("RGB").save(
                file, "JPEG", exif=exif, icc_profile=b"ICC-" + SECRET.encode() * 20, comment=SECRET.encode()
            )
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            output.mux(packet)
    assert SECRET.encode() in path.read_bytes()
    target = rewrite(path, tmp_path)
    assert len(survey(target).pts) == 5
    assert SECRET.encode() not in target.read_bytes()


def test_stripped_frames_keep_their_pixels(tmp_path: Path) -> None:
    strip = SideDataFilter()
    with av.open(str(_with_profiles(tmp_path))) as file:
        for number, frame in enumerate(file.decode(video=0)):
            before: Any = frame.side_data
            assert [data.type for data in before] == [SideData.ICC_PROFILE]
            bare = strip.strip(frame)
            assert len(bare.side_data) == 0
            assert bare.planes[0].buffer_ptr == frame.planes[0].buffer_ptr
            assert (bare.pts, bare.color_range, bare.format.name) == (number, frame.color_range, frame.format.name)


def _with_profiles(tmp_path: Path) -> Path:
    path = tmp_path / "profiles.avi"
    with av.open(str(path), "w", format="avi") as output:
        stream = output.add_mux_stream("mjpeg", rate=25, width=64, height=48)
        stream.time_base = Fraction(1, 25)
        for number in range(3):
            file = io.BytesIO()
            Image.new("RGB", (64, 48), (number, 90, 90)).save(file, "JPEG", icc_profile=SECRET.encode() * 9)
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            output.mux(packet)
    return path


def _with_header(source: Path, target: Path, change: Callable[[bytes], bytes]) -> Path:
    """Copy a video, with another header for its sound."""
    with av.open(str(source)) as file, av.open(str(target), "w") as output:
        tracks: dict[int, Any] = {s.index: output.add_stream_from_template(s) for s in file.streams}
        for track in tracks.values():
            if track.type == "audio":
                track.codec_context.extradata = change(bytes(track.codec_context.extradata))
        for packet in file.demux():
            if packet.size:
                packet.stream = tracks[packet.stream_index]
                output.mux(packet)
    return target


def _laced(first: bytes, comment: bytes, setup: bytes) -> bytes:
    lace = bytes([2])
    for packet in (first, comment):
        lace += b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    return lace + first + comment + setup


def _talking_vorbis(header: bytes) -> bytes:
    at = header.index(b"\x03vorbis")
    entries = [f"TITLE={SECRET}", f"LOCATION={GPS}",
               "METADATA_BLOCK_PICTURE=" + base64.b64encode(SECRET.encode() * 200).decode()]  # fmt: skip
    comment = b"\x03vorbis" + (4).to_bytes(4, "little") + b"test" + len(entries).to_bytes(4, "little")
    for entry in entries:
        comment += len(entry).to_bytes(4, "little") + entry.encode()
    first = header.index(b"\x01vorbis")
    return _laced(header[first : first + 30], comment + b"\1", header[header.index(b"\x05vorbis", at) :])


def test_vorbis_comments_stay_behind(tmp_path: Path) -> None:
    clip = Clip("matroska", time_base=Fraction(1, 1000), times=every(40), last=40, audio=(Track("vorbis"),))
    source = _with_header(make(clip, tmp_path), tmp_path / "source.mkv", _talking_vorbis)
    assert SECRET.encode() in source.read_bytes()
    target = rewrite(source, tmp_path)
    data = target.read_bytes()
    pictures = base64.b64encode(SECRET.encode() * 3)
    assert not any(text in data for text in (SECRET.encode(), GPS.encode(), pictures))
    was, now = survey(source), survey(target)
    assert now.tracks[0]["packets"] == was.tracks[0]["packets"]
    with av.open(str(source)) as before, av.open(str(target)) as after:
        heard = [[bytes(frame.planes[0]) for frame in file.decode(audio=0)] for file in (before, after)]
    assert heard[0]
    assert heard[0] == heard[1]


def test_a_track_whose_header_is_not_understood_is_left_out_by_name(tmp_path: Path) -> None:
    clip = Clip("matroska", time_base=Fraction(1, 1000), times=every(40), last=40, audio=(Track("vorbis"),))
    source = make(clip, tmp_path)
    source.write_bytes(source.read_bytes().replace(b"\x05vorbis", b"\x05SERIAL"))
    target = tmp_path / "out.mkv"
    with open_video(source, max_pixels=MAX_PIXELS) as video, VideoWriter(video, target) as recorder:
        for frame in video.frames():
            recorder.write(frame)
    assert recorder.left_out == ("audio track 2 (vorbis)",)
    assert survey(target).tracks == []


def test_headers_keep_what_decoders_need() -> None:
    info = bytes(range(34))
    assert scrub_extradata("flac", b"fLaC\0\0\0\x22" + info + b"\x84\0\0\x04text") == info
    assert scrub_extradata("flac", info) == info
    simple, many = b"OpusHead\1\2" + bytes(9), b"OpusHead\1\6" + bytes(8) + b"\1\4\2" + bytes(range(6))
    for head in (simple, many):
        assert scrub_extradata("opus", head + SECRET.encode()) == head
    first, setup = b"\x01vorbis" + bytes(23), b"\x05vorbis" + bytes(9)
    comment = b"\x03vorbis" + SECRET.encode() * 60
    doubled = b"".join(len(packet).to_bytes(2, "big") + packet for packet in (first, comment, setup))
    empty = b"\x03vorbis" + bytes(8) + b"\1"
    assert scrub_extradata("vorbis", _laced(first, comment, setup)) == _laced(first, empty, setup)
    assert scrub_extradata("vorbis", doubled) == _laced(first, empty, setup)
    index = b"# %s\nsize: 720x576\nid: de\npalette: 000000, ffffff\n" % SECRET.encode()
    assert scrub_extradata("dvd_subtitle", index) == b"size: 720x576\npalette: 000000, ffffff\n"
    assert scrub_extradata("webvtt", b"WEBVTT\n\nNOTE " + SECRET.encode()) is None
    assert scrub_extradata("aac", b"\x12\x08") == b"\x12\x08"
    assert scrub_extradata("aac", None) is None
    for damaged in (b"\2", b"\2\xff", b"\0\1", b"\2\x1e\x05" + bytes(60)):
        with pytest.raises(ValueError, match="Vorbis"):
            scrub_extradata("vorbis", damaged)


ASS = """\ufeff[Script Info]
; Script by SERIAL-0815
Title: SERIAL-0815
ScriptType: v4.00+
Original Script: SERIAL-0815
PlayResX: 640
PlayResY: SERIAL-0815 and where it was
YCbCr Matrix: TV.601
[Aegisub Project Garbage]
Audio File: /home/SERIAL-0815/raw.mp4
Format: SERIAL-0815
[V4+ Styles]
; SERIAL-0815
Format: Name, Fontname, Fontsize
Style: Default,Arial,20
[Fonts]
fontname: SERIAL-0815.ttf
[Graphics]
filename: SERIAL-0815.png
[Events]
Format: Layer, Start, End, Style, Text
Comment: 0,0:00:00.00,0:00:01.00,Default,SERIAL-0815
"""
BARE_ASS = b"""[Script Info]
ScriptType: v4.00+
PlayResX: 640
YCbCr Matrix: TV.601
[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20
[Events]
Format: Layer, Start, End, Style, Text
"""


def _ass(tmp_path: Path) -> Any:
    path = tmp_path / "clip.ass"
    path.write_bytes(BARE_ASS + b"Dialogue: 0,0:00:00.00,0:00:00.10,Default,Guten Tag\n")
    return av.open(str(path)).streams[0]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_subtitles_tell_how_they_look_and_no_more(end: str, tmp_path: Path) -> None:
    assert ASS.count(SECRET) == 10
    source = tmp_path / "source.mkv"
    video = made("vfr-mkv", tmp_path)
    with av.open(str(video)) as file, av.open(str(source), "w") as output:
        tracks: dict[int, Any] = {s.index: output.add_stream_from_template(s) for s in file.streams}
        text: Any = output.add_stream_from_template(_ass(tmp_path))
        text.codec_context.extradata = ASS.replace("\n", end).encode()
        for packet in file.demux():
            if packet.size:
                packet.stream = tracks[packet.stream_index]
                output.mux(packet)
        line = av.Packet(b"0,0,Default,,0,0,0,,Guten Tag")
        line.stream, line.time_base, line.pts, line.dts, line.duration = text, Fraction(1, 1000), 20, 20, 100
        output.mux(line)
    assert SECRET.encode() in source.read_bytes()
    target = rewrite(source, tmp_path)
    assert SECRET.encode() not in target.read_bytes()
    was, now = survey(source), survey(target)
    assert now.tracks[1]["header"] == BARE_ASS
    assert now.tracks[1]["packets"] == was.tracks[1]["packets"]
    assert len(now.tracks[1]["packets"]) == 1


def test_handlers_are_no_names(tmp_path: Path) -> None:
    source = made("plain", tmp_path)
    data = source.read_bytes()
    assert data.count(b"SoundHandler") == 1
    source.write_bytes(data.replace(b"SoundHandler", b"GoPro AAC 12"))
    target = rewrite(source, tmp_path)
    assert b"GoPro" not in target.read_bytes()
    source.write_bytes(data.replace(b"SoundHandler", b"STEREO\0\0\0\0\0\0"))
    assert survey(rewrite(source, tmp_path)).metadata["1 handler_name"] == "STEREO"


def _inside(data: bytes, start: int = 0) -> dict[bytes, list[tuple[int, int]]]:
    """Return where an MP4's boxes of each kind lie, from ``start`` on."""
    found: dict[bytes, list[tuple[int, int]]] = {}
    while start + 8 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        found.setdefault(data[start + 4 : start + 8], []).append((start, start + length))
        start += length
    return found


def _sound_locked(tmp_path: Path) -> Path:
    """Put the encrypted sound of one file beside the plain pictures of another."""
    locking = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
               "encryption_kid": "a7e61c373e219033c21091fa607bf3b8"}  # fmt: skip
    plain, locked = (make(Clip(muxing=how), tmp_path).read_bytes() for how in ({}, locking))
    ((start, stop),) = _inside(plain)[b"moov"]
    ((from_, to),) = _inside(locked)[b"mdat"]
    ((index, end),) = _inside(locked)[b"moov"]
    moov, other = plain[start:stop], locked[index:end]
    (_, video_end), (sound, sound_end) = _inside(moov, 8)[b"trak"][0], _inside(other, 8)[b"trak"][1]
    track = bytearray(other[sound:sound_end].replace(b"saio", b"free").replace(b"saiz", b"free"))
    at = track.index(b"stco") + 12
    for number in range(int.from_bytes(track[at - 4 : at], "big")):
        where = slice(at + 4 * number, at + 4 * number + 4)
        track[where] = (int.from_bytes(track[where], "big") + start - from_).to_bytes(4, "big")
    body = moov[8:video_end] + track
    path = tmp_path / "locked.mp4"
    path.write_bytes(plain[:start] + locked[from_:to] + (len(body) + 8).to_bytes(4, "big") + b"moov" + body)
    return path


def test_encrypted_sound_is_refused(tmp_path: Path) -> None:
    source = _sound_locked(tmp_path)
    with pytest.raises(InputError, match="its sound is encrypted; decrypt it first, or give --audio drop"):
        rewrite(source, tmp_path)
    assert len(survey(rewrite(source, tmp_path, keep_audio=False)).pts) == 12
