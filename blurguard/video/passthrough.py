"""Stream copy of everything but the video track: audio, subtitles, chapters, fonts and a few texts.

The source is read a second time, in step with the video, so memory holds only what the muxer interleaves.
Allow-lists decide on metadata, as for photos. Data tracks (GPS, sensors, timecodes), cover pictures and unknown
attachments are never copied.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import Any

import av.container
from av.stream import AttachmentStream, Discard, Stream

from blurguard.errors import InputError
from blurguard.video.info import codec_name
from blurguard.video.reader import VideoReader, open_container

_MAX_TEXT = 128
_FONT_TYPES = re.compile(r"font/.+|application/(x-)?(truetype-)?(font|vnd\.ms-opentype)[-\w.]*", re.IGNORECASE)
_FONT_SIGNATURES = (b"\0\1\0\0", b"OTTO", b"true", b"ttcf", b"wOFF", b"wOF2")
# Names of a copied track. The hidden video track loses its own. Titles stay: players show them, and they distinguish
# a commentary from the dialogue.
_TRACK_TEXTS = ("language", "title", "handler_name")
# Software and cameras write their names into handlers, and some cameras a place. Only usual names stay.
_HANDLERS = frozenset({
    "soundhandler", "soundhandle", "audiohandler", "subtitlehandler", "texthandler", "sound media handler",
    "apple sound media handler", "apple text media handler", "core media audio", "core media text", "surround",
    "l-smash audio handler", "gpac iso audio handler", "mainconcept mp4 sound media handler", "stereo", "mono",
})  # fmt: skip
# Of the file with keep_metadata: when, and with which camera. Never where, by whom, or with which one of its kind.
_NAMES = frozenset({
    "make", "model", "com.apple.quicktime.make", "com.apple.quicktime.model", "com.android.manufacturer",
    "com.android.model",
})  # fmt: skip
_TIMES = frozenset({"creation_time", "date", "com.apple.quicktime.creationdate"})
_TIME = re.compile(r"[0-9:.+\-TZ ]{4,40}", re.ASCII)
# Lines of subtitle headers that a player needs.
_ASS_INFO = re.compile(
    rb"(?i)(ScriptType|PlayRes[XY]|WrapStyle|ScaledBorderAndShadow|YCbCr Matrix|Timer|Collisions)\s*:\s*[\w.+]{1,16}"
)
_ASS_SECTIONS = (
    (re.compile(rb"\[Script Info\]", re.IGNORECASE), _ASS_INFO),
    (re.compile(rb"\[V4\+{0,2} Styles\+{0,2}\]", re.IGNORECASE), re.compile(rb"(Format|Style)\s*:.*", re.IGNORECASE)),
    (re.compile(rb"\[Events\]", re.IGNORECASE), re.compile(rb"Format\s*:[\w, \t]*", re.IGNORECASE)),
)
_VOBSUB_LINE = re.compile(
    rb"(?i)(size|org|scale|alpha|smooth|fadein/out|align|time offset|forced subs|palette|custom colors):[\w %,.:/+-]*"
)
_EMPTY_COMMENT = b"\x03vorbis\0\0\0\0\0\0\0\0\1"  # no vendor, no entries, the framing bit (Vorbis I, 5.2.1)
_STREAMINFO_BYTES = 34  # RFC 9639, 8.2


class StreamCopier:
    """Copies audio, subtitles and fonts to the output, packet by packet.

    Attributes:
        container: the source, opened a second time.
        left_out: tracks that cannot be copied, a phrase each.
    """

    def __init__(self, video: VideoReader, keep_audio: bool) -> None:
        self._video, self.left_out = video, list[str]()
        self.container = open_container(video.info.path, video.info.container)
        self._types = {"subtitle", "audio"} if keep_audio else {"subtitle"}
        self._tracks: dict[int, Stream] = {}  # by index in the source
        self._packets: Iterator[av.Packet[Any]] = iter(())
        self._next: av.Packet[Any] | None = None

    def add_to(self, output: av.container.OutputContainer) -> None:
        """Add the copied tracks and fonts to the output."""
        streams = self.container.streams
        for stream in streams:
            if stream.type in self._types:
                self._add_track(stream, output)
            stream.discard = Discard.default if stream.index in self._tracks else Discard.all
        for stream in streams:
            if isinstance(stream, AttachmentStream) and _is_font(stream):
                name = stream.name or ""
                safe_name = name if name.isprintable() and len(name) <= _MAX_TEXT else "font"
                output.add_attachment(safe_name, stream.mimetype or "", bytes(stream.data))
        self._packets = self._read([streams[index] for index in self._tracks])
        self._next = next(self._packets, None)

    def _add_track(self, stream: Stream, output: av.container.OutputContainer) -> None:
        context = stream.codec_context
        try:
            extradata = scrub_extradata(codec_name(stream), context.extradata if context else None)
            track = output.add_stream_from_template(stream)
        except ValueError:  # FFmpeg cannot decode it, or the container does not support it
            name = context.name if context else "unknown codec"
            self.left_out.append(f"{stream.type} track {stream.index + 1} ({name})")
            return
        track.codec_context.extradata = extradata
        track.metadata.update(_track_texts(stream.metadata))
        track.disposition = stream.disposition
        self._tracks[stream.index] = track

    def chapters(self) -> list[Any]:
        """Return the chapters with their titles."""
        chapters = self.container.chapters()
        return [chapter | {"metadata": allowed_texts(chapter["metadata"], ("title",))} for chapter in chapters]

    def copy_until(self, seconds: Fraction | None, output: av.container.OutputContainer) -> None:
        """Copy packets up to a decoding time, or all remaining ones."""
        while (packet := self._next) is not None:
            stamp = packet.dts if packet.dts is not None else packet.pts
            if seconds is not None and stamp is not None and stamp * Fraction(packet.time_base) > seconds:
                return
            packet.stream = self._tracks[packet.stream_index]
            output.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the source."""
        self._packets, self._next = iter(()), None
        self.container.close()

    def _read(self, streams: list[Stream]) -> Iterator[av.Packet[Any]]:
        """Yield the packets of some tracks. Damage goes to the video's log."""
        path, damage = self._video.info.path, self._video.damage
        try:
            for packet in self.container.demux(streams) if streams else ():
                if packet.size == 0 and packet.pts is None and packet.dts is None:  # the demuxer's flush packet
                    continue
                if packet.has_sidedata("encryption_info"):
                    raise InputError(f"{path}: its sound is encrypted; decrypt it first, or give --audio drop")
                if _is_filler(packet):
                    continue
                if packet.is_corrupt:
                    damage.report("its sound or subtitles are damaged or end early")
                yield packet
        except av.FFmpegError as error:
            damage.report(f"its sound or subtitles cannot be read to their end: {error.strerror}")


