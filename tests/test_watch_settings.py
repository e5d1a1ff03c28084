"""The drop folder's settings: as strict as the others, from the same file and environment, and each has its option."""

import inspect
import math
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from blurguard.cli.options import RunOptions, options_for
from blurguard.declarations import declared
from blurguard.errors import ConfigError
from blurguard.settings import Mode, Originals, Settings, WatchSettings, read_settings

WATCH_RANGES = {each.name: (each.limits[0], each.limits[1]) for each in declared(WatchSettings) if each.limits}
INTEGRAL = ("min_free", "recycle")
TEXTS = ("move_to", "failed", "health", "metrics")
SWITCHES = ("poll", "retry_failed", "allow_shared")
DEFAULTS = {
    "settle": 1.0,
    "rescan": 60.0,
    "poll": False,
    "originals": "keep",
    "move_to": "",
    "failed": "",
    "timeout": 300.0,
    "grace": 10.0,
    "min_free": 500,
    "recycle": 1000,
    "health": "",
    "metrics": "",
    "retry_failed": False,
    "allow_shared": False,
}
BAD: list[tuple[str, Any]] = [
    *((name, value) for name, (low, high) in WATCH_RANGES.items() for value in (low - 1, high + 1)),
    *((name, value) for name in WATCH_RANGES for value in (math.nan, math.inf, 10**400, "1", True, None)),
    *((name, 2.0) for name in INTEGRAL),
    *((name, value) for name in TEXTS for value in (None, 3, True, ["x"], b"x", Path("x"), "nul\0")),
    *((name, value) for name in SWITCHES for value in (None, 0, 1, "yes")),
    *(("originals", value) for value in ("Keep", "", "burn", None, True, ["keep"], Mode.FAST)),
    ("rescan", 0),
    ("timeout", 0.99),
    ("recycle", 0),
]


def test_what_holds_when_nothing_is_said() -> None:
    assert WatchSettings().as_json() == DEFAULTS
    assert WatchSettings().complete() == WatchSettings()


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_an_error_that_names_setting_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} must ") as caught:
        WatchSettings(**{name: value})
    assert repr(value) in str(caught.value)
    with pytest.raises(ConfigError, match=rf"^here: {name} must "):
        WatchSettings().changed({name: value}, "here")


@pytest.mark.parametrize("name", WATCH_RANGES)
@given(data=st.data())
def test_a_number_is_accepted_exactly_within_its_range(name: str, data: st.DataObject) -> None:
    low, high = WATCH_RANGES[name]
    near = st.sampled_from([low, high, math.nextafter(low, -math.inf), math.nextafter(high, math.inf)])
    value = data.draw(st.integers(-(10**12), 10**12) if name in INTEGRAL else st.floats() | near | st.integers())
    if low <= value <= high:
        settings = WatchSettings().changed({name: value}, "here")
        assert getattr(settings, name) == value
        assert type(getattr(settings, name)) is (int if name in INTEGRAL else float)
    else:
        with pytest.raises(ConfigError, match=rf"^here: {name} must lie between .* and .*, not "):
            WatchSettings().changed({name: value}, "here")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, both in WATCH_RANGES.items() for value in both])
def test_the_limits_themselves_are_accepted(name: str, value: float) -> None:
    limit = {name: int(value) if name in INTEGRAL else value}
    assert getattr(WatchSettings().changed(limit, "here"), name) == value


@pytest.mark.parametrize("value", [Settings(jobs=3, mode=Mode.FAST), WatchSettings(settle=2, failed="f\udcff\n")])
def test_settings_reach_another_process_as_they_are(value: object) -> None:
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 - our own


# Sources -----------------------------------------------------------------------------------------------------------


def settings_file(folder: Path, text: str) -> Path:
    path = folder / "blurguard.toml"
    path.write_text(text, "utf-8")
    return path


def test_one_file_holds_both_tables(tmp_path: Path) -> None:
    text = 'margin = 0.5\n[watch]\nsettle = 5\noriginals = "move"\nmove_to = "/srv/done"\npoll = true\nmin_free = 0\n'
    path = settings_file(tmp_path, text)
    wanted = WatchSettings(settle=5.0, originals=Originals.MOVE, move_to="/srv/done", poll=True, min_free=0)
    assert read_settings(path, {}) == (Settings(margin=0.5), wanted)


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert read_settings(None, {}) == (Settings(), WatchSettings())
    assert read_settings(settings_file(tmp_path, "[watch]\n"), {}) == (Settings(), WatchSettings())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[watch]\nsetle = 1", "unknown setting setle"),
        ("[watch]\nmargin = 0.3", "unknown setting margin"),
        ("settle = 1", "unknown setting settle"),
        ("[watch]\nsettle = -1", "settle must lie"),
        ("[watch]\nsettle = '1'", "settle must be"),
        ("[watch]\nmin_free = 500.0", "min_free must be"),
        ("[watch]\noriginals = 'burn'", "originals must be one of keep, move, delete"),
        ("[watch]\nmove-to = 'x'", "unknown setting move-to"),
        ('[watch]\nfailed = "a\\u0000b"', "failed must not contain NUL"),
        ("[watch.folders]\nfailed = 'x'", "unknown setting folders"),
        ("[[watch]]\nsettle = 1", r"watch must be a table, \[watch\]"),
        ("watch = true", r"watch must be a table, \[watch\]"),
        ("[Watch]\nsettle = 1", "unknown setting Watch"),
        (f"[watch]\nsettle = 1{'0' * 5000}", "TOML"),
        ("[watch]\nretry_failed = false", "retry_failed is for one run only: give --retry-failed on the command line"),
    ],
)
def test_a_bad_table_is_an_error_for_every_command(tmp_path: Path, text: str, named: str) -> None:
    path = settings_file(tmp_path, text)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: .*{named}"):
        read_settings(path, {})


