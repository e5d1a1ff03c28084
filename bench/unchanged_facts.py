"""All that ``bench.unchanged`` tells of a file: pixels of every frame, packets, metadata, records, permissions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pillow_heif
from PIL import ExifTags, Image

Facts = dict[str, Any]
FILMS = {".mp4", ".mkv", ".webm", ".mov", ".gif"}  # FFmpeg plays text as well
DEEP = {"PNG", "TIFF", "JPEG2000"}  # Pillow cuts some of these to 8 bits
# Differ from run to run, or are sentences; of those it is told only whether there is one.
PASSING = {"seconds", "time", "mtime_ns", "started", "latest", "pid", "age", "now", "since", "failed_at"}
PASSING |= {"last_minute", "last_hour", "per_minute"}
SENTENCES = {"reason", "why", "text"}
JOURNAL = "SELECT name, state, source_size, source_digest, recipe, output_digest, replaced_digest, error FROM files"


def facts_below(folder: Path) -> Iterator[tuple[str, Facts]]:
    """Yield name and facts of every file below a folder."""
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() or path.is_symlink():
            yield str(path.relative_to(folder)), facts_of(path)


def facts_of(path: Path) -> Facts:
    """Return what is to be said of one file."""
    if path.is_symlink():
        return {"link": str(path.readlink())}
    permissions = {"permissions": oct(stat.S_IMODE(path.stat().st_mode))}
    if path.suffix == ".jsonl":
        return permissions | lines_of(path.read_text("utf-8"))
    if path.suffix == ".json":
        return permissions | {"json": steady(json.loads(path.read_text("utf-8")))}
    if path.suffix == ".prom":
        return permissions | {"numbers": _numbers(path.read_text("utf-8"))}
    if path.suffix == ".sqlite":
        return permissions | _journal(path)
    known = permissions | {"bytes": digest(path.read_bytes())}
    if ".blurguard" in path.parts:
        return known
    with contextlib.suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return known | _picture(path)
    if path.suffix in FILMS:
        with contextlib.suppress(av.error.FFmpegError):
            return known | _film(path)
    return known


def digest(data: Any) -> str:
    """Return a short digest of bytes, or of an array."""
    data = np.ascontiguousarray(data).tobytes() if isinstance(data, np.ndarray) else data
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def lines_of(text: str) -> Facts:
    """Return JSON lines by their file, and in which order they came."""
    records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    records = [record for record in records if record.get("event") not in ("frames", "state")]
    names = [str(record.get("source", record.get("event"))) for record in records]
    return {"order": names} | {name: steady(record) for name, record in zip(names, records, strict=True)}


def steady(value: Any, key: str = "") -> Any:
    """Return JSON without times and sentences."""
    if isinstance(value, dict):
        if key == "left_alone":
            return sorted(value.values())  # its keys are words
        return {name: steady(inner, name) for name, inner in value.items() if name not in PASSING}
    if isinstance(value, list):
        return [steady(inner) for inner in value]
    # An error is the name of a class, or a sentence.
    if key in SENTENCES or (key == "error" and " " in str(value)):
        return bool(value)
    return value


def _numbers(text: str) -> Facts:
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: "" if "seconds" in name else number for name, number in rows}


def _journal(path: Path) -> Facts:
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
        schema = [row[0] for row in database.execute("SELECT sql FROM sqlite_master WHERE sql != '' ORDER BY name")]
        known: Facts = {"schema": schema, "version": database.execute("PRAGMA user_version").fetchone()[0]}
        for name, *rest, error in database.execute(JOURNAL):
            known[bytes(name).decode("utf-8", "surrogateescape")] = [*rest, bool(error)]
    return known


def _picture(path: Path) -> Facts:
    pillow_heif.register_heif_opener()
    with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
        known: Facts = {"format": picture.format, "size": picture.size}
        known["info"] = {str(key): _short(value) for key, value in picture.info.items()}
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            picture.load()
            palette = picture.getpalette()
            known[f"frame {number}"] = {
                "mode": picture.mode,
                "size": picture.size,
                "duration": picture.info.get("duration"),
                "pixels": digest(picture.tobytes()),
                "palette": digest(bytes(palette)) if palette else "",
            }
        exif = picture.getexif()
        known["exif"] = {str(tag): _short(value) for tag, value in exif.items()}
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.IFD1):
            known[f"exif {ifd.name}"] = {str(tag): _short(value) for tag, value in exif.get_ifd(ifd).items()}
        if known["format"] in DEEP:
            _, pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
            known["deep"] = [[str(page.dtype), page.shape, digest(page)] for page in pages]
        if known["format"] == "HEIF":
            pages = [np.asarray(page) for page in pillow_heif.open_heif(path, convert_hdr_to_8bit=False)]
            known["deep"] = [[str(page.dtype), page.shape, digest(page)] for page in pages]
    return known


def _short(value: Any) -> str:
    told = repr(value)
    return told if len(told) < 60 else f"{type(value).__name__} {digest(told.encode())}"


def _film(path: Path) -> Facts:
    known: Facts = {}
    with av.open(str(path)) as file:
        known["container"] = [file.format.name, dict(file.metadata), file.duration, file.start_time]
        known["chapters"] = repr(file.chapters())
        for stream in file.streams:
            known[f"track {stream.index}"] = _track(stream)
        packets: dict[str, list[Any]] = {}
        for packet in file.demux():
            row = [packet.pts, packet.dts, packet.duration, digest(bytes(packet))]
            packets.setdefault(f"packets {packet.stream_index}", []).append(row)
        known |= packets
    with av.open(str(path)) as file:
        for number, frame in enumerate(file.decode(video=0)):
            pixels = [frame.width, frame.height, frame.format.name, digest(_pixels(frame))]
            known[f"frame {number}"] = {"time": str(frame.time), "pixels": pixels, "turned": frame.rotation}
    return known


def _track(stream: Any) -> Facts:
    context = stream.codec_context
    names = ("pix_fmt", "width", "height", "profile", "sample_rate", "color_range", "color_primaries", "color_trc")
    known: Facts = {name: str(getattr(context, name, None)) for name in (*names, "colorspace", "sample_aspect_ratio")}
    known |= {"kind": stream.type, "codec": context.name if context else "", "metadata": dict(stream.metadata)}
    known |= {"time base": str(stream.time_base), "start": stream.start_time, "disposition": int(stream.disposition)}
    return known | {"extradata": digest(context.extradata or b"") if context else ""}


def _pixels(frame: Any) -> Any:
    try:
        return frame.to_ndarray()
    except (ValueError, AssertionError):  # of a kind or size that PyAV makes no array of
        return frame.to_ndarray(format="rgb48le")