def _is_filler(packet: av.Packet[Any]) -> bool:
    """Whether a packet is the empty text that ends an MP4 subtitle. FFmpeg's muxer adds it again."""
    return packet.size == 2 and not packet.duration and bytes(packet) == b"\0\0" and packet.stream.type == "subtitle"


def allowed_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """Return capture times and camera names from a container's metadata, if they have the usual form."""
    named = allowed_texts(metadata, _NAMES)
    return named | {key: text for key, text in allowed_texts(metadata, _TIMES).items() if _TIME.fullmatch(text)}


def allowed_texts(metadata: dict[str, str], keys: Collection[str]) -> dict[str, str]:
    """Return the short printable texts under some keys. Case is ignored: Matroska uses capitals."""
    found = ((key.lower(), text) for key, text in metadata.items())
    return {key: text for key, text in found if key in keys and text.isprintable() and len(text) <= _MAX_TEXT}


def _track_texts(metadata: dict[str, str]) -> dict[str, str]:
    """Return the names of a copied track."""
    named = allowed_texts(metadata, _TRACK_TEXTS)
    if named.get("handler_name", "").strip().lower() not in _HANDLERS:
        named.pop("handler_name", None)
    return named


def scrub_extradata(codec: str, extradata: bytes | None) -> bytes | None:
    """Return a track's extradata without comments, pictures and attachments. Decoders do not need these.

    Raises:
        ValueError: it has an unknown structure, so it may contain anything.
    """
    if not extradata:
        return None
    if codec == "vorbis":
        return _scrub_vorbis(extradata)
    if codec == "flac":
        start = 8 if extradata.startswith(b"fLaC") and len(extradata) > _STREAMINFO_BYTES else 0
        return extradata[start : start + _STREAMINFO_BYTES]
    if codec == "opus":  # RFC 7845, 5.1
        simple = len(extradata) < 21 or not extradata[18]
        return extradata[: 19 if simple else 21 + extradata[9]]
    if codec in ("ass", "ssa"):
        return _scrub_ass(extradata)
    if codec == "dvd_subtitle":
        lines = (line.strip() for line in extradata.rstrip(b"\0").splitlines())
        return b"".join(line + b"\n" for line in lines if _VOBSUB_LINE.fullmatch(line))
    return None if codec in ("subrip", "webvtt", "text") else extradata


def _scrub_vorbis(extradata: bytes) -> bytes:
    """Return Vorbis' three header packets, in Xiph lacing (RFC 9559, 10.3), with an empty comment packet.

    Raises:
        ValueError: they are not three.
    """
    if extradata[0] == 2:  # Xiph lacing: the sizes come first
        at, sizes = 1, list[int]()
        for _ in range(2):
            start = at
            while extradata[at : at + 1] == b"\xff":
                at += 1
            sizes.append(255 * (at - start) + (extradata[at] if at < len(extradata) else 0))
            at += 1
        identification, setup = extradata[at : at + sizes[0]], extradata[at + sum(sizes) :]
    else:  # each packet after its size, in two bytes
        end = 2 + int.from_bytes(extradata[:2], "big")
        comment_end = end + 2 + int.from_bytes(extradata[end : end + 2], "big")
        identification, setup = extradata[2:end], extradata[comment_end + 2 :]
    if len(identification) != 30 or not identification.startswith(b"\x01vorbis") or not setup.startswith(b"\x05vorbis"):
        raise ValueError("not the headers of Vorbis")
    return bytes((2, len(identification), len(_EMPTY_COMMENT))) + identification + _EMPTY_COMMENT + setup


def _scrub_ass(extradata: bytes) -> bytes:
    """Return the sections and lines of an ASS header that define the look of subtitles."""
    allowed: list[bytes] = []
    pattern: re.Pattern[bytes] | None = None
    for line in (line.strip() for line in extradata.removeprefix(b"\xef\xbb\xbf").rstrip(b"\0").splitlines()):
        if line.startswith(b"["):
            pattern = next((lines for name, lines in _ASS_SECTIONS if name.fullmatch(line)), None)
            allowed += [line] if pattern else []
        elif pattern and pattern.fullmatch(line):
            allowed.append(line)
    return b"".join(line + b"\n" for line in allowed)


def _is_font(attachment: AttachmentStream) -> bool:
    """Whether an attachment is a font, by its content too: its MIME type alone proves nothing."""
    return bool(_FONT_TYPES.fullmatch(attachment.mimetype or "")) and bytes(attachment.data[:4]) in _FONT_SIGNATURES