def test_variables_set_what_they_name() -> None:
    variables = {
        "BLURGUARD_MARGIN": "0.5",
        "BLURGUARD_CONFIG": "elsewhere.toml",
        "BLURGUARD_WATCH_SETTLE": "2.5",
        "BLURGUARD_WATCH_MIN_FREE": "9",
        "BLURGUARD_WATCH_POLL": "on",
        "BLURGUARD_WATCH_ALLOW_SHARED": "0",
        "BLURGUARD_WATCH_ORIGINALS": "delete",
        "BLURGUARD_WATCH_FAILED": os.fsdecode(b"/srv/\xff\n"),
        "BLURGUARD_WATCH_METRICS": "",
        "WATCH_GRACE": "1",
    }
    wanted = WatchSettings(
        settle=2.5, min_free=9, poll=True, originals=Originals.DELETE, failed=os.fsdecode(b"/srv/\xff\n")
    )
    assert read_settings(None, variables) == (Settings(margin=0.5), wanted)


@pytest.mark.parametrize(
    ("variable", "text", "named"),
    [
        ("WATCH_SETLE", "1", "unknown setting setle"),
        ("WATCH_MARGIN", "0.3", "unknown setting margin"),
        ("WATCH_", "1", "unknown setting"),
        ("WATCH", "1", "unknown setting watch"),
        ("WATCHER", "1", "unknown setting watcher"),
        ("SETTLE", "1", "unknown setting settle"),
        ("WATCH_SETTLE", "soon", "settle must be"),
        ("WATCH_SETTLE", "nan", "settle must lie"),
        ("WATCH_SETTLE", "", "settle must be"),
        ("WATCH_RECYCLE", "1.5", "recycle must be"),
        ("WATCH_RECYCLE", "0", "recycle must lie"),
        ("WATCH_POLL", "maybe", "poll must be"),
        ("WATCH_ORIGINALS", "burn", "originals must be one of keep, move, delete"),
        ("WATCH_RETRY_FAILED", "1", "retry_failed is for one run only: give --retry-failed on the command line"),
        ("WATCH_RETRY_FAILED", "0", "retry_failed is for one run only"),
    ],
)
def test_a_bad_variable_is_an_error_for_every_command(variable: str, text: str, named: str) -> None:
    variables = {f"BLURGUARD_{variable}": text}
    prefix = "BLURGUARD_WATCH_" if variable.startswith("WATCH_") else "BLURGUARD_"
    with pytest.raises(ConfigError, match=rf"^environment \({prefix}\*\): {named}"):
        read_settings(None, variables)


def test_each_source_overrides_the_one_below_it(tmp_path: Path) -> None:
    path = settings_file(tmp_path, "[watch]\nrescan = 10\ngrace = 10\ntimeout = 10\n")
    variables = {"BLURGUARD_WATCH_GRACE": "20", "BLURGUARD_WATCH_TIMEOUT": "20"}
    _, watch = read_settings(path, variables)
    watch = watch.changed({"timeout": 30.0, "retry_failed": True}, "command line").complete()
    assert watch == WatchSettings(settle=1, rescan=10, grace=20, timeout=30, retry_failed=True)


def test_what_has_changed_is_seen_when_the_sources_are_read_again(tmp_path: Path) -> None:
    variables = {"BLURGUARD_WATCH_GRACE": "20"}
    path = settings_file(tmp_path, "margin = 0.5\n[watch]\nsettle = 3\n")
    assert read_settings(path, variables) == (Settings(margin=0.5), WatchSettings(settle=3, grace=20))
    settings_file(tmp_path, "margin = 0.6\n[watch]\nrescan = 30\n")
    assert read_settings(path, variables) == (Settings(margin=0.6), WatchSettings(rescan=30, grace=20))


def test_both_tables_come_from_one_reading_of_a_file_that_can_be_read_only_once() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("margin = 0.5\n[watch]\nsettle = 3\n")
    try:
        assert read_settings(Path(f"/dev/fd/{reading}"), {}) == (Settings(margin=0.5), WatchSettings(settle=3))
    finally:
        os.close(reading)


# Originals ---------------------------------------------------------------------------------------------------------


