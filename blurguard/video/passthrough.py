"""What of a video is copied as it is: sound, subtitles, chapters, fonts, and a few words.

The tracks are read from the source a second time, at the pace of the frames, so that no more of them is in memory
than a muxer needs to interleave. What tells more than what is to be seen and heard stays behind: allow-lists, as for
photos. Data tracks (places, sensors, times of day), cover pictures and unknown attachments are on none of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer
from av.stream import AttachmentStream, Discard, Stream

from blurguard.errors import InputError
from blurguard.video.reader import VideoReader, codec_name, open_container

_MAX_TEXT = 128
_FONT_TYPES = re.compile(r"font/.+|application/(x-)?(truetype-)?(font|vnd\.ms-opentype)[-\w.]*", re.IGNORECASE)
_FONT_SIGNATURES = (b"\0\1\0\0", b"OTTO", b"true", b"ttcf", b"wOFF", b"wOF2")
# Of a track that is copied: what it is called; of the hidden one not even that.
# Titles stay: they are shown, and tell a commentary from the dialogue.
_TRACK_TEXTS = ("language", "title", "handler_name")
# Software and cameras name themselves as handlers, and some of them where they were: only the usual names stay.
_HANDLERS = frozenset(
    {
        "soundhandler", "soundhandle", "audiohandler", "subtitlehandler", "texthandler", "sound media handler",
        "apple sound media handler", "apple text media handler", "core media audio", "core media text",
        "l-smash audio handler", "gpac iso audio handler", "mainconcept mp4 sound media handler", "stereo", "mono",
        "surround",
    }
)  # fmt: skip
# Of the file with keep_metadata: when, and with which camera. Never where, by whom, or with which one of its kind.
_NAMES = frozenset(
    {
        "make", "model", "com.apple.quicktime.make", "com.apple.quicktime.model",
        "com.android.manufacturer", "com.android.model",
    }
)  # fmt: skip
_TIMES = frozenset({"creation_time", "date", "com.apple.quicktime.creationdate"})
_TIME = re.compile(r"[0-9:.+\-TZ ]{4,40}", re.ASCII)
# Of the headers of tracks, which are written again: what is needed to show subtitles, line by line.
_ASS_INFO = re.compile(
    rb"(ScriptType|PlayRes[XY]|WrapStyle|ScaledBorderAndShadow|YCbCr Matrix|Timer|Collisions)\s*:\s*[\w.+]{1,16}",
    re.IGNORECASE,
)
_ASS_SECTIONS = (
    (re.compile(rb"\[Script Info\]", re.IGNORECASE), _ASS_INFO),
    (re.compile(rb"\[V4\+{0,2} Styles\+{0,2}\]", re.IGNORECASE), re.compile(rb"(Format|Style)\s*:.*", re.IGNORECASE)),
    (re.compile(rb"\[Events\]", re.IGNORECASE), re.compile(rb"Format\s*:[\w, \t]*", re.IGNORECASE)),
)
_VOBSUB_LINE = re.compile(
    rb"(size|org|scale|alpha|smooth|fadein/out|align|time offset|forced subs|palette|custom colors):[\w %,.:/+-]*",
    re.IGNORECASE,
)
_NO_COMMENT = b"\x03vorbis\0\0\0\0\0\0\0\0\1"  # by nobody, no entries, the framing bit (Vorbis I, 5.2.1)
_STREAMINFO_BYTES = 34  # RFC 9639, 8.2


class StreamCopier:
    """The tracks that are copied: audio, subtitles and fonts, read from the source at the pace of the frames."""

    def __init__(self, video: VideoReader, keep_audio: bool) -> None:
        self._video = video
        self.left_out: list[str] = []
        self.container = open_container(video.path, video.family)
        kinds = {"subtitle", "audio"} if keep_audio else {"subtitle"}
        self._sources = [stream for stream in self.container.streams if stream.type in kinds]
        self._tracks: dict[int, Stream] = {}
        self._packets: Iterator[av.Packet[Any]] = iter(())
        self._next: av.Packet[Any] | None = None

    def add_to(self, output: OutputContainer) -> None:
        """Add the copied tracks to the result."""
        headers: dict[int, bytes | None] = {}
        for stream in self._sources:
            try:
                headers[stream.index] = scrub_extradata(codec_name(stream), _header_of(stream))
                track = output.add_stream_from_template(stream)
            except ValueError:  # nothing in FFmpeg decodes it, or the container has no name for it
                name = stream.codec_context.name if stream.codec_context else "unknown codec"
                self.left_out.append(f"{stream.type} track {stream.index + 1} ({name})")
                continue
            track.codec_context.extradata = headers[stream.index]
            track.metadata.update(_track_texts(stream.metadata))
            track.disposition = stream.disposition
            self._tracks[stream.index] = track
        for attachment in self.container.streams:
            if isinstance(attachment, AttachmentStream) and _is_font(attachment):
                name = attachment.name or ""
                named = name if name.isprintable() and len(name) <= _MAX_TEXT else "font"
                output.add_attachment(named, attachment.mimetype or "", bytes(attachment.data))
        for stream in self.container.streams:
            stream.discard = Discard.default if stream.index in self._tracks else Discard.all
        wanted = [self.container.streams[index] for index in self._tracks]
        self._packets = iter(self.container.demux(wanted)) if wanted else iter(())
        self._advance()

    def chapters(self) -> list[Any]:
        """Return the chapters with their titles."""
        return [
            chapter | {"metadata": allowed_texts(chapter["metadata"], ("title",))}
            for chapter in self.container.chapters()
        ]

    def copy_until(self, seconds: Fraction | None, output: OutputContainer) -> None:
        """Copy what is to be decoded up to a time, or all that is left."""
        while (packet := self._next) is not None:
            stamp = packet.dts if packet.dts is not None else packet.pts
            if seconds is not None and stamp is not None and stamp * Fraction(packet.time_base) > seconds:
                return
            packet.stream = self._tracks[packet.stream_index]
            output.mux(packet)
            self._advance()

    def close(self) -> None:
        """Let go of the source."""
        self._packets, self._next = iter(()), None
        self.container.close()

    def _advance(self) -> None:
        """Read one packet ahead; damage is the video's to judge."""
        self._next = None
        while self._next is None:
            try:
                packet = next(self._packets, None)
            except av.FFmpegError as error:
                self._video.report_damage(f"its sound or subtitles cannot be read to their end: {error.strerror}")
                return
            if packet is None:
                return
            if packet.size == 0 and packet.pts is None and packet.dts is None:  # the demuxer's mark for the end
                continue
            if packet.has_sidedata("encryption_info"):
                raise InputError(f"{self._video.path}: its sound is encrypted; decrypt it first, or give --audio drop")
            if _is_filler(packet):
                continue
            if packet.is_corrupt:
                self._video.report_damage("its sound or subtitles are damaged or end early")
            self._next = packet


