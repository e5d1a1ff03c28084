"""The options that every command of the command line shares, as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blurguard.config import Audio, Mode, Shape, Style

HIDING, LOOKING, TELLING = "How faces are hidden", "How faces are found", "What is told"
VIDEO = "Videos and animations"


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
