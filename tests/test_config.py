"""Settings that are not exactly right are refused, wherever they come from."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from blurguard.declarations import declared
from blurguard.errors import ConfigError
from blurguard.settings import Mode, Settings, Shape, Style, read_settings

RANGES = {each.name: each.limits for each in declared(Settings) if each.limits}
BAD: list[tuple[str, Any]] = [
    *((name, value) for name, (low, high) in RANGES.items() for value in (low - 1, high + 1, math.nan, math.inf)),
    *((name, "much") for name in RANGES),
    *((name, True) for name in RANGES),
    ("min_score", 0.0),
    ("min_score", 1.0),
    ("min_score", 5),
    ("margin", None),
    ("max_pixels", None),
    ("max_pixels", 1e6),
    ("max_pixels", 10**400),
    ("jobs", 0),
    ("jobs", 1.5),
    ("mode", "slow"),
    ("mode", "Fast"),
    ("mode", ["fast"]),
    ("mode", None),
    ("model", 3),
    ("style", "none"),
    ("style", ""),
    ("shape", "circle"),
    ("boxes", "yes"),
    ("boxes", 1),
    ("keep_metadata", 0),
    ("keep_metadata", None),
    ("box_color", "red"),
    ("box_color", "#0f0"),
    ("box_color", "#00ff00 "),
    ("box_color", "#00ff0g"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_an_error_that_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"\b{name}\b"):
        Settings(**{name: value})


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, limits in RANGES.items() for value in limits])
def test_the_limits_themselves_are_accepted(name: str, value: float) -> None:
    integral = isinstance(getattr(Settings(max_pixels=1, jobs=1), name), int)
    values: dict[str, Any] = {name: int(value) if integral else value}
    assert getattr(Settings(**values), name) == value


def test_defaults_protect() -> None:
    settings = Settings()
    assert (settings.mode, settings.style, settings.shape) == (Mode.ACCURATE, Style.BLUR, Shape.ELLIPSE)
    assert settings.margin > 0 and settings.min_score is None
    assert not settings.keep_metadata and not settings.boxes


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().margin = 0.0  # type: ignore[misc]


def test_values_are_brought_to_their_types() -> None:
    settings = Settings(mode="fast", style="solid", margin=1)  # type: ignore[arg-type]
    assert settings.mode is Mode.FAST and settings.style is Style.SOLID
    assert type(settings.margin) is float
    assert Settings(box_color="#0a80FF").box_rgb == (10, 128, 255)


def test_settings_are_json() -> None:
    assert Settings(**json.loads(json.dumps(Settings(jobs=2, mode=Mode.FAST).as_json()))) == Settings(
        jobs=2, mode=Mode.FAST
    )


def settings_file(folder: Path, text: str) -> Path:
    path = folder / "blurguard.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    text = 'mode = "fast"\nmin_score = 0.4\nboxes = true\njobs = 3\nmax_pixels = 1_000_000\nmargin = 0\n'
    settings, _ = read_settings(settings_file(tmp_path, text), {})
    assert settings == Settings(mode=Mode.FAST, min_score=0.4, boxes=True, jobs=3, max_pixels=1_000_000, margin=0.0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("margine = 0.3", "margine"),
        ("min-score = 0.3", "min-score"),
        ("margin = nan", "margin"),
        ("margin = inf", "margin"),
        ("min_score = 5", "min_score"),
        ("min_score = '0.5'", "min_score"),
        ("boxes = 'true'", "boxes"),
        ("jobs = 2.0", "jobs"),
        ("mode = ['fast']", "mode"),
        ("mode = 2026-01-01", "mode"),
        ("[hide]\nstyle = 'solid'", "hide"),
        ("margin = 0.1\nmargin = 0.2", "TOML"),
        ("margin =", "TOML"),
    ],
)
def test_a_bad_file_is_an_error_that_names_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    path = settings_file(tmp_path, text)
    with pytest.raises(ConfigError, match=named) as caught:
        read_settings(path, {})
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_settings(tmp_path / "absent.toml", {})
    (tmp_path / "latin.toml").write_bytes(b"model = '\xff'")
    with pytest.raises(ConfigError, match="TOML"):
        read_settings(tmp_path / "latin.toml", {})


@pytest.mark.parametrize("text", ["1", "true", "YES", "On"])
def test_switches_of_the_environment_turn_on(text: str) -> None:
    assert read_settings(None, {"BLURGUARD_KEEP_METADATA": text})[0].keep_metadata is True


@pytest.mark.parametrize("text", ["0", "FALSE", "no", "off"])
def test_switches_of_the_environment_turn_off(text: str, tmp_path: Path) -> None:
    path = settings_file(tmp_path, "boxes = true")
    assert read_settings(path, {"BLURGUARD_BOXES": text})[0].boxes is False


def test_the_environment_changes_what_it_names() -> None:
    variables = {
        "BLURGUARD_MODE": "fast",
        "BLURGUARD_MIN_SCORE": "0.25",
        "BLURGUARD_JOBS": "4",
        "BLURGUARD_BOX_COLOR": "#ffffff",
        "BLURGUARD_CONFIG": "elsewhere.toml",
        "PATH": "/bin",
    }
    wanted = Settings(mode=Mode.FAST, min_score=0.25, jobs=4, box_color="#ffffff")
    assert read_settings(None, variables)[0] == wanted


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("BLURGUARD_MARGINE", "0.2"),
        ("BLURGUARD_MARGIN", "nan"),
        ("BLURGUARD_MARGIN", "wide"),
        ("BLURGUARD_MIN_SCORE", "5"),
        ("BLURGUARD_MIN_SCORE", ""),
        ("BLURGUARD_JOBS", "1.5"),
        ("BLURGUARD_JOBS", "0"),
        ("BLURGUARD_BOXES", "maybe"),
        ("BLURGUARD_KEEP_METADATA", ""),
        ("BLURGUARD_STYLE", "bare"),
    ],
)
def test_a_bad_variable_is_an_error_that_names_it(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=variable.removeprefix("BLURGUARD_").lower()) as caught:
        read_settings(None, {variable: text})
    assert "BLURGUARD_" in str(caught.value)


def test_the_environment_comes_before_the_file_and_the_file_before_the_default(tmp_path: Path) -> None:
    path = settings_file(tmp_path, 'mode = "fast"\nmargin = 0.5\n')
    settings, _ = read_settings(path, {"BLURGUARD_MARGIN": "0.7"})
    assert settings == Settings(mode=Mode.FAST, margin=0.7)
    asked = settings.changed({"margin": 0.9}, "command line")
    assert asked == Settings(mode=Mode.FAST, margin=0.9)
