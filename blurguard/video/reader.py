"""Videos as frames in the order they are shown, each at its own time: whole, or an error that says what is wrong.

A file is opened by the demuxer that its signature names, and that demuxer may open nothing else: no probing, which
would follow playlists, no other protocol than ``file``, no references to other files. What a decoder conceals by
itself is found where a codec lets it be found: H.264, MPEG-4 and the like notice most damage; HEVC, VP8, VP9 and AV1
decode flipped bits to odd pictures without a word, and only what is missing is noticed there.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import av
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Discard, Disposition, Stream
from av.video.stream import VideoStream

from blurguard.errors import InputError
from blurguard.files.errors import read_errors
from blurguard.files.filetypes import PROBE_BYTES, ContainerFormat, sniff_container
from blurguard.video.color import ColorSpace, parse_mastering_display, rotation_of
from blurguard.video.structure import check_complete

# As strict as libavcodec can be without refusing what it decodes well ("compliant", "aggressive" would).
_ERR_DETECT = "crccheck+bitstream+buffer+explode"
# One packet is one shown frame: a packet without its frame has been lost.
_ONE_FRAME_PER_PACKET = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mjpeg", "prores", "ffv1"})
_CODEC_LABELS = {
    "h264": "H.264", "hevc": "HEVC", "av1": "AV1", "vp8": "VP8", "vp9": "VP9", "mpeg4": "MPEG-4", "mjpeg": "MJPEG",
    "mpeg1video": "MPEG-1", "mpeg2video": "MPEG-2", "prores": "ProRes",
}  # fmt: skip
_ONE = 1 << 16  # of a display matrix

VideoPacket: TypeAlias = "av.Packet[VideoStream]"


class VideoReader:
    """One video track, opened; made by ``open_video``, to be closed, by ``with``.

    Attributes:
        path: the file.
        family: the container.
        codec: FFmpeg's name of the codec, e.g. ``"hevc"``.
        codec_tag: its four characters in the container, e.g. ``"hvc1"``, or ``""``.
        profile: of the codec, or None.
        kind: for reports, e.g. ``"MP4 H.264"``.
        index: of the track in the file.
        width, height: px as stored, before any rotation.
        matrix: the display matrix, nine integers as FFmpeg has them, or None.
        rotation: degrees counter-clockwise by which a frame is turned to stand upright: 0, 90, 180 or 270, the
            nearest. A matrix may mirror as well, which changes nothing for faces.
        pixel_aspect: width of a pixel divided by its height, or None when not told.
        frame_bytes: of a decoded frame.
        time_base: seconds per tick of ``pts``.
        rate: frames per second, as far as can be told beforehand.
        frames_expected, seconds_expected: for progress; None when not known.
        pixel_format: FFmpeg's name, e.g. ``"yuv420p10le"``.
        colour: see ``ColorSpace``.
        mastering, content_light: of HDR10; (MaxCLL, MaxFALL) in cd/m²; None when not told.
        interlaced, field_order: whether frames are two fields; FFmpeg's number for which of them is first.
        index_first: whether an MP4's index precedes its data, for streaming.
        end: when the last frame's time is over, in ticks; 0 until all frames have been read.
        lost: what is missing or damaged, as a sentence, when salvaging; ``""`` when nothing is. Final at the end.
    """

    def __init__(
        self, path: Path, container_format: ContainerFormat, max_pixels: int, threads: int, salvage: bool
    ) -> None:
        self.path, self._max_pixels, self._salvage = path, max_pixels, salvage
        self.family, self.damage, self.end = container_format, "", 0
        self._damaged = self._duration = self._read = 0
        self._pending_pts: set[int] = set()  # pts of packets whose frames have not come out yet
        self._shown: tuple[int, int, bool] | None = None  # the last frame's pts, the gap before it, if interlaced
        self._begin: int | None = None
        self._last: int | None = None
        missing, self.index_first = check_complete(path, container_format)
        if missing:
            self.report_damage(missing)
        self._container = open_container(path, container_format)
        try:
            self._stream = self._select_stream()
            self._describe_stream(threads)
            self._frames = self._decode()
            first = next(self._frames, None)
            if first is None:
                raise InputError(f"{path}: not one frame could be decoded; get a complete copy")
            self._describe_frame(first)
            self._first: av.VideoFrame | None = first
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; no thread may be inside ``frames`` any more."""
        with suppress(ValueError):  # a generator that runs elsewhere; its owner breaks the rule, not the file
            self._frames.close()
        self._first = None
        self._container.close()

    def frames(self) -> Generator[av.VideoFrame, None, None]:
        """Yield all frames once, as they are shown, with rising ``pts`` in ticks of ``time_base``.

        Raises:
            InputError: the file is damaged or ends early, unless salvaging; it changes its size or format;
                its times run backwards.
        """
        first, self._first = self._first, None
        if first is not None:
            yield first
            del first  # a frame of 4K is 12 MB, and it is the caller's now
        yield from self._frames

    def report_damage(self, what: str) -> None:
        """Note a loss when salvaging.

        Raises:
            InputError: when not.
        """
        if not self._salvage:
            raise InputError(f"{self.path}: {what}; get a complete copy, or give --salvage to take what is there")
        if not self.damage:
            self.damage = what

    def _select_stream(self) -> VideoStream:
        """Return the one track with moving pictures; the others are not read.

        Raises:
            InputError: there is none, or more than one: each may show faces, and one of them is written.
        """
        covers = Disposition.attached_pic | Disposition.timed_thumbnails
        found = [stream for stream in self._container.streams.video if not stream.disposition & covers]
        if not found:
            raise InputError(f"{self.path}: has no video; nothing to hide")
        if len(found) > 1:
            raise InputError(
                f"{self.path}: has {len(found)} video tracks, and each may show faces; "
                "put each into a file of its own, with its audio"
            )
        for stream in self._container.streams:
            stream.discard = Discard.default if stream is found[0] else Discard.all
        return found[0]

    def _describe_stream(self, threads: int) -> None:
        """Take what the container tells, and set the decoder up."""
        stream, context = self._stream, self._stream.codec_context
        if context is None:
            raise InputError(f"{self.path}: its video codec is not supported; convert it to H.264")
        if context.width * context.height > self._max_pixels:
            raise InputError(f"{self.path}: {context.width} x {context.height} px is larger than --max-pixels allows")
        if "alpha_mode" in stream.metadata:  # the alpha plane is a second video inside the packets
            raise InputError(
                f"{self.path}: video with transparency in {self.family.label} is not supported; flatten it"
            )
        self.codec, self.index = codec_name(stream), stream.index
        self.codec_tag, self.profile = codec_tag(stream), context.profile
        self.kind = f"{self.family.label} {_CODEC_LABELS.get(self.codec, self.codec)}"
        self.time_base = Fraction(stream.time_base or Fraction(1, 1000))
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self._usual = max(1, round(1 / (self.rate * self.time_base)))  # ticks from frame to frame
        length = self._container.duration
        ticks = stream.duration
        self.seconds_expected = float(ticks * self.time_base) if ticks else length / av.time_base if length else None
        told = stream.frames or _number(stream.metadata.get("NUMBER_OF_FRAMES"))
        estimate = round(self.seconds_expected * self.rate) if self.seconds_expected else 0
        self.frames_expected = told or estimate or None
        context.thread_count, context.thread_type = threads, "AUTO"
        context.options = {"err_detect": _ERR_DETECT, "max_pixels": str(self._max_pixels)}

    def _describe_frame(self, frame: av.VideoFrame) -> None:
        """Take what only a decoded frame tells."""
        self.width, self.height, self.pixel_format = frame.width, frame.height, frame.format.name
        self.color = ColorSpace(frame.color_range, frame.color_primaries, frame.color_trc, frame.colorspace)
        self.frame_bytes = sum(plane.buffer_size for plane in frame.planes)
        self.pixel_aspect = self._stream.sample_aspect_ratio or None
        self.interlaced, self.field_order = frame.interlaced_frame, self._stream.codec_context.field_order
        told = _side_data_of(frame)
        self.matrix = struct.unpack("=9i", told[SideData.DISPLAYMATRIX]) if SideData.DISPLAYMATRIX in told else None
        self.rotation = rotation_of(self.matrix) if self.matrix else 0
        self.mastering = parse_mastering_display(told.get(SideData.MASTERING_DISPLAY_METADATA, b""))
        light = told.get(SideData.CONTENT_LIGHT_LEVEL)
        self.content_light = struct.unpack_from("=2I", light) if light else None

    def _decode(self) -> Generator[av.VideoFrame, None, None]:
        """Yield frames that have been checked."""
        stream = self._stream
        with closing(self._packets()) as packets:
            for packet in packets:
                yield from self._decode_packet(packet, stream)
        yield from self._decode_packet(None, stream)
        self._match_field(None, False)
        begin = self._begin
        missing = sum(pts > begin for pts in self._pending_pts) if begin is not None else 0
        if self.family.demuxer == "mov":  # whose index says how many there are
            missing = max(missing, len(stream.index_entries) - self._read)
        if missing:
            self._damaged += missing
            self.report_damage(f"{missing} frames could not be decoded, or are not there")
        self._set_end()
        if self._damaged:
            self.damage += f"{'; ' if self.damage else ''}{self._damaged} frames damaged or missing"

    def _set_end(self) -> None:
        """Note when the last frame ends: an MP4 with B-frames tells it for the whole track only."""
        stream, last = self._stream, self._last or 0
        self.end = last + self._duration
        if self.family.demuxer == "mov" and not self.damage and stream.duration:
            told = (stream.start_time or 0) + stream.duration
            self.end = told if told > last else self.end

    def _packets(self) -> Generator[VideoPacket, None, None]:
        """Yield the track's packets; one that the demuxer knows to be damaged, only when salvaging."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.report_damage(f"cannot be read to its end: {error.strerror}")
                return
            self._read += packet.pts is not None
            if not packet.size:  # a frame that AVI says to show again, or the demuxer's mark for the end
                continue
            if packet.has_sidedata("encryption_info"):
                raise InputError(f"{self.path}: is encrypted; decrypt it first")
            if packet.is_corrupt:
                self._count_damage("is damaged or ends early", packet.pts)
            yield packet

    def _decode_packet(self, packet: VideoPacket | None, stream: VideoStream) -> Iterator[av.VideoFrame]:
        """Decode one packet, or what is left after the last; yield its frames, checked and timed."""
        if packet is not None and packet.pts is not None and not packet.is_discard and self._is_shown(packet):
            self._pending_pts.add(packet.pts)
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:
            self._count_damage("is damaged", None if packet is None else packet.pts)
            return
        for frame in frames:
            frame.time_base = self.time_base
            if frame.is_corrupt:
                self._count_damage("is damaged", frame.pts)
            if frame.pts is not None:
                self._pending_pts.discard(frame.pts)
                self._begin = frame.pts if self._begin is None else self._begin
                self._match_field(frame.pts, frame.interlaced_frame)
            self._check_same(frame)
            self._set_time(frame)
            yield frame

    def _match_field(self, pts: int | None, interlaced: bool) -> None:
        """Take the last frame's second field for received: it may be a packet of its own, half a frame later."""
        gap = 0
        if self._shown is not None:
            last, before, fields = self._shown
            gap = pts - last if pts is not None else 0
            step = before if before > 0 else gap if gap > 0 else self._usual
            if fields:
                self._pending_pts -= {due for due in self._pending_pts if 0 < 4 * (due - last) <= 3 * step}
        if pts is not None:
            self._shown = pts, gap, interlaced

    def _is_shown(self, packet: VideoPacket) -> bool:
        """Whether a packet has a frame to show: VP8 says so in its fourth bit (RFC 6386, 9.1)."""
        return self.codec in _ONE_FRAME_PER_PACKET and (self.codec != "vp8" or bool(memoryview(packet)[0] & 0x10))

    def _count_damage(self, what: str, pts: int | None) -> None:
        where = f" at {float(pts * self.time_base):.2f} s" if pts is not None else ""
        self._damaged += 1
        self.report_damage(what + where)

    def _check_same(self, frame: av.VideoFrame) -> None:
        """Raise ``InputError`` when a frame is not of the first one's kind: no encoder can follow that."""
        if self._last is None:
            return
        was, now = (
            (self.width, self.height, self.pixel_format),
            (frame.width, frame.height, frame.format.name),
        )
        second = float((frame.pts or self._last) * self.time_base)
        if frame.interlaced_frame and not self.interlaced:  # the other way round nothing is lost
            raise InputError(
                f"{self.path}: changes from progressive to interlaced at {second:.2f} s; "
                "cut it there into two files, or deinterlace it first"
            )
        if was != now:
            raise InputError(
                f"{self.path}: changes from {was[0]} x {was[1]} {was[2]} to {now[0]} x {now[1]} {now[2]} "
                f"at {second:.2f} s; cut it there into two files"
            )

    def _set_time(self, frame: av.VideoFrame) -> None:
        """Give a frame a time when it has none, and move one that does not follow the frame before by a tick.

        Raises:
            InputError: the times run backwards by more than a frame.
        """
        usual = self._usual
        frame.duration = self._duration = frame.duration if frame.duration > 0 else usual
        pts = frame.pts if frame.pts is not None else frame.dts
        if self._last is not None:
            if pts is None:
                pts = self._last + usual
            elif self._last - pts > usual:
                raise InputError(
                    f"{self.path}: its times run backwards at {float(self._last * self.time_base):.2f} s; "
                    "it was joined from several; write its times anew first, for example with a video editor"
                )
            pts = max(pts, self._last + 1)
        frame.pts = self._last = pts or 0


