"""Properties of a video track: codec, geometry, color, timing."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
from av.sidedata.sidedata import Type as SideData
from av.stream import Stream

from blurguard.files.filetypes import ContainerFormat

_CODEC_LABELS = {
    "h264": "H.264", "hevc": "HEVC", "av1": "AV1", "vp8": "VP8", "vp9": "VP9", "mpeg4": "MPEG-4", "mjpeg": "MJPEG",
    "mpeg1video": "MPEG-1", "mpeg2video": "MPEG-2", "prores": "ProRes",
}  # fmt: skip

# Color volume of an HDR10 mastering display (SMPTE ST 2086): CIE 1931 (x, y) of the primaries "R", "G" and "B" and of
# the white point "WP". "L" is (brightest, darkest) in cd/m².
MasteringDisplay: TypeAlias = Mapping[str, tuple[Fraction, Fraction]]


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Properties of a video track, from its container and its first decoded frame.

    Attributes:
        index_first: whether an MP4's index precedes its data, for streaming.
        stream_index: of the track in the file.
        codec: FFmpeg's name, e.g. ``"hevc"``.
        codec_tag: its four characters in the container, e.g. ``"hvc1"``, or ``""``.
        width: as stored, px.
        height: as stored, px.
        pixel_format: FFmpeg's name, e.g. ``"yuv420p10le"``.
        pixel_aspect: width of a pixel divided by its height. None if the file has none.
        frame_bytes: size of a decoded frame.
        display_matrix: nine integers in FFmpeg's order, or None.
        color: FFmpeg's codes of range, primaries, transfer and matrix (ITU-T H.273).
        mastering: of HDR10, or None.
        content_light: of HDR10, as (MaxCLL, MaxFALL) in cd/m², or None.
        field_order: FFmpeg's number for the first field of interlaced frames.
        time_base: seconds per tick of a pts.
        rate: nominal frames per second.
        frames_expected: for progress. None if unknown.
    """

    path: Path
    container: ContainerFormat
    index_first: bool
    stream_index: int
    codec: str
    codec_tag: str
    profile: str
    width: int
    height: int
    pixel_format: str
    pixel_aspect: Fraction | None
    frame_bytes: int
    display_matrix: tuple[int, ...] | None
    color: tuple[int, int, int, int]
    mastering: MasteringDisplay | None
    content_light: tuple[int, int] | None
    interlaced: bool
    field_order: int
    time_base: Fraction
    rate: Fraction
    frames_expected: int | None

    @property
    def kind(self) -> str:
        """Container and codec for reports, e.g. ``"MP4 H.264"``."""
        return f"{self.container.label} {_CODEC_LABELS.get(self.codec, self.codec)}"

    @property
    def rotation(self) -> int:
        """Nearest rotation that turns a frame upright, in degrees counter-clockwise: 0, 90, 180 or 270.

        The display matrix may mirror as well, which does not matter for faces. It puts point (p, q) of a frame at
        height b p + d q, downwards (ISO/IEC 14496-12, 6.2.2).
        """
        if not self.display_matrix:
            return 0
        b, d = self.display_matrix[1], self.display_matrix[4]
        if abs(d) >= abs(b):
            return 0 if d >= 0 else 180
        return 270 if b > 0 else 90

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after rotation, px."""
        return (self.height, self.width) if self.rotation % 180 else (self.width, self.height)


def describe_video(
    path: Path, container: ContainerFormat, index_first: bool, stream: av.VideoStream, first: av.VideoFrame
) -> VideoInfo:
    """Return the properties of a stream whose first frame has been decoded."""
    side_data = _side_data_of(first)
    matrix, light = side_data.get(SideData.DISPLAYMATRIX), side_data.get(SideData.CONTENT_LIGHT_LEVEL)
    return VideoInfo(
        path=path, container=container, index_first=index_first, stream_index=stream.index,
        codec=codec_name(stream), codec_tag=_codec_tag(stream), profile=stream.codec_context.profile or "",
        width=first.width, height=first.height, pixel_format=first.format.name,
        pixel_aspect=stream.sample_aspect_ratio or None, frame_bytes=sum(plane.buffer_size for plane in first.planes),
        display_matrix=struct.unpack("=9i", matrix) if matrix else None,
        color=(first.color_range, first.color_primaries, first.color_trc, first.colorspace),
        mastering=_parse_mastering_display(side_data.get(SideData.MASTERING_DISPLAY_METADATA, b"")),
        content_light=struct.unpack_from("=2I", light) if light else None,
        interlaced=first.interlaced_frame, field_order=stream.codec_context.field_order,
        time_base=time_base_of(stream), rate=frame_rate_of(stream), frames_expected=_expected_frames(stream),
    )  # fmt: skip


def time_base_of(stream: av.VideoStream) -> Fraction:
    """Return the seconds per tick of a stream's timestamps."""
    return Fraction(stream.time_base or Fraction(1, 1000))


def frame_rate_of(stream: av.VideoStream) -> Fraction:
    """Return the nominal frames per second of a stream."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25)


def codec_name(stream: Stream) -> str:
    """Return FFmpeg's name of a stream's codec, not of its decoder: ``"av1"``, not ``"libdav1d"``."""
    context = stream.codec_context
    return str(context.codec.canonical_name) if context is not None else ""


def _codec_tag(stream: Stream) -> str:
    try:
        tag = str(stream.codec_context.codec_tag)
    except (AttributeError, UnicodeDecodeError):
        return ""
    return tag if tag.isprintable() else ""


def _expected_frames(stream: av.VideoStream) -> int | None:
    """Return the number of frames by the container's count, or estimated from its duration."""
    file: Any = stream.container
    tag = stream.metadata.get("NUMBER_OF_FRAMES", "")  # Matroska
    seconds = (stream.duration or 0) * time_base_of(stream) or Fraction(file.duration or 0, av.time_base)
    return stream.frames or (int(tag) if tag.isdecimal() else 0) or round(seconds * frame_rate_of(stream)) or None


def _parse_mastering_display(data: bytes) -> MasteringDisplay | None:
    """Parse FFmpeg's AVMasteringDisplayMetadata: ten rationals, then two flags for primaries and luminance."""
    if len(data) < 88 or struct.unpack_from("=2i", data, 80) != (1, 1):
        return None
    numbers = struct.unpack_from("=20i", data)
    if not all(numbers[1::2]):
        return None
    values = [Fraction(top, bottom) for top, bottom in zip(numbers[::2], numbers[1::2], strict=True)]
    points = {name: (values[at], values[at + 1]) for name, at in (("R", 0), ("G", 2), ("B", 4), ("WP", 6))}
    return points | {"L": (values[9], values[8])}


def _side_data_of(frame: av.VideoFrame) -> dict[SideData, bytes]:
    try:
        side_data: Any = frame.side_data
        return {item.type: bytes(item) for item in side_data}
    except ValueError:  # PyAV does not know one of the types, and then returns none. It still has the rotation.
        sine, cosine = {90: (1, 0), 180: (0, -1), -180: (0, -1), -90: (-1, 0)}.get(frame.rotation, (0, 1))
        a, b = cosine << 16, sine << 16  # 1.0 is 1 << 16 in a display matrix
        matrix = struct.pack("=9i", a, -b, 0, b, a, 0, 0, 0, 1 << 30)
        return {SideData.DISPLAYMATRIX: matrix} if sine or cosine < 0 else {}