def test_choice_and_folder_may_come_from_different_sources(tmp_path: Path) -> None:
    path = settings_file(tmp_path, '[watch]\noriginals = "move"\n')
    _, watch = read_settings(path, {})
    with pytest.raises(ConfigError, match="originals is move, but move_to names no folder"):
        watch.complete()
    wanted = WatchSettings(originals=Originals.MOVE, move_to="done")
    assert watch.changed({"move_to": "done"}, "command line").complete() == wanted
    assert read_settings(path, {"BLURGUARD_WATCH_MOVE_TO": "done"})[1].complete() == wanted


@pytest.mark.parametrize("originals", [Originals.KEEP, Originals.DELETE])
def test_a_folder_that_nothing_would_be_moved_to_is_an_error(originals: Originals) -> None:
    watch = WatchSettings(originals=originals, move_to="done")
    with pytest.raises(ConfigError, match=rf"move_to is 'done', but originals is {originals}; set originals to move"):
        watch.complete()
    assert watch.changed({"move_to": ""}, "environment").complete() == WatchSettings(originals=originals)


# Options -----------------------------------------------------------------------------------------------------------

TABLES = (Settings, WatchSettings)
WORDS = {
    **{"model": "the first", "min_score": "the model's", "jobs": "one per processor"},
    **{"health": "OUTBOX/.blurguard/health.json", "move_to": "none", "failed": "they stay", "metrics": "none"},
}


def application(run: Callable[..., None], *tables: type) -> typer.Typer:
    """Return a command line of one command that takes the options of these tables."""

    def command(**given: Any) -> None:
        run(given)

    every = [parameter for table in tables for parameter in options_for(table)]
    command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
    app = typer.Typer(add_completion=False)
    app.command()(command)
    return app


def options_of(table: type) -> dict[str, Any]:
    """Return by its setting's name what the parser knows of each option."""
    built: Any = typer.main.get_command(application(print, table))
    return {option.name: option for option in built.params}


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_has_exactly_one_option(table: type) -> None:
    assert sorted(options_of(table)) == sorted(field.name for field in fields(table))
    for name, option in options_of(table).items():
        assert option.opts[0] == "--" + name.replace("_", "-")
        assert option.default is None, "what is not given must not override"
        assert option.help.endswith("."), name


def test_all_tables_fit_into_one_command() -> None:
    names = [parameter.name for table in (*TABLES, RunOptions) for parameter in options_for(table)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("table", TABLES)
def test_the_default_that_is_shown_is_the_real_one(table: type) -> None:
    for field in fields(table):
        option = options_of(table)[field.name]
        shown = option.show_default
        if isinstance(field.default, bool):
            assert field.default is False and (shown or "") == "".join(flag[2:] for flag in option.secondary_opts)
        elif isinstance(field.default, int | float):
            assert float(shown) == field.default, field.name
        else:
            assert shown == (field.default or WORDS[field.name]), field.name


@pytest.mark.parametrize("table", TABLES)
def test_the_ranges_that_are_told_are_the_real_ones(table: type) -> None:
    told = {name: re.search(r"From ([\d.]+) to ([\d.]+)\.$", option.help) for name, option in options_of(table).items()}
    found = {name: (float(match[1]), float(match[2])) for name, match in told.items() if match}
    assert found == {each.name: each.limits for each in declared(table) if each.limits}


def chosen(*options: str, code: int = 0) -> dict[str, Any]:
    """Return what the command line says, as a command that takes both tables gets it."""
    values: dict[str, Any] = {}
    app = application(values.update, *TABLES)
    result = CliRunner().invoke(app, options)
    assert result.exit_code == code, result.output
    return {name: value for name, value in values.items() if value is not None}


def test_what_is_not_given_is_not_chosen() -> None:
    assert chosen() == {}


def test_what_is_given_is_chosen() -> None:
    given = chosen(
        *("--settle", "2", "--rescan", "30", "--poll", "--originals", "move", "--move-to", "a\udcff\nb"),
        *("--failed", "f", "--timeout", "9", "--grace", "0", "--min-free", "1", "--recycle", "7"),
        *("--health", "h", "--metrics", "m", "--retry-failed", "--allow-shared"),
    )
    assert sorted(given) == sorted(DEFAULTS)
    watch = WatchSettings().changed(given, "command line").complete()
    assert watch.as_json() == {
        **{"settle": 2.0, "rescan": 30.0, "poll": True, "originals": "move", "move_to": "a\udcff\nb", "failed": "f"},
        **{"timeout": 9.0, "grace": 0.0, "min_free": 1, "recycle": 7, "health": "h", "metrics": "m"},
        **{"retry_failed": True, "allow_shared": True},
    }


def test_switches_of_file_and_environment_can_be_taken_back() -> None:
    assert chosen("--no-poll", "--refuse-shared") == {"poll": False, "allow_shared": False}


@pytest.mark.parametrize("option", ["--move-to", "--failed", "--health", "--metrics"])
def test_an_empty_name_is_not_the_folder_one_stands_in(option: str) -> None:
    assert chosen(option, "", code=2) == {}
    assert chosen(option, ".") == {option[2:].replace("-", "_"): "."}
