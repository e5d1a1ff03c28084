"""The commands: options in, messages and exit codes out. The work is done by the packages below."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blurguard import __version__
from blurguard.cli.options import RunOptions, options_for
from blurguard.errors import EXIT_BATCH_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_UNFORESEEN, BlurguardError, ConfigError
from blurguard.settings import Settings, WatchSettings, read_settings

if TYPE_CHECKING:
    from blurguard.batch.workers import WorkerConfig
    from blurguard.cli.console import ConsoleProgress
    from blurguard.types import Outcome

app = typer.Typer(
    name="blurguard",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Hide every face in your photos and videos, irreversibly and offline.",
    epilog="Exit codes: 0 all done or skipped, 1 unforeseen, 2 usage, 3 settings, 4 model, 5 input, 6 output, "
    "7 a batch with at least one failure, 130 interrupted.",
)
Command = Callable[..., int]
Given = Mapping[type[Any], Mapping[str, Any]]  # values of the options on the command line, by table
Tables = tuple[Settings, WatchSettings]


@dataclass(frozen=True, slots=True)
class Run:
    """Settings, options and console of a command.

    Attributes:
        read_settings: reads all sources again.
    """

    settings: Settings
    watch_settings: WatchSettings
    read_settings: Callable[[], Tables]
    options: RunOptions
    console: ConsoleProgress

    @property
    def effective_settings(self) -> Settings:
        """The settings for reports: with the model's own threshold if none was set."""
        from blurguard.detection.model_zoo import get_spec

        score = self.settings.min_score or get_spec(self.settings.model).thresholds[self.settings.mode]
        return replace(self.settings, min_score=score)

    @property
    def worker_config(self) -> WorkerConfig:
        """As many worker processes as set, by default one per processor."""
        return _worker_config(self.settings, self.console)


def _worker_config(settings: Settings, console: ConsoleProgress, threads: int = 1) -> WorkerConfig:
    from blurguard.anonymize.anonymizer import Anonymizer
    from blurguard.batch.process import cpu_count
    from blurguard.batch.workers import WorkerConfig

    factory = functools.partial(Anonymizer, settings)
    return WorkerConfig(factory, settings.jobs or cpu_count(), threads, console.frames)


def _command(name: str, *tables: type[Any], without: tuple[str, ...] = ()) -> Callable[[Command], Command]:
    """Register a command that returns an exit code. If it has tables, it takes a ``Run`` as ``run``.

    Args:
        name: of the command.
        tables: declared settings that become options of the command.
        without: settings that do not.
    """

    def register(function: Command) -> Command:
        shared = {table: [each for each in options_for(table) if each.name not in without] for table in tables}

        def command(**values: Any) -> None:
            given = {
                table: {each.name: value for each in options if (value := values.pop(each.name)) is not None}
                for table, options in shared.items()
            }
            raise typer.Exit(_exit_code(function, given, values))

        own = [each for each in inspect.signature(function, eval_str=True).parameters.values() if each.name != "run"]
        keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        parameters = [*keyword_only, *itertools.chain(*shared.values())]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        command.__doc__ = function.__doc__
        app.command(name)(command)
        return function

    return register


def _exit_code(function: Command, given: Given, arguments: dict[str, Any]) -> int:
    """Run a command. Every error becomes a message and an exit code."""
    from blurguard.cli.console import ConsoleProgress

    options = RunOptions(**given.get(RunOptions, {}))
    piped = "json_file" in arguments or options.report == Path("-")  # standard output is for JSON lines
    console = ConsoleProgress(quiet=options.quiet, verbose=options.verbose, as_json=options.log_json, to_stderr=piped)
    try:
        if given:
            read = functools.partial(_read_settings, options.config, given)
            arguments["run"] = Run(*read(), read, options, console)
        return function(**arguments)
    except BlurguardError as error:
        console.fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.fail("interrupted; finished results are complete, unfinished ones were removed")
        return EXIT_INTERRUPTED
    except (typer.Exit, typer.BadParameter, BrokenPipeError):  # typer reports them
        raise
    except Exception as error:
        console.fail(f"unforeseen failure, please report it: {type(error).__name__}: {error}")
        if options.verbose:
            console.errors.print_exception()
        return EXIT_UNFORESEEN


