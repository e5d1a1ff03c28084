"""Writes a video again: hidden frames through the encoder, every other track copied packet by packet, in sync.

Only one file is written, and nothing reaches it that was not handed over as a frame or copied by ``copies``.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
from av.codec.context import Flags as CodecFlags
from av.container import OutputContainer
from av.container.core import Flags as ContainerFlags
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from av.video.frame import PictureType
from av.video.stream import VideoStream

from blurguard.errors import InputError, OutputError
from blurguard.files.errors import os_errors
from blurguard.files.filetypes import M2TS
from blurguard.video.encoders import encoder_for, encoder_time_base
from blurguard.video.passthrough import StreamCopier, allowed_metadata, allowed_texts
from blurguard.video.reader import VideoReader

os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 prints its settings to the terminal otherwise
_BITEXACT = int(ContainerFlags.bitexact.value)  # type: ignore[call-overload]  # no versions, no random numbers
_BUFFER_BYTES = 1 << 18
# What may come with a frame: captions, how it is shown, and what no encoder of ours writes. The rest goes, above all
# colour profiles and Exif data.
_MAY_STAY = frozenset(
    {
        SideData.A53_CC, SideData.AFD, SideData.PANSCAN, SideData.STEREO3D, SideData.DISPLAYMATRIX,
        SideData.MASTERING_DISPLAY_METADATA, SideData.CONTENT_LIGHT_LEVEL, SideData.DYNAMIC_HDR_PLUS,
        SideData.MOTION_VECTORS, SideData.REGIONS_OF_INTEREST, SideData.SEI_UNREGISTERED, SideData.GOP_TIMECODE,
        SideData.S12M_TIMECODE,
    }
)  # fmt: skip
# These write nothing of it but captions. To look at a frame's side data ties the frame to it in a circle, and keeps
# megabytes alive until Python happens to look for circles: so nobody looks, and the others' frames are all stripped.
_WRITE_PIXELS_ONLY = frozenset({"libx264", "libx265", "libvpx", "libvpx-vp9", "libsvtav1"})
_MAX_CACHED_FILTERS = 128  # of side data; FFmpeg 8 has 32


class VideoWriter:
    """Writes one video. To be used in a ``with``: what ends in an error is closed as it is, for the caller to delete.

    Attributes:
        left_out: what of the source could not be copied, a phrase for each track; data tracks and cover
            pictures, which always stay behind, are not among them.
    """

    def __init__(
        self, video: VideoReader, path: Path, *, keep_audio: bool = True, keep_metadata: bool = False, threads: int = 0,
        quick: bool = False,
    ) -> None:  # fmt: skip
        """Open everything; ``path``, which exists and is empty, is the only file that is written.

        Args:
            video: what is written; its frames are given to ``write``.
            path: of the result.
            keep_audio: whether the audio tracks are copied.
            keep_metadata: whether capture time and camera are copied.
            threads: of the encoder; 0 for one per core.
            quick: whether time matters more than size.

        Raises:
            InputError: the video cannot be written as it is.
            OutputError: ``path`` cannot be written to.
        """
        self._video, self._path, self._threads = video, path, threads
        self._times: dict[int, tuple[int, int]] = {}  # the encoder's pts -> (pts, duration) in the video's ticks
        self._encoder = encoder_for(video, threads, quick)
        self._clock = encoder_time_base(self._encoder, video)
        self._written = self._begin = self._end = 0  # frames; first time and end of the last frame, ticks
        self._waiting: av.VideoFrame | None = None
        self._held: av.Packet[VideoStream] | None = None
        self._first_dts: int | None = None
        self._copies, self._strip = StreamCopier(video, keep_audio), SideDataFilter()
        try:
            with os_errors(path):
                self._file = _FullWriteFile(path)
            try:
                self._output = self._open(keep_metadata)
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            self._copies.close()
            raise
        self.left_out = tuple(self._copies.left_out)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._abandon()

    def write(self, frame: av.VideoFrame) -> None:
        """Encode a frame, whose time is kept to the tick; it belongs to the encoder from now on.

        Raises:
            OutputError: disk full, not writable, or the encoder failed.
        """
        waiting, self._waiting = self._waiting, frame
        if waiting is not None:  # how long it is shown is known now
            self._write(waiting, (frame.pts or 0) - (waiting.pts or 0))

    def _write(self, frame: av.VideoFrame, duration: int) -> None:
        """Encode a frame that is shown for ``duration`` ticks."""
        pts = frame.pts or 0
        if self._encoder.name not in _WRITE_PIXELS_ONLY:
            frame = self._strip.strip(frame)
        frame.pict_type = PictureType.NONE  # the encoder's to choose, not to take over
        frame.pts = self._written if self._encoder.fixed_rate else pts
        frame.time_base = self._clock
        self._times[frame.pts] = pts, duration
        self._begin = self._begin if self._written else pts
        self._end = pts + duration
        self._written += 1
        self._encode(frame)

    def close(self) -> None:
        """Write everything that is left, and finish the file.

        Raises:
            OutputError: disk full, or not writable; the file is not whole then.
        """
        try:
            last, self._waiting = self._waiting, None
            if last is None:
                raise OutputError(f"{self._path}: no frame was written")
            left = self._video.end - (last.pts or 0)
            self._write(last, left if left > 0 else last.duration)
            self._encode(None)
            if self._times:
                raise OutputError(f"{self._path}: the encoder lost {len(self._times)} frames")
            with self._errors():
                self._mux_last()
                self._copies.copy_until(None, self._output)
                self._output.close()
                self._file.close()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Let go of everything, without finishing the file."""
        with contextlib.suppress(OSError):
            self._file.close()  # first: PyAV finishes only what is open
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._output.close()
        self._copies.close()

    def _open(self, keep_metadata: bool) -> OutputContainer:
        """Return the result's container with all its tracks; its header is written with the first packet."""
        video, copies = self._video, self._copies
        output = av.open(
            self._file, "w", format=video.family.muxer, container_options=_muxer_options(video, keep_metadata),
            buffer_size=_BUFFER_BYTES,
        )  # fmt: skip
        output.flags |= _BITEXACT
        self._stream = self._add_video(output)
        twin = copies.container.streams[video.index]
        self._stream.disposition = twin.disposition
        self._stream.metadata.update(allowed_texts(twin.metadata, ("language",)))
        copies.add_to(output)
        output.set_chapters(copies.chapters())
        if keep_metadata:
            output.metadata.update(allowed_metadata(copies.container.metadata))
        return output

    def _add_video(self, output: OutputContainer) -> VideoStream:
        """Add the encoder's track, opened.

        Raises:
            InputError: the encoder cannot write this size or pixel format.
        """
        video, encoder = self._video, self._encoder
        known = {pixel_format.name for pixel_format in av.Codec(encoder.name, "w").video_formats or []}
        if video.pixel_format not in known:
            raise InputError(
                f"{video.path}: {video.kind} with pixels of {video.pixel_format} cannot be written; "
                "convert it to H.264 or HEVC"
            )
        try:
            stream = output.add_stream(encoder.name, rate=video.rate, options=dict(encoder.options))
            assert isinstance(stream, VideoStream)  # noqa: S101 - for the type checker; every encoder of ours is one
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = video.width, video.height, video.pixel_format
            context.time_base, stream.time_base = self._clock, video.time_base
            context.color_range, context.color_primaries, context.color_trc, context.colorspace = video.color
            if video.pixel_aspect:
                context.sample_aspect_ratio = video.pixel_aspect
            context.flags |= int(CodecFlags.bitexact)
            if video.interlaced:
                context.flags |= int(CodecFlags.interlaced_dct) | int(CodecFlags.interlaced_me)
                context.field_order = video.field_order
            if video.codec == "hevc" and video.codec_tag in ("hvc1", "hev1"):
                context.codec_tag = video.codec_tag
            if video.matrix:
                stream.set_display_matrix(video.matrix)
            context.thread_count = self._threads
            context.open()
        except (av.FFmpegError, ValueError) as error:
            raise InputError(
                f"{video.path}: {video.kind} of {video.width} x {video.height} px cannot be written: {error}; "
                "convert it to H.264 in MP4 or Matroska"
            ) from error
        return stream

    def _encode(self, frame: av.VideoFrame | None) -> None:
        try:
            packets = self._stream.encode(frame)
        except (av.FFmpegError, MemoryError) as error:
            raise OutputError(f"{self._path}: the encoder failed: {error}") from error
        with self._errors():
            for packet in packets:
                self._mux(packet)

    def _mux(self, packet: av.Packet[VideoStream]) -> None:
        """Write the packet before this one, at its frame's time, after everything that belongs before it."""
        packet.pts, packet.duration = self._times.pop(packet.pts or 0)
        if packet.dts is None or self._encoder.fixed_rate:  # those that count do not reorder
            packet.dts = packet.pts
        packet.time_base = self._video.time_base
        if self._first_dts is None:
            self._first_dts = packet.dts
        self._mux_held()
        self._held = packet

    def _mux_held(self) -> None:
        packet, self._held = self._held, None
        if packet is not None:
            self._copies.copy_until((packet.dts or 0) * packet.time_base, self._output)
            self._output.mux(packet)

    def _mux_last(self) -> None:
        """Write the last packet so that an MP4's track ends with its last frame.

        Its durations are told in the order of decoding: the last packet's time may be moved towards its frame's.
        """
        last, first = self._held, self._first_dts or 0
        if last is not None and self._video.family.demuxer == "mov":
            last.dts = max(last.dts or 0, first + (last.pts or 0) - self._begin)
            last.duration = max(1, first + self._end - self._begin - last.dts)
        self._mux_held()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what goes wrong while writing into ``OutputError``."""
        try:
            with os_errors(self._path):
                yield
        except (av.FFmpegError, KeyError, ValueError) as error:
            raise OutputError(f"{self._path}: cannot write: {error}") from error


class SideDataFilter:
    """Takes from frames what comes with them besides their pixels; the pixels are not copied."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def strip(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return another frame on the same pixels, with nothing but what may stay."""
        if self._graph is None:
            self._graph = self._build(frame)
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _build(self, frame: av.VideoFrame) -> Graph:
        """Return the filters, one for each kind that goes, known to PyAV or not."""
        graph = Graph()
        stays: set[Any] = {kind.value for kind in _MAY_STAY}
        goes = [kind for kind in range(_MAX_CACHED_FILTERS) if kind not in stays]
        chain = [
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
            ),
            *(graph.add("sidedata", f"mode=delete:type={kind}") for kind in goes),
            graph.add("metadata", "mode=delete"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*chain).configure()
        return graph


class _FullWriteFile(io.FileIO):
    """A file as a muxer wants it: a write is whole or an error, where the system may take a part and stop."""

    def __init__(self, path: Path) -> None:
        # An absolute name, with which FFmpeg can open it again: to put an MP4's index first it reads the data back.
        # "w" empties a file that is there, and leaves its permissions as they are.
        super().__init__(path.absolute(), "w")

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return done


def _muxer_options(video: VideoReader, keep_metadata: bool) -> dict[str, str]:
    """Return what the muxer is told besides its tracks."""
    options: dict[str, str] = {}
    if video.family.demuxer == "mov":
        flags = ["faststart"] if video.index_first else []
        flags += ["use_metadata_tags"] if keep_metadata else []
        options = {"movflags": "+".join(["", *flags])} if flags else {}
    elif video.family.demuxer == "mpegts":
        options = {"mpegts_copyts": "1", "mpegts_m2ts_mode": str(int(video.family is M2TS))}
    return options
