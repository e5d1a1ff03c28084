"""Damage of a video file: losses for the report, and packets whose frames never came out of the decoder."""

from pathlib import Path
from typing import TypeAlias

import av

from blurguard.errors import InputError

VideoPacket: TypeAlias = "av.Packet[av.VideoStream]"

# Each packet of these codecs is one shown frame.
_ONE_FRAME_PER_PACKET = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mjpeg", "prores", "ffv1"})


class DamageLog:
    """Losses of a damaged or truncated file. Without salvage, the first one is an error."""

    def __init__(self, path: Path, salvage: bool) -> None:
        self._path, self._salvage = path, salvage
        self._first_problem, self._frames = "", 0

    def report(self, problem: str, frames: int = 0) -> None:
        """Record a problem, and the number of frames it damaged.

        Raises:
            InputError: salvage is off.
        """
        if not self._salvage:
            raise InputError(f"{self._path}: {problem}; get a complete copy, or give --salvage to take what is there")
        self._first_problem = self._first_problem or problem
        self._frames += frames

    def summary(self) -> str:
        """Return the first problem and the number of bad frames, or "" for an intact file."""
        return self._first_problem + (f"; {self._frames} frames damaged or missing" if self._frames else "")


class PendingFrames:
    """Timestamps of packets whose frames have not been decoded yet.

    Attributes:
        pts: those timestamps, in ticks of the stream's time base.
    """

    def __init__(self, codec: str, frame_ticks: int) -> None:
        self.pts: set[int] = set()
        self._codec, self._frame_ticks = codec, frame_ticks
        self._first_pts: int | None = None
        self._last_pts = self._last_gap = 0
        self._interlaced = False  # the last frame

    def add(self, packet: VideoPacket) -> None:
        """Expect the frame of a packet, if it has one to show: VP8 has a bit for it (RFC 6386, 9.1)."""
        hidden = self._codec == "vp8" and not memoryview(packet)[0] & 0x10
        if packet.pts is not None and not packet.is_discard and self._codec in _ONE_FRAME_PER_PACKET and not hidden:
            self.pts.add(packet.pts)

    def remove(self, pts: int, interlaced: bool) -> None:
        """Take a decoded frame off the list."""
        self.pts.discard(pts)
        gap = 0 if self._first_pts is None else pts - self._last_pts
        self._remove_second_field(gap)
        self._first_pts = pts if self._first_pts is None else self._first_pts
        self._last_pts, self._last_gap, self._interlaced = pts, gap, interlaced

    def count_missing(self) -> int:
        """Return the number of frames, from the first decoded one on, that never came out."""
        self._remove_second_field(0)
        first = self._first_pts
        return 0 if first is None else sum(pts > first for pts in self.pts)

    def _remove_second_field(self, next_gap: int) -> None:
        """Take off the second field of the last frame, which can be a packet of its own half a frame later."""
        if self._interlaced:
            step = next(ticks for ticks in (self._last_gap, next_gap, self._frame_ticks) if ticks > 0)
            self.pts -= {pts for pts in self.pts if 0 < 4 * (pts - self._last_pts) <= 3 * step}
