"""What a user can set: frozen tables of settings, read from the command line, the environment and TOML.

``Settings`` is what every command heeds, ``WatchSettings`` what the drop folder heeds besides. Both are read from the
same file and environment, and every command checks both.

A value that is out of range and a key that nobody knows are errors wherever they come from: a typing error
must never leave a face bare.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Self, get_args, get_type_hints

from blurguard.errors import ConfigError

ENVIRONMENT_PREFIX = "BLURGUARD_"
CONFIG_VARIABLE = "BLURGUARD_CONFIG"
WATCH_SECTION = "watch"
ONE_SHOT = "retry_failed"  # in a file it would be wished again at each start
FIXED_WHILE_RUNNING = (
    "poll",
    "originals",
    "move_to",
    "failed",
    "health",
    "metrics",
    "allow_shared",
)  # of [watch], while it runs
COLOR_PATTERN = re.compile(r"#[0-9a-fA-F]{6}")
MEGAPIXEL = 1_000_000


class Mode(StrEnum):
    """How hard the detector looks."""

    FAST = "fast"
    ACCURATE = "accurate"


class Style(StrEnum):
    """What is put in place of a face."""

    BLUR = "blur"
    PIXELATE = "pixelate"
    SOLID = "solid"


class Shape(StrEnum):
    """Which part of a region is hidden."""

    ELLIPSE = "ellipse"
    BOX = "box"


class Audio(StrEnum):
    """What becomes of a video's sound."""

    KEEP = "keep"
    DROP = "drop"


class Originals(StrEnum):
    """What becomes of an original whose result is safely in the outbox."""

    KEEP = "keep"
    MOVE = "move"
    DELETE = "delete"


