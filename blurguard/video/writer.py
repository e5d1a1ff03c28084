"""Writes a video: redacted frames through the encoder, all other tracks copied packet by packet, in sync.

Only one file is written. It gets nothing but the frames passed to ``write`` and the packets of ``StreamCopier``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.container
from av.container.core import Flags as ContainerFlags
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from av.video.frame import PictureType

from blurguard.errors import OutputError
from blurguard.files.errors import os_errors
from blurguard.files.filetypes import M2TS
from blurguard.video.damage import VideoPacket
from blurguard.video.encoders import add_encoder, encoder_for, encoder_time_base
from blurguard.video.info import VideoInfo
from blurguard.video.passthrough import StreamCopier, allowed_metadata, allowed_texts
from blurguard.video.reader import VideoReader

_BUFFER_BYTES = 1 << 18
# Side data that a frame may keep: captions, display geometry, and types that our encoders never write. All other
# types are removed, above all color profiles and Exif data.
_ALLOWED_SIDE_DATA = frozenset({
    SideData.A53_CC, SideData.AFD, SideData.PANSCAN, SideData.STEREO3D, SideData.DISPLAYMATRIX,
    SideData.MASTERING_DISPLAY_METADATA, SideData.CONTENT_LIGHT_LEVEL, SideData.DYNAMIC_HDR_PLUS,
    SideData.MOTION_VECTORS, SideData.REGIONS_OF_INTEREST, SideData.SEI_UNREGISTERED, SideData.GOP_TIMECODE,
    SideData.S12M_TIMECODE,
})  # fmt: skip
_SIDE_DATA_TYPES = 128  # upper bound; FFmpeg 8 has 32


class VideoWriter:
    """Encoder and muxer of one video, as a context manager. After an error the file stays unfinished.

    Attributes:
        left_out: tracks that could not be copied, a phrase each. Data tracks and cover pictures, which are never
            copied, are not included.
    """

    def __init__(
        self, video: VideoReader, path: Path, *, keep_audio: bool = True, keep_metadata: bool = False, threads: int = 0,
        quick: bool = False,
    ) -> None:  # fmt: skip
        """Open the encoder, the muxer and the source of the copied tracks.

        Args:
            video: source. Its frames are passed to ``write``.
            path: result, the only file that is written. It exists and is empty.
            keep_audio: copy audio tracks.
            keep_metadata: copy capture time and camera model.
            threads: of the encoder. 0 means one per core.
            quick: prefer speed to size.

        Raises:
            InputError: the video cannot be written in its own format.
            OutputError: ``path`` cannot be written.
        """
        self._video, self._info, self._path, self._threads = video, video.info, path, threads
        self._encoder = encoder_for(self._info, threads, quick)
        self._encoder_time_base = encoder_time_base(self._encoder, self._info)
        self._side_data = SideDataFilter()
        self._times: dict[int, tuple[int, int]] = {}  # the encoder's pts -> (pts, duration) in the video's ticks
        self._frames_written = self._start = self._end = 0  # start and end of the encoded frames, ticks
        self._waiting_frame: av.VideoFrame | None = None  # its duration is not known yet
        self._waiting_packet: VideoPacket | None = None  # the last one of an MP4 is changed
        self._first_dts: int | None = None
        with contextlib.ExitStack() as on_error:
            self._copier = StreamCopier(video, keep_audio)
            on_error.callback(self._copier.close)
            with os_errors(path):
                self._file = _FullWriteFile(path)
            on_error.callback(self._file.close)
            self._output = self._open(keep_metadata)
            on_error.pop_all()
        self.left_out = tuple(self._copier.left_out)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._abandon()

    def write(self, frame: av.VideoFrame) -> None:
        """Encode a frame at its exact pts. The writer owns it from now on.

        Raises:
            OutputError: the disk is full or not writable, or the encoder failed.
        """
        previous, self._waiting_frame = self._waiting_frame, frame
        if previous is not None:
            self._encode_frame(previous, (frame.pts or 0) - (previous.pts or 0))

    def close(self) -> None:
        """Encode the last frame, copy the remaining packets and finish the file.

        Raises:
            OutputError: the disk is full or not writable, or the encoder failed. The file is unfinished then.
        """
        try:
            last, self._waiting_frame = self._waiting_frame, None
            if last is None:
                raise OutputError(f"{self._path}: no frame was written")
            remaining = self._video.end - (last.pts or 0)
            self._encode_frame(last, remaining if remaining > 0 else last.duration)
            self._encode(None)
            if self._times:
                raise OutputError(f"{self._path}: the encoder lost {len(self._times)} frames")
            with self._errors():
                self._mux_last()
                self._copier.copy_until(None, self._output)
                self._output.close()
                self._file.close()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Close everything without finishing the file."""
        with contextlib.suppress(OSError):
            self._file.close()  # first: PyAV writes a trailer only to an open file
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._output.close()
        self._copier.close()

    def _open(self, keep_metadata: bool) -> av.container.OutputContainer:
        """Return the output container with all its tracks. The first packet makes PyAV write its header."""
        info, copier = self._info, self._copier
        muxer, options = info.container.muxer, _muxer_options(info, keep_metadata)
        output = av.open(self._file, "w", format=muxer, container_options=options, buffer_size=_BUFFER_BYTES)
        output.flags |= int(ContainerFlags.bitexact.value)  # type: ignore[call-overload]  # no versions, no random numbers
        self._stream = add_encoder(output, self._encoder, info, self._threads)
        source = copier.container.streams[info.stream_index]
        self._stream.disposition = source.disposition
        self._stream.metadata.update(allowed_texts(source.metadata, ("language",)))
        copier.add_to(output)
        output.set_chapters(copier.chapters())
        if keep_metadata:
            output.metadata.update(allowed_metadata(copier.container.metadata))
        return output

    def _encode_frame(self, frame: av.VideoFrame, duration: int) -> None:
        """Encode a frame that is shown for ``duration`` ticks."""
        pts = frame.pts or 0
        # Reading side data ties a frame to it in a reference cycle, which keeps megabytes alive until the next garbage
        # collection. So side data is removed unread, and only for encoders that could write it.
        if not self._encoder.ignores_side_data:
            frame = self._side_data.strip(frame)
        frame.pict_type = PictureType.NONE  # the encoder chooses it, not the source
        frame.pts = self._frames_written if self._encoder.fixed_rate else pts
        frame.time_base = self._encoder_time_base
        self._times[frame.pts] = pts, duration
        self._start = self._start if self._frames_written else pts
        self._end = pts + duration
        self._frames_written += 1
        self._encode(frame)

    def _encode(self, frame: av.VideoFrame | None) -> None:
        try:
            packets = self._stream.encode(frame)
        except (av.FFmpegError, MemoryError) as error:
            raise OutputError(f"{self._path}: the encoder failed: {error}") from error
        with self._errors():
            for packet in packets:
                self._set_time(packet)
                self._mux_waiting()
                self._waiting_packet = packet

    def _set_time(self, packet: VideoPacket) -> None:
        """Give a packet the pts and duration of its frame, in the video's time base."""
        packet.pts, packet.duration = self._times.pop(packet.pts or 0)
        if packet.dts is None or self._encoder.fixed_rate:  # fixed-rate encoders do not reorder
            packet.dts = packet.pts
        packet.time_base = self._info.time_base
        self._first_dts = packet.dts if self._first_dts is None else self._first_dts

    def _mux_waiting(self) -> None:
        """Write the waiting packet, after all copied packets that precede it."""
        packet, self._waiting_packet = self._waiting_packet, None
        if packet is not None:
            self._copier.copy_until((packet.dts or 0) * packet.time_base, self._output)
            self._output.mux(packet)

    def _mux_last(self) -> None:
        """Write the last packet so that an MP4's track ends with its last frame.

        An MP4 has durations in decoding order, so the dts of the last packet may be moved towards its pts.
        """
        last, first = self._waiting_packet, self._first_dts or 0
        if last is not None and self._info.container.demuxer == "mov":
            last.dts = max(last.dts or 0, first + (last.pts or 0) - self._start)
            last.duration = max(1, first + self._end - self._start - last.dts)
        self._mux_waiting()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn write errors into ``OutputError``."""
        try:
            with os_errors(self._path):
                yield
        except (av.FFmpegError, KeyError, ValueError) as error:
            raise OutputError(f"{self._path}: cannot write: {error}") from error


class SideDataFilter:
    """Removes side data from frames by type, without copying or reading it."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def strip(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return a new frame that shares the pixels and has only allowed side data."""
        self._graph = self._graph or _deletion_graph(frame)
        self._graph.vpush(frame)
        return self._graph.vpull()


