"""User settings, read from defaults, a TOML file, the environment and the command line, in that order.

An unknown name and a value out of range are errors in every source. A typing error must never leave a face visible.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from blurguard.declarations import SettingsTable, declared, setting
from blurguard.errors import ConfigError

ENVIRONMENT_PREFIX = "BLURGUARD_"
CONFIG_VARIABLE = "BLURGUARD_CONFIG"
WATCH_SECTION = "watch"

# Sections of --help.
DETECTION, HIDING, VIDEO = "Detection", "Hiding", "Videos and animations"
ARRIVAL, ORIGINALS, DAEMON = "Arriving files", "Originals", "Daemon"


class Mode(StrEnum):
    """Detection effort."""

    FAST = "fast"
    ACCURATE = "accurate"


class Style(StrEnum):
    """Replacement for the pixels of a face."""

    BLUR = "blur"
    PIXELATE = "pixelate"
    SOLID = "solid"


class Shape(StrEnum):
    """Shape of the hidden area in a region."""

    ELLIPSE = "ellipse"
    BOX = "box"


class Audio(StrEnum):
    """Treatment of the sound of a video."""

    KEEP = "keep"
    DROP = "drop"


class Originals(StrEnum):
    """Treatment of an original after its result is safely in the outbox."""

    KEEP = "keep"
    MOVE = "move"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(SettingsTable):
    """Settings of every command: how faces are found and hidden, and by how many processes."""

    mode: Mode = setting(Mode.ACCURATE, "Detection effort. accurate finds more faces, fast is quicker.", DETECTION)
    model: str = setting("", "Detector, see `blurguard models`.", DETECTION, unset="the first")
    min_score: float | None = setting(
        None, "Hide faces from this probability. A lower one, down to 0.04, hides more.", DETECTION,
        limits=(0.01, 0.99), unset="the model's",
    )  # fmt: skip
    # 98 % of the faces found are then covered to 95 % of their ellipse and more.
    margin: float = setting(0.3, "Share of the face's size that is added on each side.", HIDING, limits=(0.0, 2.0))
    style: Style = setting(Style.BLUR, "Replacement for a face.", HIDING)
    shape: Shape = setting(Shape.ELLIPSE, "Shape of the hidden area.", HIDING)
    boxes: bool = setting(False, "Draw a box around each hidden face.", HIDING)
    box_color: str = setting("#00ff00", "Color of the boxes, as #rrggbb.", HIDING, pattern="#[0-9a-fA-F]{6}")
    keep_metadata: bool = setting(
        False,
        "Keep capture time, camera, lens and exposure, but never thumbnails, GPS, serial numbers or names.",
        flags="--keep-metadata/--drop-metadata",
    )
    hold: float = setting(
        0.4, "Seconds to hide a face before its first and after its last detection.", VIDEO, limits=(0.0, 5.0)
    )
    audio: Audio = setting(Audio.KEEP, "Keep or drop the sound.", VIDEO)
    salvage: bool = setting(False, "Process the readable part of a damaged video instead of failing.", VIDEO)
    # In a program that uses the library, Pillow's ``Image.MAX_IMAGE_PIXELS`` applies as well.
    max_pixels: int = setting(200_000_000, "Refuse files with more pixels.", limits=(1, 20_000_000_000))
    jobs: int | None = setting(None, "Worker processes.", limits=(1, 256), unset="one per processor", flags="--jobs -j")

    @property
    def box_rgb(self) -> tuple[int, int, int]:
        """``box_color`` as three numbers, 0 to 255."""
        red, green, blue = bytes.fromhex(self.box_color[1:])
        return red, green, blue


def _path(help: str, panel: str, *, unset: str, metavar: str) -> Any:
    """Declare a file or folder of the drop folder. A running daemon keeps it until the next start."""
    return setting("", help, panel, unset=unset, metavar=metavar, fixed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings(SettingsTable):
    """Settings of the drop folder.

    Names of files and folders are used as given. Relative ones start at the working directory of blurguard, also in
    a settings file, and ``~`` is not expanded.
    """

    settle: float = setting(1.0, "Seconds without a change until a file is complete.", ARRIVAL, limits=(0.0, 3600.0))
    rescan: float = setting(60.0, "Seconds between two scans of the whole inbox.", ARRIVAL, limits=(0.1, 86_400.0))
    poll: bool = setting(
        False, "Poll the inbox instead of waiting for file events. Network shares send none.", ARRIVAL, fixed=True
    )
    originals: Originals = setting(Originals.KEEP, "Treatment of originals after success.", ORIGINALS, fixed=True)
    move_to: str = _path("Folder for originals, with --originals move.", ORIGINALS, unset="none", metavar="FOLDER")
    failed: str = _path(
        "Folder for failed originals and error reports.", ORIGINALS, unset="they stay", metavar="FOLDER"
    )
    timeout: float = setting(300.0, "Seconds without progress until a file fails.", DAEMON, limits=(1.0, 86_400.0))
    grace: float = setting(10.0, "Seconds to finish running files when stopped.", DAEMON, limits=(0.0, 3600.0))
    min_free: int = setting(500, "Start no file below this free space, MB (10^6 bytes).", ARRIVAL, limits=(0, 10**9))
    recycle: int = setting(1000, "Files after which a worker process is replaced.", DAEMON, limits=(1, 10**6))
    health: str = _path("Status file of the daemon.", DAEMON, unset="OUTBOX/.blurguard/health.json", metavar="FILE")
    metrics: str = _path("Text file with metrics for Prometheus.", DAEMON, unset="none", metavar="FILE")
    retry_failed: bool = setting(False, "Retry failed files once.", ARRIVAL, flags="--retry-failed", one_shot=True)
    allow_shared: bool = setting(
        False, "Accept folders that others can write to.", DAEMON, flags="--allow-shared/--refuse-shared", fixed=True
    )

    def fixed_but_changed(self, other: WatchSettings) -> list[str]:
        """Return the names of settings that differ in ``other`` and take effect only at the next start."""
        fixed = [each.name for each in declared(WatchSettings) if each.fixed]
        return [name for name in fixed if getattr(self, name) != getattr(other, name)]

    def complete(self) -> WatchSettings:
        """Return the settings after all sources are read: ``move`` and its folder may come from different ones.

        Raises:
            ConfigError: ``move`` without ``move_to``, or the reverse.
        """
        if self.originals is Originals.MOVE and not self.move_to:
            raise ConfigError("originals is move, but move_to names no folder; set it, or choose keep or delete")
        if self.move_to and self.originals is not Originals.MOVE:
            problem = f"move_to is {self.move_to!r}, but originals is {self.originals}"
            raise ConfigError(f"{problem}; set originals to move, or remove move_to")
        return self


_Source = tuple[Mapping[str, Any], str]  # values of one table, and their origin for error messages


def read_settings(config: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[Settings, WatchSettings]:
    """Return both tables: defaults, then the file, then the ``BLURGUARD_*`` variables.

    The caller adds the command line by ``changed``, then calls ``complete``. The file is read once, so both
    tables are of one version of it.

    Raises:
        ConfigError: an unreadable file, an unknown name, or a bad value, in either table.
    """
    settings, watch = Settings(), WatchSettings()
    sources = [] if config is None else [_read_file(config)]
    for own, (values, origin) in (*sources, _read_environment(environment)):
        for each in declared(WatchSettings):
            if each.one_shot and each.name in values:
                raise ConfigError(f"{origin}: {each.name} is for one run only: give {each.option} on the command line")
        settings, watch = settings.changed(*own), watch.changed(values, origin)
    return settings, watch


def _read_file(path: Path) -> tuple[_Source, _Source]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the settings: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    watch = values.pop(WATCH_SECTION, {})
    if not isinstance(watch, dict):
        raise ConfigError(f"{path}: {WATCH_SECTION} must be a table, [{WATCH_SECTION}], not {watch!r}")
    return (values, str(path)), (watch, f"{path}: [{WATCH_SECTION}]")


def _read_environment(environment: Mapping[str, str]) -> tuple[_Source, _Source]:
    keys = [key for key in environment if key.startswith(ENVIRONMENT_PREFIX) and key != CONFIG_VARIABLE]
    own = {key.removeprefix(ENVIRONMENT_PREFIX).lower(): environment[key] for key in keys}
    start = f"{WATCH_SECTION}_"
    watch = {name.removeprefix(start): own.pop(name) for name in list(own) if name.startswith(start)}
    origin, watch_origin = (f"environment ({ENVIRONMENT_PREFIX}{part}*)" for part in ("", start.upper()))
    return (_parsed(Settings, own), origin), (_parsed(WatchSettings, watch), watch_origin)


def _parsed(table: type[SettingsTable], texts: Mapping[str, str]) -> dict[str, Any]:
    known = {each.name: each for each in declared(table)}
    return {name: known[name].parse(text) if name in known else text for name, text in texts.items()}