# name: (lowest, highest) accepted value
RANGES: dict[str, tuple[float, float]] = {
    "min_score": (0.01, 0.99),
    "margin": (0.0, 2.0),
    "hold": (0.0, 5.0),
    "jobs": (1, 256),
    "max_pixels": (1, 20_000 * MEGAPIXEL),
}
WATCH_RANGES: dict[str, tuple[float, float]] = {
    "settle": (0, 3600),
    "rescan": (0.1, 86_400),
    "timeout": (1, 86_400),
    "grace": (0, 3600),
    "min_free": (0, 10**9),
    "recycle": (1, 10**6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """What all tables of settings have in common; the fields and their types are the subclass's."""

    _ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __post_init__(self) -> None:
        """Bring values to their types and refuse those out of range.

        Raises:
            ConfigError: naming the setting, the value and what is accepted.
        """
        for name, (kind, optional) in _kinds(type(self)).items():
            value = getattr(self, name)
            if value is not None or not optional:
                object.__setattr__(self, name, _checked(name, value, kind, self._ranges.get(name)))

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return asdict(self)

    def with_values(self, values: Mapping[str, Any], origin: str) -> Self:
        """Return a copy with these values; an unknown name or a bad value is an error that names ``origin``."""
        known = _kinds(type(self))
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"{origin}: unknown setting {', '.join(unknown)}. Known: {', '.join(sorted(known))}")
        try:
            return replace(self, **dict(values))
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(_Table):
    """Everything that changes what comes out, and how many work on it.

    Attributes:
        mode: ``fast`` or ``accurate``.
        model: name in the manifest; ``""`` is the manifest's default.
        min_score: faces that score less are not hidden, 0.01 to 0.99; None is the model's own for the mode.
        margin: share of the face's width and height that is hidden too on each side, 0 to 2.
        style: ``blur``, ``pixelate`` or ``solid``.
        shape: ``ellipse`` or ``box``.
        boxes: draw a box round each hidden face.
        box_color: of these, ``#rrggbb``.
        keep_metadata: keep capture time, camera, lens and exposure tags.
        hold: seconds for which a face in a video or animation stays hidden before it is first seen and after it
            was last seen, 0 to 5.
        audio: ``update`` or ``drop`` a video's sound.
        salvage: handle as much of a damaged or cut-off video as can be decoded, instead of failing.
        max_pixels: pictures of more px are refused before they are decoded; in a program of your own, Pillow's
            ``Image.MAX_IMAGE_PIXELS`` holds besides.
        jobs: worker processes; None is one per processor.
    """

    mode: Mode = Mode.ACCURATE
    model: str = ""
    min_score: float | None = None
    margin: float = 0.3  # 98 % of the faces found are then covered to 95 % of their ellipse and more
    style: Style = Style.BLUR
    shape: Shape = Shape.ELLIPSE
    boxes: bool = False
    box_color: str = "#00ff00"
    keep_metadata: bool = False
    hold: float = 0.4
    audio: Audio = Audio.KEEP
    salvage: bool = False
    max_pixels: int = 200 * MEGAPIXEL
    jobs: int | None = None

    _ranges: ClassVar[Mapping[str, tuple[float, float]]] = RANGES

    @property
    def box_rgb(self) -> tuple[int, int, int]:
        """``box_color`` as three numbers, 0 to 255."""
        red, green, blue = bytes.fromhex(self.box_color[1:])
        return red, green, blue


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings(_Table):
    """How the drop folder is watched, and what becomes of the files in it.

    Names of folders and files are taken as they stand: relative ones count from where blurguard was started, also
    those in a settings file, and ``~`` is a name like any other.

    Attributes:
        settle: seconds without a sign of change after which a file is complete, 0 to 3600.
        rescan: seconds between looks at the whole inbox, 0.1 to 86400.
        poll: ask the file system again and again instead of waiting for its events, as network shares need.
        originals: ``update``, ``move`` or ``delete`` those whose results stand.
        move_to: folder that originals are moved to; needed with ``move``, refused without.
        failed: folder for originals that failed, with a note each; ``""`` leaves them where they are.
        timeout: seconds without a sign of life after which a file is given up and its worker replaced, 1 to 86400.
        grace: seconds that files being worked on get when the daemon is asked to stop, 0 to 3600.
        min_free: MB (10^6 bytes) that must be free in the outbox, 0 to 10^9; under it nothing is taken.
        recycle: files after which a worker process is replaced, 1 to 10^6.
        health: file touched in each loop; ``""`` is ``.blurguard/health.json`` in the outbox.
        metrics: text file for Prometheus; ``""`` is none.
        retry_failed: try again what failed, once; only the command line can wish it.
        allow_shared: accept folders that others can write to.
    """

    settle: float = 1.0
    rescan: float = 60.0
    poll: bool = False
    originals: Originals = Originals.KEEP
    move_to: str = ""
    failed: str = ""
    timeout: float = 300.0
    grace: float = 10.0
    min_free: int = 500
    recycle: int = 1000
    health: str = ""
    metrics: str = ""
    retry_failed: bool = False
    allow_shared: bool = False

    _ranges: ClassVar[Mapping[str, tuple[float, float]]] = WATCH_RANGES

    def fixed_but_changed(self, other: WatchSettings) -> list[str]:
        """Return the settings that differ in ``other``, and that only a new start changes."""
        return [name for name in FIXED_WHILE_RUNNING if getattr(self, name) != getattr(other, name)]

    def complete(self) -> WatchSettings:
        """Return the settings, once every source has been heard: one may choose ``move`` and another the folder.

        Raises:
            ConfigError: ``move`` without ``move_to``, or the reverse.
        """
        if self.originals is Originals.MOVE and not self.move_to:
            raise ConfigError("originals is move, but move_to names no folder; set it, or choose keep or delete")
        if self.move_to and self.originals is not Originals.MOVE:
            raise ConfigError(
                f"move_to is {self.move_to!r}, but originals is {self.originals}; "
                "set originals to move, or take move_to back"
            )
        return self


_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _kinds(table: type[_Table]) -> dict[str, tuple[type, bool]]:
    """Return per setting its type, and whether it may be None."""
    hints = get_type_hints(table)
    kinds = {field.name: get_args(hints[field.name]) or (hints[field.name],) for field in fields(table)}
    return {name: (kind[0], NoneType in kind) for name, kind in kinds.items()}


def _checked(name: str, value: Any, wanted: Any, limits: tuple[float, float] | None) -> Any:
    """Return the value in its proper type, or raise ``ConfigError``."""
    if issubclass(wanted, StrEnum):
        return _choice(name, value, wanted)
    if not isinstance(value, float | int if wanted is float else wanted) or (
        isinstance(value, bool) and wanted is not bool
    ):
        raise ConfigError(f"{name} must be of type {wanted.__name__}, not {value!r}")
    if limits is not None and not limits[0] <= value <= limits[1]:  # also refuses NaN
        raise ConfigError(f"{name} must lie between {limits[0]:g} and {limits[1]:g}, not {value!r}")
    if isinstance(value, str):
        _check_text(name, value)
    return wanted(value)


def _choice(name: str, value: Any, choices: type[StrEnum]) -> StrEnum:
    try:
        return choices(value)
    except ValueError as error:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}") from error


