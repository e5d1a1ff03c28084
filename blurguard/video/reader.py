"""Decodes the video track of a file, frame by frame. A damaged file is an error, or a reported loss with salvage.

A file is opened by the demuxer that its signature names, and this demuxer can open nothing else. There is no probing
(it would follow playlists), no protocol but ``file``, and no reference to other files.

Decoders conceal damage. H.264, MPEG-4 and similar codecs detect most of it. HEVC, VP8, VP9 and AV1 decode flipped
bits to wrong pixels without an error, so only missing frames are detected there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

import av.container
from av.stream import Discard, Disposition

from blurguard.errors import InputError
from blurguard.files.errors import read_errors
from blurguard.files.filetypes import PROBE_BYTES, ContainerFormat, sniff_container
from blurguard.video.damage import DamageLog, PendingFrames, VideoPacket
from blurguard.video.info import codec_name, describe_video, frame_rate_of, time_base_of
from blurguard.video.structure import check_complete

# The strictest flags that still accept everything libavcodec decodes well ("compliant" and "aggressive" do not).
_ERR_DETECT = "crccheck+bitstream+buffer+explode"
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,avi,flv"


class VideoReader:
    """Decoder of one video track, as a context manager. Made by ``open_video``.

    Attributes:
        info: properties of the track.
        damage: losses so far. Complete after the last frame.
        end: pts at which the last frame ends. 0 until all frames have been read.
    """

    def __init__(self, path: Path, container: ContainerFormat, max_pixels: int, threads: int, salvage: bool) -> None:
        self._path, self._format = path, container
        self.damage = DamageLog(path, salvage)
        self.end = self._duration = self._packets_read = 0
        self._last_pts: int | None = None
        problem, index_first = check_complete(path, container)
        if problem:
            self.damage.report(problem)
        self._container = open_container(path, container)
        try:
            self._stream = self._select_stream()
            self._set_up_decoder(max_pixels, threads)
            self._time_base = time_base_of(self._stream)
            self._frame_ticks = max(1, round(1 / (frame_rate_of(self._stream) * self._time_base)))
            self._pending = PendingFrames(codec_name(self._stream), self._frame_ticks)
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                raise InputError(f"{path}: not one frame could be decoded; get a complete copy")
            self.info = describe_video(path, container, index_first, self._stream, self._first)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. No thread may still be reading ``frames``."""
        with suppress(ValueError):  # another thread broke this rule and runs the generator
            self._frames.close()
        self._first = None
        self._container.close()

    def frames(self) -> Generator[av.VideoFrame, None, None]:
        """Yield all frames once, in display order, with rising ``pts`` in ticks of the time base.

        Raises:
            InputError: the file is damaged or truncated, without salvage. The size or format of frames changes.
                Timestamps run backwards.
        """
        first, self._first = self._first, None
        if first is not None:
            yield first
            del first  # a 4K frame takes 12 MB, and the caller owns it now
        yield from self._frames

    def _select_stream(self) -> av.VideoStream:
        """Return the only video track, and discard all other tracks.

        Raises:
            InputError: there is none, or more than one. Each may show faces, but only one is written.
        """
        covers = Disposition.attached_pic | Disposition.timed_thumbnails
        videos = [stream for stream in self._container.streams.video if not stream.disposition & covers]
        if not videos:
            raise InputError(f"{self._path}: has no video; nothing to hide")
        if len(videos) > 1:
            problem = f"has {len(videos)} video tracks, and each may show faces"
            raise InputError(f"{self._path}: {problem}; put each into a file of its own, with its audio")
        for stream in self._container.streams:
            stream.discard = Discard.default if stream is videos[0] else Discard.all
        return videos[0]

    def _set_up_decoder(self, max_pixels: int, threads: int) -> None:
        """Set limits and strictness of the decoder.

        Raises:
            InputError: the video cannot be decoded, or is too large.
        """
        context = self._stream.codec_context
        if context is None:
            raise InputError(f"{self._path}: its video codec is not supported; convert it to H.264")
        if context.width * context.height > max_pixels:
            raise InputError(f"{self._path}: {context.width} x {context.height} px is larger than --max-pixels allows")
        if "alpha_mode" in self._stream.metadata:  # the alpha plane is a second video inside the packets
            problem = f"video with transparency in {self._format.label} is not supported"
            raise InputError(f"{self._path}: {problem}; flatten it")
        context.thread_count, context.thread_type = threads, "AUTO"
        context.options = {"err_detect": _ERR_DETECT, "max_pixels": str(max_pixels)}

    def _decode(self) -> Generator[av.VideoFrame, None, None]:
        """Yield checked frames, then account for missing ones."""
        with closing(self._packets()) as packets:
            for packet in chain(packets, (None,)):
                yield from self._decode_packet(packet)
        missing = self._pending.count_missing()
        if self._format.demuxer == "mov":  # its index has the number of frames
            missing = max(missing, len(self._stream.index_entries) - self._packets_read)
        if missing:
            self.damage.report(f"{missing} frames could not be decoded, or are not there", frames=missing)
        self.end = self._end_pts()

    def _end_pts(self) -> int:
        """Return the end of the last frame. With B-frames an MP4 has it for the whole track only."""
        stream, last = self._stream, self._last_pts or 0
        if self._format.demuxer == "mov" and not self.damage.summary() and stream.duration:
            end = (stream.start_time or 0) + stream.duration
            if end > last:
                return end
        return last + self._duration

    def _packets(self) -> Generator[VideoPacket, None, None]:
        """Yield the track's packets, with salvage also those that the demuxer found damaged."""
        try:
            for packet in self._container.demux(self._stream):
                self._packets_read += packet.pts is not None
                if not packet.size:  # AVI's request to repeat a frame, or the demuxer's flush packet
                    continue
                if packet.has_sidedata("encryption_info"):
                    raise InputError(f"{self._path}: is encrypted; decrypt it first")
                if packet.is_corrupt:
                    self._report_frame("is damaged or ends early", packet.pts)
                yield packet
        except av.FFmpegError as error:
            self.damage.report(f"cannot be read to its end: {error.strerror}")

    def _decode_packet(self, packet: VideoPacket | None) -> Iterator[av.VideoFrame]:
        """Yield the frames of a packet, checked and with a pts. None flushes the decoder."""
        if packet is not None:
            self._pending.add(packet)
        try:
            frames = self._stream.decode(packet)
        except av.FFmpegError:
            self._report_frame("is damaged", None if packet is None else packet.pts)
            return
        for frame in frames:
            frame.time_base = self._time_base
            if frame.is_corrupt:
                self._report_frame("is damaged", frame.pts)
            if frame.pts is not None:
                self._pending.remove(frame.pts, frame.interlaced_frame)
            self._check_unchanged(frame)
            self._set_time(frame)
            yield frame

    def _report_frame(self, problem: str, pts: int | None) -> None:
        self.damage.report(problem if pts is None else f"{problem} {self._at(pts)}", frames=1)

    def _at(self, pts: int) -> str:
        return f"at {float(pts * self._time_base):.2f} s"

    def _check_unchanged(self, frame: av.VideoFrame) -> None:
        """Raise ``InputError`` if a frame differs in format from the first one. No encoder can follow that."""
        if self._last_pts is None:
            return
        info, at = self.info, self._at(frame.pts or self._last_pts)
        if frame.interlaced_frame and not info.interlaced:  # progressive frames in an interlaced video lose nothing
            problem = f"changes from progressive to interlaced {at}"
            raise InputError(f"{self._path}: {problem}; cut it there into two files, or deinterlace it first")
        before = f"{info.width} x {info.height} {info.pixel_format}"
        now = f"{frame.width} x {frame.height} {frame.format.name}"
        if now != before:
            raise InputError(f"{self._path}: changes from {before} to {now} {at}; cut it there into two files")

    def _set_time(self, frame: av.VideoFrame) -> None:
        """Give a frame a pts if it has none. Move one that does not follow the frame before by a tick.

        Raises:
            InputError: the times run backwards by more than a frame.
        """
        last = self._last_pts
        frame.duration = self._duration = frame.duration if frame.duration > 0 else self._frame_ticks
        pts = frame.pts if frame.pts is not None else frame.dts
        if last is not None:
            if pts is None:
                pts = last + self._frame_ticks
            elif last - pts > self._frame_ticks:
                problem = f"its timestamps run backwards {self._at(last)}, as in files joined from several"
                raise InputError(f"{self._path}: {problem}; export it anew first, for example with a video editor")
            pts = max(pts, last + 1)
        frame.pts = self._last_pts = pts or 0