def _is_filler(packet: av.Packet[Any]) -> bool:
    """Whether a packet is the empty text with which an MP4's muxer, too, ends every subtitle."""
    return packet.size == 2 and not packet.duration and bytes(packet) == b"\0\0" and packet.stream.type == "subtitle"


def allowed_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Return when and with which camera, from a container's metadata: names and times that look like such."""
    named = allowed_texts(metadata, _NAMES)
    return named | {key: text for key, text in allowed_texts(metadata, _TIMES).items() if _TIME.fullmatch(text)}


def allowed_texts(metadata: dict[str, str], keys: Collection[str]) -> dict[str, str]:
    """Return the short printable texts under some keys, in whichever case; Matroska shouts."""
    found = ((key.lower(), text) for key, text in metadata.items())
    return {key: text for key, text in found if key in keys and text.isprintable() and len(text) <= _MAX_TEXT}


def _track_texts(metadata: dict[str, str]) -> dict[str, str]:
    """Return what a copied track is called."""
    named = allowed_texts(metadata, _TRACK_TEXTS)
    if named.get("handler_name", "").strip().lower() not in _HANDLERS:
        named.pop("handler_name", None)
    return named


def _header_of(stream: Stream) -> bytes | None:
    """Return what a track's container says for its decoder, if anything."""
    header = stream.codec_context.extradata if stream.codec_context else None
    return bytes(header) if header else None


def scrub_extradata(codec: str, header: bytes | None) -> bytes | None:
    """Return a track's header without comments, pictures and attachments, which its packets do not need.

    Raises:
        ValueError: it is not what its codec's headers are, and may hold anything.
    """
    if not header:
        return None
    if codec == "vorbis":
        return _scrub_vorbis(header)
    if codec == "flac":
        start = 8 if header.startswith(b"fLaC") and len(header) > _STREAMINFO_BYTES else 0
        return header[start : start + _STREAMINFO_BYTES]
    if codec == "opus":  # RFC 7845, 5.1
        simple = len(header) < 21 or not header[18]
        return header[: 19 if simple else 21 + header[9]]
    if codec in ("ass", "ssa"):
        return _scrub_ass(header)
    if codec == "dvd_subtitle":
        lines = (line.strip() for line in header.rstrip(b"\0").splitlines())
        return b"".join(line + b"\n" for line in lines if _VOBSUB_LINE.fullmatch(line))
    return None if codec in ("subrip", "webvtt", "text") else header


def _scrub_vorbis(header: bytes) -> bytes:
    """Return Vorbis' three packets, laced as Xiph does (RFC 9559, 10.3), with an empty comment for the second.

    Raises:
        ValueError: they are not three.
    """
    at, sizes = 1, [0, 0]
    if header[0] == 2:
        for number in range(2):
            while header[at : at + 1] == b"\xff":
                sizes[number] += 255
                at += 1
            sizes[number] += header[at] if at < len(header) else 0
            at += 1
    else:  # each after its size, in two bytes
        at, sizes = 2, [int.from_bytes(header[:2], "big"), 0]
        sizes[1] = int.from_bytes(header[2 + sizes[0] : 4 + sizes[0]], "big")
    gap = 0 if header[0] == 2 else 2
    first = header[at : at + sizes[0]]
    setup = header[at + sum(sizes) + 2 * gap :]
    if len(first) != 30 or not first.startswith(b"\x01vorbis") or not setup.startswith(b"\x05vorbis"):
        raise ValueError("not the headers of Vorbis")
    return bytes((2, len(first), len(_NO_COMMENT))) + first + _NO_COMMENT + setup


def _scrub_ass(header: bytes) -> bytes:
    """Return the sections that say how ASS subtitles look, with the lines that do so."""
    kept: list[bytes] = []
    wanted: re.Pattern[bytes] | None = None
    for line in (line.strip() for line in header.removeprefix(b"\xef\xbb\xbf").rstrip(b"\0").splitlines()):
        if line.startswith(b"["):
            wanted = next((lines for name, lines in _ASS_SECTIONS if name.fullmatch(line)), None)
            kept += [line] if wanted else []
        elif wanted and wanted.fullmatch(line):
            kept.append(line)
    return b"".join(line + b"\n" for line in kept)


def _is_font(attachment: AttachmentStream) -> bool:
    """Whether an attachment is a font, by its type and by its content: anything can be called a font."""
    return bool(_FONT_TYPES.fullmatch(attachment.mimetype or "")) and bytes(attachment.data[:4]) in _FONT_SIGNATURES
