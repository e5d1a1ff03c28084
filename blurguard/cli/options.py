"""Command-line options, made from declared settings."""

from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from blurguard.declarations import Setting, declared, setting
from blurguard.settings import CONFIG_VARIABLE

REPORTING = "Reporting"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of a run that are not settings: no settings file can contain them."""

    overwrite: bool = setting(False, "Replace existing files that blurguard did not write.", flags="--overwrite")
    dry_run: bool = setting(False, "Detect and report faces, but write no results.", flags="--dry-run -n")
    report: Path | None = setting(None, "Write one JSON line per file to this file.", REPORTING)
    quiet: bool = setting(False, "Print failures only.", REPORTING, flags="--quiet -q")
    verbose: bool = setting(False, "Print one line per file.", REPORTING, flags="--verbose -v")
    log_json: bool = setting(False, "Write JSON lines to standard error.", REPORTING, flags="--log-json")
    config: Path | None = setting(
        None, "TOML file of settings. BLURGUARD_* variables override it, options both.", variable=CONFIG_VARIABLE
    )


def options_for(table: type[Any]) -> list[Parameter]:
    """Return one option per declared setting, as parameters of a command. An option not given is None."""
    return [_parameter(each) for each in declared(table)]


def _parameter(declaration: Setting) -> Parameter:
    limits = f" From {declaration.range_text}." if declaration.limits else ""
    option: Any = typer.Option(
        *declaration.option.split(), help=declaration.help + limits, show_default=declaration.default_text or False,
        metavar=declaration.metavar, parser=_file_name if declaration.metavar else None,
        envvar=declaration.variable, rich_help_panel=declaration.panel,
    )  # fmt: skip
    kind: Any = declaration.kind | None
    return Parameter(declaration.name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _file_name(text: str) -> str:
    """Refuse an empty name, often an unset variable: it would be the working directory."""
    if not text:
        raise typer.BadParameter("an empty name; leave the option out, or name a file or folder")
    return text