def open_video(path: Path, *, max_pixels: int, threads: int = 0, salvage: bool = False) -> VideoReader:
    """Open a file's video track and decode its first frame.

    Args:
        path: the file.
        max_pixels: bound of width times height, px.
        threads: of the decoder. 0 means one per core.
        salvage: accept a damaged or truncated file. ``VideoReader.damage`` has its losses.

    Raises:
        InputError: the file is empty, truncated, damaged, encrypted, too large or of an unsupported format, or has
            no video track, or several.
    """
    with read_errors(path), path.open("rb") as file:
        head = file.read(PROBE_BYTES)
    if not head:
        raise InputError(f"{path}: is empty; get a complete copy")
    container_format = sniff_container(head)
    if container_format is None:
        raise InputError(f"{path}: this kind of video file is not supported; convert it to MP4 or Matroska")
    return VideoReader(path, container_format, max_pixels, threads, salvage)


def open_container(path: Path, container_format: ContainerFormat) -> av.container.InputContainer:
    """Open a file with its format's demuxer. FFmpeg cannot read any other file through it.

    Raises:
        InputError: the demuxer cannot read it.
    """
    url, options = f"file:{path.absolute()}", {"protocol_whitelist": "file", "format_whitelist": _DEMUXERS}
    try:
        return av.open(url, format=container_format.demuxer, container_options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as {container_format.label}; it is damaged or ends early") from error