def open_video(path: Path, *, max_pixels: int, threads: int = 0, salvage: bool = False) -> VideoReader:
    """Return the file's video track, opened and its first frame decoded.

    Args:
        path: the file.
        max_pixels: width times height that is refused above, px.
        threads: of the decoder; 0 for one per core.
        salvage: whether what decodes of a damaged or truncated file is wanted; ``damage`` tells what is missing.

    Raises:
        InputError: empty, truncated, damaged, encrypted, too large, without video or with several, or of a kind
            that is not supported.
    """
    with read_errors(path), path.open("rb") as file:
        head = file.read(PROBE_BYTES)
    if not head:
        raise InputError(f"{path}: is empty; get a complete copy")
    family = sniff_container(head)
    if family is None:
        raise InputError(f"{path}: this kind of video file is not supported; convert it to MP4 or Matroska")
    return VideoReader(path, family, max_pixels, threads, salvage)


def open_container(path: Path, family: ContainerFormat) -> InputContainer:
    """Return a file, opened by its family's demuxer and shut in: it can make FFmpeg read nothing else.

    Raises:
        InputError: it cannot be read as what it claims to be.
    """
    closed = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi,flv"}
    try:
        return av.open(
            f"file:{path.absolute()}", format=family.demuxer, container_options=closed, metadata_errors="replace"
        )
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as {family.label}; it is damaged or ends early") from error


