"""Small videos of every kind, made with PyAV: a moving picture, and whatever else the kind is about."""

import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import Flags
from av.stream import Disposition
from PIL import Image

os.environ.setdefault("SVT_LOG", "0")  # that encoder prints to the terminal otherwise
RATE = 25
TICKS = Fraction(1, 12_800)
STEP = 512  # ticks per frame: 25 frames a second
FRAMES = 12
BRANDS = {
    "mp4": ".mp4",
    "mov": ".mov",
    "matroska": ".mkv",
    "webm": ".webm",
    "mpegts": ".ts",
    "avi": ".avi",
    "flv": ".flv",
}
TURNED = {
    "right": (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    "left": (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
    "over": (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
    "mirrored": (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
    "transposed": (0, 65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
}
GPS = "+48.1372+011.5755/"
SECRET = "SERIAL-0815"  # noqa: S105 - a serial number, to be found nowhere


@dataclass(frozen=True)
class Track:
    """An audio track: codec, language, title and disposition; ``start`` in seconds."""

    codec: str = "aac"
    language: str = "eng"
    title: str = ""
    rate: int = 48_000
    disposition: int = int(Disposition.default)
    start: Fraction = Fraction(0)


@dataclass(frozen=True)
class Clip:
    """What a video is made of; ``times`` in ticks of ``time_base``."""

    muxer: str = "mp4"
    codec: str = "libx264"
    pixels: str = "yuv420p"
    size: tuple[int, int] = (96, 64)
    times: Sequence[int] = tuple(range(0, FRAMES * STEP, STEP))
    last: int = STEP  # duration of the last frame
    time_base: Fraction = TICKS
    options: dict[str, str] = field(default_factory=dict)
    muxing: dict[str, str] = field(default_factory=dict)
    matrix: tuple[int, ...] | None = None
    aspect: Fraction | None = None
    color: tuple[int, int, int, int] | None = None
    interlaced: bool = False
    tag: str = ""
    audio: tuple[Track, ...] = (Track(),)
    subtitles: bool = False
    chapters: bool = False
    attachments: bool = False
    data: bool = False
    videos: int = 1
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        return BRANDS[self.muxer]


def every(step: int, count: int = FRAMES, start: int = 0) -> tuple[int, ...]:
    return tuple(range(start, start + count * step, step))


_VFR = (0, 512, 1024, 1100, 1101, 2600, 3000, 4096, 5555, 6000, 6144, 9000)
_BARE: dict[str, Any] = {"audio": ()}
_MS: dict[str, Any] = {"time_base": Fraction(1, 1000), "times": every(40), "last": 40}
_NINETY: dict[str, Any] = {"time_base": Fraction(1, 90_000), "times": every(3600, start=126_000), "last": 3600}
_FIXED: dict[str, Any] = {"time_base": Fraction(1, RATE), "times": every(1), "last": 1}
_HDR10 = (
    "log-level=none:hdr10=1:max-cll=1000,400:"
    "master-display=G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,1)"
)
CLIPS = {
    "plain": Clip(),
    "b-frames": Clip(options={"bf": "3", "g": "6"}),
    "vfr": Clip(times=_VFR, last=700),
    "vfr-mkv": Clip("matroska", **_MS | {"times": (0, 40, 41, 90, 200, 201, 202, 500)}),
    "vfr-b-frames": Clip(times=_VFR, last=3000, options={"bf": "3"}),
    "late": Clip(times=every(STEP, start=8960)),
    "late-mkv": Clip("matroska", **_MS | {"times": every(40, start=700)}),
    "trimmed": Clip(times=every(STEP, start=-2 * STEP), options={"bf": "0"}, audio=()),
    "late-audio": Clip(audio=(Track(start=Fraction(3, 10)),)),
    "early-audio": Clip(audio=(Track(start=Fraction(-1024, 48_000)),)),
    "silent": Clip(audio=()),
    "one-frame": Clip(times=(0,), last=9000),
    "odd-444": Clip(pixels="yuv444p", size=(97, 63)),
    "ten-bit": Clip(pixels="yuv420p10le"),
    "four-two-two": Clip(pixels="yuv422p10le"),
    "full-range": Clip(pixels="yuvj420p", color=(2, 1, 1, 1)),
    "bt709": Clip(color=(1, 1, 1, 1)),
    "anamorphic": Clip(aspect=Fraction(16, 11)),
    "anamorphic-mkv": Clip("matroska", aspect=Fraction(16, 11), **_MS),
    "interlaced": Clip(size=(96, 96), interlaced=True),
    "fragmented": Clip(muxing={"movflags": "frag_keyframe+empty_moov"}, options={"g": "4"}),
    "index-first": Clip(muxing={"movflags": "faststart"}),
    "many": Clip(
        "matroska",
        audio=(Track(title="Original"), Track("libopus", "deu", "Kommentar", disposition=int(Disposition.comment))),
        subtitles=True,
        chapters=True,
        attachments=True,
        **_MS,
    ),
    "many-mp4": Clip(audio=(Track(), Track(language="fra", disposition=0)), subtitles=True, chapters=True),
    "tagged": Clip(
        metadata={
            "title": SECRET,
            "artist": SECRET,
            "comment": SECRET,
            "location": GPS,
            "make": "Maker",
            "model": "Mobile 7",
            "com.apple.quicktime.location.ISO6709": GPS,
            "creation_time": "2024-05-06T07:08:09.000000Z",
            "serial_number": SECRET,
        },
        muxing={"movflags": "use_metadata_tags"},
    ),
    "timecode": Clip("mov", metadata={"timecode": "01:02:03:04"}),
    "hevc10": Clip(codec="libx265", pixels="yuv420p10le", tag="hvc1", options={"x265-params": "log-level=none"}),
    "hev1": Clip(codec="libx265", tag="hev1", options={"x265-params": "log-level=none"}),
    "hdr10": Clip(
        codec="libx265", pixels="yuv420p10le", tag="hvc1", color=(1, 9, 16, 9), options={"x265-params": _HDR10}
    ),
    "hdr10-av1": Clip(
        codec="libsvtav1",
        pixels="yuv420p10le",
        color=(1, 9, 16, 9),
        audio=(),
        options={
            "svtav1-params": "mastering-display=G(0.17,0.797)B(0.131,0.046)R(0.708,0.292)WP(0.3127,0.329)"
            "L(1000,0.0001):content-light=1000,400"
        },
    ),
    "vp9": Clip("webm", "libvpx-vp9", audio=(Track("libopus"),), **_MS),
    "vp9-odd": Clip("webm", "libvpx-vp9", size=(75, 49), **_MS, **_BARE),
    "vp9-444": Clip("matroska", "libvpx-vp9", "yuv444p", **_MS, **_BARE),
    "vp8": Clip("webm", "libvpx", audio=(Track("libopus"),), **_MS),
    "av1": Clip("webm", "libsvtav1", audio=(Track("libopus"),), **_MS),
    "av1-mp4": Clip("mp4", "libsvtav1"),
    "mpeg4": Clip(codec="mpeg4", **_FIXED),
    "mpeg4-avi": Clip("avi", "mpeg4", audio=(Track("libmp3lame"),), **_FIXED),
    "mjpeg-avi": Clip("avi", "mjpeg", "yuvj420p", audio=(Track("pcm_s16le"),), **_FIXED),
    "mjpeg-mov": Clip("mov", "mjpeg", "yuvj422p", audio=(Track("pcm_s16le"),)),
    "h264-ts": Clip("mpegts", **_NINETY),
    "hevc-ts": Clip("mpegts", "libx265", options={"x265-params": "log-level=none"}, **_NINETY),
    "mpeg2-ts": Clip(
        "mpegts",
        "mpeg2video",
        audio=(Track("mp2"),),
        data=True,
        **_FIXED | {"times": every(1, start=35)},
        options={"bf": "2"},
    ),
    "m2ts": Clip("mpegts", muxing={"mpegts_m2ts_mode": "1"}, **_NINETY),
    "h264-flv": Clip("flv", options={"bf": "0"}, **_MS),
    "prores": Clip("mov", "prores_ks", "yuv422p10le", options={"profile": "lt"}, audio=(Track("pcm_s16le"),)),
    "ffv1": Clip("matroska", "ffv1", "yuv422p", options={"level": "3", "slicecrc": "1"}, audio=(Track("flac"),), **_MS),
    **{f"turned-{name}": Clip(matrix=matrix) for name, matrix in TURNED.items()},
    **{f"turned-{name}-mkv": Clip("matroska", matrix=matrix, **_MS, **_BARE) for name, matrix in TURNED.items()},
}


def make(clip: Clip, folder: Path, name: str = "clip") -> Path:
    """Write a clip into a folder; return its path."""
    path = folder / f"{name}{clip.suffix}"
    with av.open(str(path), "w", format=clip.muxer, container_options=clip.muxing) as output:
        output.metadata.update(clip.metadata)
        videos = [_video(output, clip) for _ in range(clip.videos)]
        audio = [_audio(output, track) for track in clip.audio]
        text = _subtitles(output, clip.muxer) if clip.subtitles else None
        data = output.add_data_stream("klv") if clip.data else None
        if clip.chapters:
            output.set_chapters(
                [
                    {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}},
                    {"id": 2, "start": 200, "end": 480, "time_base": Fraction(1, 1000), "metadata": {"title": "Two"}},
                ]
            )
        if clip.attachments:
            output.add_attachment("font.ttf", "application/x-truetype-font", b"\0\1\0\0" + bytes(range(200)))
            output.add_attachment("faces.ttf", "application/x-truetype-font", _jpeg())
            output.add_attachment("cover.jpg", "image/jpeg", _jpeg())
            output.add_attachment("notes.txt", "text/plain", SECRET.encode())
        packets = [packet for video in videos for packet in _pictures(video, clip)]
        for stream, track in zip(audio, clip.audio, strict=True):
            packets += _sound(stream, track, len(clip.times) / RATE)
        packets += _texts(text, clip.muxer) if text else []
        packets += _plain(data, [b"\x06\x0e+4" + GPS.encode()] * 3, 100) if data else []
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        output.mux(packets)
    return path


def made(name: str, folder: Path) -> Path:
    """Write the clip of that name into a folder."""
    return make(CLIPS[name], folder, name)


def picture(clip: Clip, number: int) -> av.VideoFrame:
    """Return a slope that moves, with a bright square on it, in the clip's own pixel format."""
    frame = av.VideoFrame(*clip.size, clip.pixels)
    white = (1 << frame.format.components[0].bits) - 1
    dtype = np.dtype(np.uint16 if white > 255 else np.uint8)
    for index, plane in enumerate(frame.planes):
        y, x = np.mgrid[: plane.height, : plane.width]
        values = (np.sin((x + 2 * number) / 9 + index) + np.cos((y - number) / 7)) / 5 + 0.5
        values[4:12, (4 + number) : (12 + number)] = 0.9 - 0.2 * index
        rows = np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)
        rows[:, : plane.width] = values * white
        plane.update(rows.tobytes())
    return frame


@functools.cache
def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot((64, 64), (-2, -2, 1, 2), 50).save(file, "JPEG")
    return file.getvalue()


def _video(output: Any, clip: Clip) -> Any:
    stream = output.add_stream(clip.codec, rate=RATE, options=dict(clip.options))
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = *clip.size, clip.pixels
    context.time_base = stream.time_base = clip.time_base
    context.thread_count = 1
    if clip.color:
        context.color_range, context.color_primaries, context.color_trc, context.colorspace = clip.color
    if clip.aspect:
        context.sample_aspect_ratio = clip.aspect
    if clip.interlaced:
        context.flags |= int(Flags.interlaced_dct | Flags.interlaced_me)
        context.field_order = 2  # top field first
    if clip.tag:
        context.codec_tag = clip.tag
    if clip.matrix:
        stream.set_display_matrix(clip.matrix)
    return stream


def _pictures(stream: Any, clip: Clip) -> list[Any]:
    follow = (*clip.times[1:], clip.times[-1] + clip.last)
    durations = {time: after - time for time, after in zip(clip.times, follow, strict=True)}
    packets = []
    for number, time in enumerate(clip.times):
        frame = picture(clip, number)
        frame.pts, frame.time_base = time, clip.time_base
        packets += stream.encode(frame)
    packets += stream.encode(None)
    for packet in packets:
        packet.duration = durations[packet.pts]
    return packets


def _audio(output: Any, track: Track) -> Any:
    vorbis = track.codec == "vorbis"  # FFmpeg's own encoder, which is not finished
    stream = output.add_stream(track.codec, rate=track.rate, options={"strict": "experimental"} if vorbis else {})
    stream.codec_context.layout = "stereo" if vorbis else "mono"
    stream.metadata.update({"language": track.language} | ({"title": track.title} if track.title else {}))
    stream.disposition = track.disposition
    return stream


def _sound(stream: Any, track: Track, seconds: float) -> list[Any]:
    context = stream.codec_context
    context.open()
    size = context.frame_size or 1024
    packets = []
    formats: dict[str, Any] = {
        "s16": np.int16,
        "s16p": np.int16,
        "s32p": np.int32,
        "flt": np.float32,
        "fltp": np.float32,
    }
    first = round(track.start * track.rate)
    for at in range(0, round(seconds * track.rate), size):
        wave = np.sin(np.arange(at, at + size) / (10 + stream.index)) * 0.3
        dtype = formats[context.format.name]
        samples = (wave * (1 if dtype is np.float32 else np.iinfo(dtype).max)).astype(dtype)[np.newaxis]
        samples = np.repeat(samples, context.layout.nb_channels, axis=0)  # in planes, where there are two
        frame = av.AudioFrame.from_ndarray(samples, context.format.name, context.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = track.rate, Fraction(1, track.rate), at + first
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]


def _subtitles(output: Any, muxer: str) -> Any:
    stream = output.add_mux_stream("mov_text" if muxer == "mp4" else "subrip")
    stream.time_base = Fraction(1, 1000)
    stream.metadata.update({"language": "deu", "title": "Untertitel"})
    stream.disposition = int(Disposition.forced)
    return stream


def _texts(stream: Any, muxer: str) -> list[Any]:
    texts = [text.encode() for text in ("Guten Tag", "Auf Wiedersehen")]
    if muxer == "mp4":
        texts = [len(text).to_bytes(2, "big") + text for text in texts]
    return _plain(stream, texts, 150)


def _plain(stream: Any, payloads: list[bytes], step: int) -> list[Any]:
    packets = []
    for number, payload in enumerate(payloads):
        packet = av.Packet(payload)
        packet.stream, packet.time_base = stream, Fraction(1, 1000)
        packet.pts = packet.dts = number * step + 20
        packet.duration = step
        packet.is_keyframe = True
        packets.append(packet)
    return packets
