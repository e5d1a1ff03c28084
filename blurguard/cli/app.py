"""The commands. They translate options into calls of the packages below, and outcomes into messages."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Exit, Option, Typer, echo

from blurguard import __version__
from blurguard.cli.command import Run, command, worker_config
from blurguard.cli.options import RunOptions
from blurguard.errors import EXIT_BATCH_FAILED, EXIT_OK, EXIT_UNFORESEEN, ConfigError
from blurguard.settings import Settings, WatchSettings

if TYPE_CHECKING:
    from blurguard.types import Outcome

app = Typer(
    name="blurguard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Hide every face in your photos and videos, irreversibly and offline.",
    epilog="Exit codes: 0 all done or skipped, 1 unforeseen, 2 usage, 3 settings, 4 model, 5 input, 6 output, "
    "7 a batch with at least one failure, 130 interrupted.",
)


@command(app, "dir", Settings, RunOptions)
def _dir(
    run: Run,
    photos: Annotated[Path, Argument(help="Folder to search, with its subfolders.")],
    out: Annotated[Path | None, Option("--out", "-o", help="Result folder.", show_default="PHOTOS_blurred")] = None,
    in_place: Annotated[bool, Option("--in-place", help="Replace the originals.")] = False,
) -> int:
    """Hide the faces in all pictures and videos of a folder. The results get the same names in another folder.

    Files with an up-to-date result are skipped. Originals are not touched unless --in-place is given.
    """
    from blurguard.batch import discovery, output_tree, runner

    if in_place and out is not None:
        raise BadParameter("--in-place and --out exclude each other")
    target = photos if in_place else out or discovery.folder_beside(photos)
    task = output_tree.FolderTask(photos, target, run.worker_config, run.options.overwrite, run.options.dry_run)
    if task.in_place and not in_place:
        raise ConfigError(f"{target}: the results would replace the originals; choose another --out or give --in-place")
    files = task.discover()
    if not files.media:
        run.console.say(f"no pictures or videos in {photos}")
    code = _report_outcomes(run, len(files.media), runner.anonymize_folder(task, files.media), files.left_alone)
    if files.media and not run.options.dry_run:
        run.console.say(f"results in {target}")
    return EXIT_BATCH_FAILED if code else EXIT_OK


@command(app, "file", Settings, RunOptions)
def _file(
    run: Run,
    files: Annotated[list[Path], Argument(help="One or more pictures or videos.")],
    out: Annotated[
        Path | None, Option("--out", "-o", help="Result file, or a folder.", show_default="NAME_blurred beside it")
    ] = None,
) -> int:
    """Hide the faces in single pictures and videos."""
    from blurguard.batch import discovery, runner

    pairs, options = discovery.targets_for(list(dict.fromkeys(files)), out), run.options
    outcomes = runner.anonymize_files(pairs, run.worker_config, overwrite=options.overwrite, dry_run=options.dry_run)
    code = _report_outcomes(run, len(pairs), outcomes, Counter())
    return EXIT_BATCH_FAILED if code and len(pairs) > 1 else code


@command(app, "detect", Settings, RunOptions)
def _detect(
    run: Run,
    paths: Annotated[list[Path], Argument(help="Pictures, videos, or folders of them.")],
    json_file: Annotated[Path, Option("--json", help="Result file of JSON lines. - is standard output.")] = Path("-"),
) -> int:
    """Detect faces in pictures and videos and write their positions. Nothing is hidden."""
    from blurguard.batch import discovery, runner
    from blurguard.cli.report import JsonLines, detection_json

    if run.options.report == json_file:
        raise ConfigError(f"{json_file}: --json and --report name the same file; choose two names")
    found = [discovery.discover(path) if path.is_dir() else discovery.Discovery((path,), Counter()) for path in paths]
    files = [file for each in found for file in each.media]
    left_alone = sum((each.left_alone for each in found), Counter[str]())
    workers = run.worker_config.sized_for(len(files))
    workers.factory()  # a detector that cannot run fails the whole run, not each file
    with JsonLines(json_file) as lines:

        def outcomes() -> Iterator[Outcome]:
            for outcome in runner.detect_files(files, workers):
                lines.write(detection_json(outcome))
                yield outcome

        code = _report_outcomes(run, len(files), outcomes(), left_alone)
    return EXIT_BATCH_FAILED if code and paths != files[:1] else code


@command(app, "watch", WatchSettings, Settings, RunOptions, without=("dry_run", "report"))
def _watch(
    run: Run,
    inbox: Annotated[Path, Argument(help="Folder to watch, with its subfolders.")],
    outbox: Annotated[Path, Argument(help="Folder for the results.")],
) -> int:
    """Watch a folder and hide the faces in each file that arrives, until stopped.

    SIGTERM or Ctrl-C stops it, SIGHUP reloads the settings. After a crash or a kill, start it again.
    """
    from blurguard.batch.process import configure_process, cpu_count
    from blurguard.watch.daemon import watch
    from blurguard.watch.event_loop import RuntimeConfig
    from blurguard.watch.folders import folders_for

    def runtime_config(settings: Settings, watch_settings: WatchSettings) -> RuntimeConfig:
        return RuntimeConfig(worker_config(settings, run.console, cpu_count()), watch_settings.complete())

    configure_process()
    config = runtime_config(run.settings, run.watch_settings)
    folders = folders_for(inbox, outbox, config.settings)
    with run.console.live(f"watching {inbox}"):
        watch(folders, config, lambda: runtime_config(*run.read_settings()), run.console, run.options.overwrite)
    run.console.say(f"stopped; results are in {outbox}")
    return EXIT_OK


@command(app, "status")
def _status(
    outbox: Annotated[Path, Argument(help="Outbox of a drop folder.")],
    as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    check: Annotated[bool, Option("--check", help="Exit with 1 unless a daemon runs and is not paused.")] = False,
    health: Annotated[Path | None, Option(help="Status file, as in --health.", show_default="in the outbox")] = None,
) -> int:
    """Show the state of a drop folder."""
    from blurguard.cli.console import plain_console, printable
    from blurguard.watch.health import read_status

    console, status = plain_console(), read_status(outbox, health, time.time())
    for line in [json.dumps(status.as_json())] if as_json else map(printable, status.lines()):
        console.print(line, markup=False)
    return EXIT_UNFORESEEN if check and not status.healthy else EXIT_OK


@command(app, "models")
def _models() -> int:
    """List the detectors for --model."""
    from blurguard.cli.console import plain_console
    from blurguard.detection import model_zoo

    console = plain_console()
    manifest = model_zoo.load_manifest()
    for index, model in enumerate(manifest.models):
        console.print(f"{model.name}{'' if index else ' (default)'}", markup=False)
        for mode, plan in model.plans.items():
            uses = " and ".join(plan.networks)
            console.print(f"  {mode}: {uses}, hides from a probability of {plan.threshold:g}", markup=False)
    for spec in manifest.networks.values():
        console.print(
            f"network {spec.name}\n  license: {spec.license}\n  source: {spec.source}\n"
            f"  trained on: {spec.training_data}\n  SHA-256: {spec.sha256}\n"
            f"  file: {model_zoo.models_dir() / spec.file}",
            markup=False,
        )
    return EXIT_OK


@command(app, "doctor")
def _doctor(
    folders: Annotated[list[Path] | None, Argument(help="Folders to check.", show_default="current folder")] = None,
) -> int:
    """Check the runtime, models, codecs and folders. The exit code is that of the first failure."""
    from rich.markup import escape

    from blurguard.cli.console import plain_console, printable
    from blurguard.cli.doctor import run_checks

    console, code = plain_console(), EXIT_OK
    console.print(f"blurguard {__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    for check in run_checks(folders or [Path()]):
        code = code or check.exit_code
        mark = "[bold red]FAIL[/]" if check.exit_code else "[green]ok[/]  "
        console.print(f"{mark} {escape(printable(check.name))}: {escape(printable(check.detail))}")
    return code


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    if version:
        echo(f"blurguard {__version__}")
        raise Exit


def main() -> None:
    """Run the command line and exit with its code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape names that the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    app()


def _interrupt(number: int, _: object) -> None:
    """Treat SIGTERM and SIGHUP as Ctrl-C, so that unfinished results are removed."""
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the removal
    raise KeyboardInterrupt


def _report_outcomes(run: Run, total: int, outcomes: Iterator[Outcome], left_alone: Counter[str]) -> int:
    """Report each outcome, then the totals. Return the exit code of the first failure, or 0."""
    from blurguard.batch.process import configure_process
    from blurguard.cli.report import JsonLines, outcome_json

    configure_process()
    started = time.perf_counter()
    with JsonLines(run.options.report) as report, contextlib.closing(outcomes), run.console.batch(total):  # type: ignore[type-var]
        for outcome in outcomes:
            report.write(outcome_json(outcome, run.effective_settings))
            run.console.advance(outcome)
    run.console.show_totals(time.perf_counter() - started, left_alone)
    return run.console.exit_code