def _check_text(name: str, text: str) -> None:
    if name == "box_color" and not COLOR_PATTERN.fullmatch(text):
        raise ConfigError(f"box_color must look like #00ff00, not {text!r}")
    if "\0" in text:  # no name of a file can
        raise ConfigError(f"{name} must not hold NUL characters, as {text!r} does")


def from_file(base: Settings, path: Path) -> Settings:
    """Return ``base`` changed by a TOML file of settings; its table ``[watch]`` is checked, and not used.

    Raises:
        ConfigError: when it cannot be read, is not TOML, or holds an unknown key or a bad value.
    """
    return _read_file(path).over(base, WatchSettings())[0]


def from_environment(base: Settings, environment: Mapping[str, str] = os.environ) -> Settings:
    """Return ``base`` changed by the ``BLURGUARD_*`` variables; ``BLURGUARD_WATCH_*`` are checked, and not used.

    Raises:
        ConfigError: for a variable that names no setting, or a value that does not fit.
    """
    return _read_environment(environment).over(base, WatchSettings())[0]


def read_settings(config: Path | None, environment: Mapping[str, str] = os.environ) -> tuple[Settings, WatchSettings]:
    """Return both tables: defaults, then the file, then the environment; to be called again to read them again.

    What the command line says comes over them with ``update``, and then ``complete``. The file is read once, so that
    both tables are of one version of it.

    Raises:
        ConfigError: as ``from_file`` and ``from_environment`` do.
    """
    tables = Settings(), WatchSettings()
    if config is not None:
        tables = _read_file(config).over(*tables)
    return _read_environment(environment).over(*tables)


@dataclass(frozen=True, slots=True)
class _Source:
    """What one place says on both tables, and how a message names that place."""

    values: Mapping[str, Any]
    origin: str
    watch: Mapping[str, Any]
    watch_origin: str

    def over(self, settings: Settings, watch: WatchSettings) -> tuple[Settings, WatchSettings]:
        """Return both tables changed; an error in either is one, whoever asks."""
        if ONE_SHOT in self.watch:
            option = "--" + ONE_SHOT.replace("_", "-")
            raise ConfigError(f"{self.watch_origin}: {ONE_SHOT} is for one run only: give {option} on the command line")
        return settings.with_values(self.values, self.origin), watch.with_values(self.watch, self.watch_origin)


def _read_file(path: Path) -> _Source:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the settings: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    watch = values.pop(WATCH_SECTION, {})
    if not isinstance(watch, dict):
        raise ConfigError(f"{path}: {WATCH_SECTION} must be a table, [{WATCH_SECTION}], not {watch!r}")
    return _Source(values, str(path), watch, f"{path}: [{WATCH_SECTION}]")


def _read_environment(environment: Mapping[str, str]) -> _Source:
    texts = {
        key.removeprefix(ENVIRONMENT_PREFIX).lower(): text
        for key, text in environment.items()
        if key.startswith(ENVIRONMENT_PREFIX) and key != CONFIG_VARIABLE
    }
    start = f"{WATCH_SECTION}_"
    watch = {name.removeprefix(start): text for name, text in texts.items() if name.startswith(start)}
    own = {name: text for name, text in texts.items() if not name.startswith(start)}
    return _Source(
        _parsed(Settings, own),
        f"environment ({ENVIRONMENT_PREFIX}*)",
        _parsed(WatchSettings, watch),
        f"environment ({ENVIRONMENT_PREFIX}{start.upper()}*)",
    )


def _parsed(table: type[_Table], texts: Mapping[str, str]) -> dict[str, Any]:
    """Turn variables' texts into the types that a TOML file would have given."""
    known = _kinds(table)
    return {name: _value(text, known[name][0]) if name in known else text for name, text in texts.items()}


def _value(text: str, wanted: type) -> Any:
    """Return the text as a value of that type; bad text stays as it is, and is left to the check."""
    if wanted is bool:
        return _SWITCH.get(text.lower(), text)
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            return text
    return text