def _deletion_graph(frame: av.VideoFrame) -> Graph:
    """Return one filter for each type to remove, also for types unknown to PyAV."""
    graph, ticks = Graph(), frame.time_base or Fraction(1)
    removed = sorted(set(range(_SIDE_DATA_TYPES)) - {side_data.value for side_data in _ALLOWED_SIDE_DATA})
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=ticks)
    deletions = [graph.add("sidedata", f"mode=delete:type={number}") for number in removed]
    metadata, sink = graph.add("metadata", "mode=delete"), graph.add("buffersink")
    graph.link_nodes(source, *deletions, metadata, sink).configure()
    return graph


class _FullWriteFile(io.FileIO):
    """File whose ``write`` never returns short, as muxers require."""

    def __init__(self, path: Path) -> None:
        # To put an MP4's index first, FFmpeg opens the file again by this name, which must be absolute.
        # Mode "w" empties an existing file and keeps its permissions.
        super().__init__(path.absolute(), "w")

    def write(self, data: Any, /) -> int:
        view, done = memoryview(data), 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return done


def _muxer_options(info: VideoInfo, keep_metadata: bool) -> dict[str, str]:
    if info.container.demuxer == "mpegts":
        return {"mpegts_copyts": "1", "mpegts_m2ts_mode": str(int(info.container is M2TS))}
    flags = "+faststart" * info.index_first + "+use_metadata_tags" * keep_metadata
    return {"movflags": flags} if flags and info.container.demuxer == "mov" else {}