def _read_settings(config: Path | None, given: Given) -> Tables:
    """Return the settings: defaults, then the file, then the environment, then the command line.

    Raises:
        ConfigError: a bad value in file or environment.
        typer.BadParameter: a bad value on the command line.
    """
    settings, watch_settings = read_settings(config)
    try:
        return (
            settings.with_values(given[Settings], "command line"),
            watch_settings.with_values(given.get(WatchSettings, {}), "command line"),
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


@_command("dir", Settings, RunOptions)
def _dir(
    run: Run,
    photos: Annotated[Path, typer.Argument(help="Folder to search, with its subfolders.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default="PHOTOS_blurred")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the originals.")] = False,
) -> int:
    """Hide the faces in all pictures and videos of a folder. The results get the same names in another folder.

    Files with an up-to-date result are skipped. Originals are not touched unless --in-place is given.
    """
    from blurguard.batch.discovery import folder_beside
    from blurguard.batch.output_tree import FolderTask
    from blurguard.batch.runner import anonymize_folder

    if in_place and out is not None:
        raise typer.BadParameter("--in-place and --out exclude each other")
    target = photos if in_place else out or folder_beside(photos)
    task = FolderTask(photos, target, run.worker_config, run.options.overwrite, run.options.dry_run)
    if task.in_place and not in_place:
        raise ConfigError(f"{target}: the results would replace the originals; choose another --out or give --in-place")
    files = task.discover()
    if not files.media:
        run.console.say(f"no pictures or videos in {photos}")
    code = _report_outcomes(run, len(files.media), anonymize_folder(task, files.media), files.left_alone)
    if files.media and not run.options.dry_run:
        run.console.say(f"results in {target}")
    return EXIT_BATCH_FAILED if code else EXIT_OK


@_command("file", Settings, RunOptions)
def _file(
    run: Run,
    files: Annotated[list[Path], typer.Argument(help="One or more pictures or videos.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Name of the result, or a folder.", show_default="NAME_blurred, beside the original"
        ),
    ] = None,
) -> int:
    """Hide the faces in single pictures and videos."""
    from blurguard.batch.discovery import targets_for
    from blurguard.batch.runner import anonymize_files

    pairs = targets_for(list(dict.fromkeys(files)), out)
    outcomes = anonymize_files(pairs, run.worker_config, overwrite=run.options.overwrite, dry_run=run.options.dry_run)
    code = _report_outcomes(run, len(pairs), outcomes, Counter())
    return EXIT_BATCH_FAILED if code and len(pairs) > 1 else code


@_command("detect", Settings, RunOptions)
def _detect(
    run: Run,
    paths: Annotated[list[Path], typer.Argument(help="Pictures, videos, or folders of them.")],
    json_file: Annotated[
        Path, typer.Option("--json", help="File for the results, one JSON line per input. - is standard output.")
    ] = Path("-"),
) -> int:
    """Detect faces in pictures and videos and write their positions. Nothing is hidden."""
    from blurguard.batch.discovery import discover
    from blurguard.batch.runner import detect_files
    from blurguard.cli.report import JsonLines, detection_json

    if run.options.report == json_file:
        raise ConfigError(f"{json_file}: --json and --report name the same file; choose two names")
    left_alone: Counter[str] = Counter()
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            folder = discover(path)
            files.extend(folder.media)
            left_alone += folder.left_alone
        else:
            files.append(path)
    workers = run.worker_config.sized_for(len(files))
    workers.factory()  # a detector that cannot run fails the whole run, not each file
    with JsonLines(json_file) as lines:

        def outcomes() -> Iterator[Outcome]:
            for outcome in detect_files(files, workers):
                lines.write(detection_json(outcome))
                yield outcome

        code = _report_outcomes(run, len(files), outcomes(), left_alone)
    return EXIT_BATCH_FAILED if code and paths != files[:1] else code


@_command("watch", WatchSettings, Settings, RunOptions, without=("dry_run", "report"))
def _watch(
    run: Run,
    inbox: Annotated[Path, typer.Argument(help="Folder to watch, with its subfolders.")],
    outbox: Annotated[Path, typer.Argument(help="Folder for the results.")],
) -> int:
    """Watch a folder and hide the faces in each file that arrives, until stopped.

    SIGTERM or Ctrl-C stops it, SIGHUP reloads the settings. After a crash or a kill, start it again.
    """
    from blurguard.batch.process import configure_process, cpu_count
    from blurguard.watch.daemon import WatchTask, watch
    from blurguard.watch.event_loop import RuntimeConfig
    from blurguard.watch.folders import folders_for

    def runtime_config(settings: Settings, watch_settings: WatchSettings) -> RuntimeConfig:
        return RuntimeConfig(_worker_config(settings, run.console, cpu_count()), watch_settings.complete())

    configure_process()
    config = runtime_config(run.settings, run.watch_settings)
    folders = folders_for(inbox, outbox, config.settings)
    task = WatchTask(folders, config, lambda: runtime_config(*run.read_settings()), run.options.overwrite)
    with run.console.live(f"watching {inbox}"):
        watch(task, run.console)
    run.console.say(f"stopped; results are in {outbox}")
    return EXIT_OK


@_command("status")
def _status(
    outbox: Annotated[Path, typer.Argument(help="Outbox of a drop folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 unless a daemon is running and not paused.")
    ] = False,
    health: Annotated[
        Path | None, typer.Option(help="Status file, if the daemon has its own --health.", show_default="in the outbox")
    ] = None,
) -> int:
    """Show the state of a drop folder."""
    from blurguard.cli.console import printable
    from blurguard.watch.health import read_status

    status = read_status(outbox, health, time.time())
    for line in [json.dumps(status.as_json())] if as_json else map(printable, status.lines()):
        typer.echo(line)
    return EXIT_UNFORESEEN if check and not status.healthy else EXIT_OK


@_command("models")
def _models() -> int:
    """List the detectors for --model."""
    from blurguard.detection import model_zoo

    for index, spec in enumerate(model_zoo.all_specs()):
        thresholds = ", ".join(f"{mode} {score:g}" for mode, score in spec.thresholds.items())
        typer.echo(f"{spec.name}{'' if index else ' (default)'}")
        typer.echo(f"  hides from score: {thresholds}\n  license: {spec.licence}\n  source: {spec.source}")
        typer.echo(f"  trained on: {spec.training_data}\n  SHA-256: {spec.sha256}")
        typer.echo(f"  file: {model_zoo.models_dir() / spec.file}")
    return EXIT_OK


@_command("doctor")
def _doctor(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders that must be writable.", show_default="current folder")
    ] = None,
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
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"blurguard {__version__}")
        raise typer.Exit


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
    report = JsonLines(run.options.report)
    with report, contextlib.closing(outcomes), run.console.batch(total):  # type: ignore[type-var]
        for outcome in outcomes:
            report.write(outcome_json(outcome, run.effective_settings))
            run.console.advance(outcome)
    run.console.show_totals(time.perf_counter() - started, left_alone)
    return run.console.exit_code
