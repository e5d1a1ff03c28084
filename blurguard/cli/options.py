"""The options of the command line, as tables: those that every command shares, and those of the drop folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blurguard.settings import Audio, Mode, Originals, Shape, Style

HIDING, LOOKING, TELLING = "How faces are hidden", "How faces are found", "What is told"
VIDEO = "Videos and animations"
TAKING, BECOMING, RUNNING = "When files are taken", "What becomes of files", "Running"


def _named(text: str) -> Path:
    """Return the path; an empty name, an unset variable's as a rule, would else be the folder one stands in."""
    if not text:
        raise typer.BadParameter("an empty name; leave the option out, or name a file or folder")
    return Path(text)


def shared_options(  # noqa: PLR0913 - it is a table of options
    mode: Annotated[
        Mode | None,
        typer.Option(
            help="How hard to look: accurate finds more, fast is quick.",
            show_default="accurate",
            rich_help_panel=LOOKING,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Detector; see `blurguard models`.", show_default="the first", rich_help_panel=LOOKING),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            help="Hide faces from this score, 0.01 to 0.99; lower hides more.",
            show_default="the model's",
            rich_help_panel=LOOKING,
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Share of the face's size hidden beyond it on each side, 0 to 2.",
            show_default="0.3",
            rich_help_panel=HIDING,
        ),
    ] = None,
    style: Annotated[
        Style | None, typer.Option(help="What takes a face's place.", show_default="blur", rich_help_panel=HIDING)
    ] = None,
    shape: Annotated[
        Shape | None,
        typer.Option(help="Which part of a region is hidden.", show_default="ellipse", rich_help_panel=HIDING),
    ] = None,
    boxes: Annotated[
        bool | None,
        typer.Option("--boxes/--no-boxes", help="Draw a box round each hidden face.", rich_help_panel=HIDING),
    ] = None,
    box_color: Annotated[
        str | None, typer.Option(help="Colour of the boxes.", show_default="#00ff00", rich_help_panel=HIDING)
    ] = None,
    keep_metadata: Annotated[
        bool | None,
        typer.Option(
            "--keep-metadata/--drop-metadata",
            help="Keep capture time, camera, lens and exposure; never thumbnails, GPS, serial numbers, names.",
        ),
    ] = None,
    hold: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a face stays hidden before it is first seen and after it was last seen.",
            show_default="0.4",
            rich_help_panel=VIDEO,
        ),
    ] = None,
    audio: Annotated[
        Audio | None, typer.Option(help="What becomes of the sound.", show_default="keep", rich_help_panel=VIDEO)
    ] = None,
    salvage: Annotated[
        bool | None,
        typer.Option(
            "--salvage/--no-salvage",
            help="Handle what can be decoded of damaged or cut-off videos, instead of failing.",
            rich_help_panel=VIDEO,
        ),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Refuse larger pictures and videos unseen.", show_default="200000000")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Worker processes.", show_default="one per processor")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files that blurguard did not make.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Find and tell, write nothing.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a JSON line per file here.", rich_help_panel=TELLING)
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Tell of failures only.", rich_help_panel=TELLING)
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line per file.", rich_help_panel=TELLING)] = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="JSON lines on standard error.", rich_help_panel=TELLING)
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="BLURGUARD_CONFIG",
            help="TOML file of settings. Variables BLURGUARD_* override it, options override both.",
        ),
    ] = None,
) -> None:
    """Hold the signature that every command shares."""


def watch_options(  # noqa: PLR0913 - it is a table of options
    settle: Annotated[
        float | None,
        typer.Option(
            help="Seconds without a change after which a file is complete, 0 to 3600.",
            show_default="1",
            rich_help_panel=TAKING,
        ),
    ] = None,
    rescan: Annotated[
        float | None,
        typer.Option(
            help="Seconds between looks at the whole inbox, 0.1 to 86400.", show_default="60", rich_help_panel=TAKING
        ),
    ] = None,
    poll: Annotated[
        bool | None,
        typer.Option(
            "--poll/--no-poll",
            help="Look for changes instead of waiting for word of them: network shares send none.",
            show_default="no-poll",
            rich_help_panel=TAKING,
        ),
    ] = None,
    min_free: Annotated[
        int | None,
        typer.Option(
            help="MB that must be free in the outbox; under it nothing is taken.",
            show_default="500",
            rich_help_panel=TAKING,
        ),
    ] = None,
    retry_failed: Annotated[
        bool | None,
        typer.Option(
            "--retry-failed", help="Try again, once, what failed and has not changed since.", rich_help_panel=TAKING
        ),
    ] = None,
    originals: Annotated[
        Originals | None,
        typer.Option(
            help="What becomes of an original whose result stands.", show_default="keep", rich_help_panel=BECOMING
        ),
    ] = None,
    move_to: Annotated[
        Path | None,
        typer.Option(
            parser=_named,
            metavar="FOLDER",
            help="Where originals go, with --originals move only.",
            show_default="nowhere",
            rich_help_panel=BECOMING,
        ),
    ] = None,
    failed: Annotated[
        Path | None,
        typer.Option(
            parser=_named,
            metavar="FOLDER",
            help="Where originals that failed go, with a note each.",
            show_default="they stay",
            rich_help_panel=BECOMING,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds without a sign of life after which a file has failed, 1 to 86400.",
            show_default="300",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            help="Seconds to finish what is being worked on when asked to stop, 0 to 3600.",
            show_default="10",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    recycle: Annotated[
        int | None,
        typer.Option(
            help="Files after which a worker process is replaced, 1 to 1000000.",
            show_default="1000",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    health: Annotated[
        Path | None,
        typer.Option(
            parser=_named,
            metavar="FILE",
            help="File that is touched as long as the daemon runs.",
            show_default="OUTBOX/.blurguard/health.json",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    metrics: Annotated[
        Path | None,
        typer.Option(
            parser=_named,
            metavar="FILE",
            help="Text file of numbers for Prometheus.",
            show_default="none",
            rich_help_panel=RUNNING,
        ),
    ] = None,
    allow_shared: Annotated[
        bool | None,
        typer.Option(
            "--allow-shared/--refuse-shared",
            help="Accept folders that others can write to.",
            show_default="refuse-shared",
            rich_help_panel=RUNNING,
        ),
    ] = None,
) -> None:
    """Hold the signature of the drop folder's options: one per field of ``WatchSettings``."""