def codec_name(stream: Stream) -> str:
    """Return FFmpeg's name of a track's codec, not of its decoder: ``"av1"``, not ``"libdav1d"``."""
    context = stream.codec_context
    return str(context.codec.canonical_name) if context is not None else ""


def codec_tag(stream: Stream) -> str:
    """Return the four characters that name the codec in the container; ``""`` when they are none."""
    try:
        tag = str(stream.codec_context.codec_tag)
    except (AttributeError, UnicodeDecodeError):
        return ""
    return tag if tag.isprintable() else ""


def _side_data_of(frame: av.VideoFrame) -> dict[SideData, bytes]:
    """Return what came with a frame besides its pixels."""
    try:
        every: Any = frame.side_data
        return {data.type: bytes(data) for data in every}
    except ValueError:  # PyAV does not know one of the types, and then gives none of them; the rotation it does
        sine, cosine = {90: (1, 0), 180: (0, -1), -180: (0, -1), -90: (-1, 0)}.get(frame.rotation, (0, 1))
        matrix = struct.pack("=9i", cosine * _ONE, -sine * _ONE, 0, sine * _ONE, cosine * _ONE, 0, 0, 0, 1 << 30)
        return {SideData.DISPLAYMATRIX: matrix} if sine or cosine < 0 else {}


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
