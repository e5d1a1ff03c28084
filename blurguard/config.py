"""What a user can set: one frozen table of settings, read from the command line, the environment and TOML.

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
from typing import Any

from blurguard.errors import ConfigError

ENVIRONMENT_PREFIX = "BLURGUARD_"
CONFIG_VARIABLE = "BLURGUARD_CONFIG"
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


# name: (lowest, highest) accepted value
RANGES: dict[str, tuple[float, float]] = {
    "min_score": (0.01, 0.99),
    "margin": (0.0, 2.0),
    "hold": (0.0, 5.0),
    "jobs": (1, 256),
    "max_pixels": (1, 20_000 * MEGAPIXEL),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
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
        audio: ``keep`` or ``drop`` a video's sound.
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

    def __post_init__(self) -> None:
        """Bring values to their types and refuse those out of range.

        Raises:
            ConfigError: naming the setting, the value and what is accepted.
        """
        for field in fields(self):
            value = _checked(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    @property
    def box_rgb(self) -> tuple[int, int, int]:
        """``box_color`` as three numbers, 0 to 255."""
        red, green, blue = bytes.fromhex(self.box_color[1:])
        return red, green, blue

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON types."""
        return asdict(self)

    def changed(self, values: Mapping[str, Any], origin: str) -> Settings:
        """Return a copy with these values; an unknown name or a bad value is an error that names ``origin``."""
        unknown = sorted(set(values) - set(_TYPES))
        if unknown:
            raise ConfigError(f"{origin}: unknown setting {', '.join(unknown)}. Known: {', '.join(sorted(_TYPES))}")
        try:
            return replace(self, **dict(values))
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from error


_TYPES: dict[str, type] = {
    "mode": Mode,
    "model": str,
    "min_score": float,
    "margin": float,
    "style": Style,
    "shape": Shape,
    "boxes": bool,
    "box_color": str,
    "keep_metadata": bool,
    "hold": float,
    "audio": Audio,
    "salvage": bool,
    "max_pixels": int,
    "jobs": int,
}
_OPTIONAL = frozenset({"min_score", "jobs"})
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def _checked(name: str, value: Any) -> Any:
    """Return the value in its proper type, or raise ``ConfigError``."""
    if value is None and name in _OPTIONAL:
        return None
    wanted: Any = _TYPES[name]
    if issubclass(wanted, StrEnum):
        return _choice(name, value, wanted)
    if not isinstance(value, float | int if wanted is float else wanted) or (
        isinstance(value, bool) and wanted is not bool
    ):
        raise ConfigError(f"{name} must be of type {wanted.__name__}, not {value!r}")
    if name in RANGES:
        low, high = RANGES[name]
        if not low <= value <= high:  # also refuses NaN
            raise ConfigError(f"{name} must lie between {low:g} and {high:g}, not {value!r}")
    if name == "box_color" and not COLOR_PATTERN.fullmatch(str(value)):
        raise ConfigError(f"box_color must look like #00ff00, not {value!r}")
    return wanted(value)


def _choice(name: str, value: Any, choices: type[StrEnum]) -> StrEnum:
    try:
        return choices(value)
    except ValueError as error:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}") from error


def from_environment(base: Settings, environment: Mapping[str, str] = os.environ) -> Settings:
    """Return ``base`` changed by the ``BLURGUARD_*`` variables.

    Raises:
        ConfigError: for a variable that names no setting, or a value that does not fit.
    """
    values = {
        key.removeprefix(ENVIRONMENT_PREFIX).lower(): text
        for key, text in environment.items()
        if key.startswith(ENVIRONMENT_PREFIX) and key != CONFIG_VARIABLE
    }
    known = {name: _parsed(name, text) if name in _TYPES else text for name, text in values.items()}
    return base.changed(known, f"environment ({ENVIRONMENT_PREFIX}*)")


def _parsed(name: str, text: str) -> Any:
    """Turn a variable's text into the type that a TOML file would have given; leaves bad text to the check."""
    wanted = _TYPES[name]
    if wanted is bool:
        return _SWITCH.get(text.lower(), text)
    if wanted in (int, float):
        try:
            return wanted(text)
        except ValueError:
            return text
    return text


def from_file(base: Settings, path: Path) -> Settings:
    """Return ``base`` changed by a TOML file of settings.

    Raises:
        ConfigError: when it cannot be read, is not TOML, or holds an unknown key or a bad value.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the settings: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return base.changed(values, str(path))
