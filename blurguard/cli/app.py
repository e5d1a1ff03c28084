"""The command line. Everything under it is a library; here are options, messages and exit codes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blurguard import __version__
from blurguard.cli.options import shared_options, watch_options
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
    help="Hides every face in your photos and videos, for good, on this computer. Nothing is sent anywhere.",
    epilog="Exit codes: 0 all done or skipped, 1 unforeseen, 2 usage, 3 settings, 4 model, 5 input, 6 output, "
    "7 a batch with at least one failure, 130 interrupted.",
)


@dataclass(frozen=True, slots=True)
class Run:
    """The options that commands share, as chosen; those of ``watch`` are none to the others."""

    settings: Settings
    watch_settings: WatchSettings
    reload_settings: Callable[[], tuple[Settings, WatchSettings]]
    console: ConsoleProgress
    report: Path | None = None
    dry_run: bool = False
    overwrite: bool = False

    @property
    def effective_settings(self) -> Settings:
        """The settings with the model's own threshold where none was chosen, as a report tells them."""
        from blurguard.detection.model_zoo import get_spec

        score = self.settings.min_score or get_spec(self.settings.model).thresholds[self.settings.mode]
        return replace(self.settings, min_score=score)

    @property
    def worker_config(self) -> WorkerConfig:
        """Who works: as many processes as asked for, else one per processor that this process may use."""
        return _crew(self.settings, self.console)


def _crew(settings: Settings, console: ConsoleProgress, threads: int = 1) -> WorkerConfig:
    from blurguard.anonymize.anonymizer import Anonymizer
    from blurguard.batch.process import cpu_count
    from blurguard.batch.workers import WorkerConfig

    factory = functools.partial(Anonymizer, settings)
    return WorkerConfig(factory, settings.jobs or cpu_count(), threads, console.frames)


Command = Callable[..., int]


def _command(
    name: str, *, more: Callable[..., None] | None = None, without: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Register a command that takes a ``Run`` and its own parameters and returns an exit code.

    Args:
        name: of the command.
        more: a table of options besides the shared one.
        without: shared options that this command does not have.
    """

    def register(function: Command) -> Command:
        own = [p for p in _parameters(function) if p.name != "run"]
        shared = [p for p in _parameters(shared_options) if p.name not in without]
        special = _parameters(more) if more else []

        def command(**values: Any) -> None:
            chosen = {p.name: values.pop(p.name) for p in shared}
            watching = {p.name: values.pop(p.name) for p in special}
            raise typer.Exit(_guarded(function, chosen, watching, values))

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *special, *shared)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        app.command(name)(command)
        return function

    return register


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function, eval_str=True).parameters.values())


def _guarded(function: Command, chosen: dict[str, Any], watching: dict[str, Any], values: dict[str, Any]) -> int:
    """Run a command; every error becomes a message and an exit code."""
    from blurguard.cli.console import ConsoleProgress

    told = {key: chosen.pop(key) for key in ("quiet", "verbose", "log_json")}
    options = {key: chosen.pop(key) for key in ("report", "dry_run", "overwrite") if key in chosen}
    piped = function is _detect or options.get("report") == Path("-")  # standard output is for machines then
    console = ConsoleProgress(quiet=told["quiet"], verbose=told["verbose"], as_json=told["log_json"], to_stderr=piped)
    read = functools.partial(_settings, chosen.pop("config"), chosen, watching)
    try:
        return function(run=Run(*read(), read, console, **options), **values)
    except BlurguardError as error:
        console.fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.fail("interrupted; what was finished stands, nothing is half written")
        return EXIT_INTERRUPTED
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        console.fail(f"unforeseen failure, please report it: {type(error).__name__}: {error}")
        if told["verbose"]:
            console.errors.print_exception()
        return EXIT_UNFORESEEN


def _settings(config: Path | None, chosen: dict[str, Any], watching: dict[str, Any]) -> tuple[Settings, WatchSettings]:
    """Return the settings: defaults, then the file, then the environment, then the command line.

    Raises:
        ConfigError: a bad value in file or environment.
        typer.BadParameter: a bad value on the command line.
    """
    settings, watch_settings = read_settings(config)
    paths = {key: str(value) for key, value in watching.items() if isinstance(value, Path)}
    try:
        return (
            settings.with_values(_given(chosen), "command line"),
            watch_settings.with_values(_given(watching | paths), "command line"),
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@_command("dir")
def _dir(
    run: Run,
    photos: Annotated[Path, typer.Argument(help="Folder; searched with everything below it.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default="PHOTOS_blurred")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace the originals themselves.")] = False,
) -> int:
    """Hide the faces in all pictures and videos of a folder; the results stand in a tree of the same names.

    What is done and unchanged is skipped. Originals are not touched unless --in-place is given.
    """
    from blurguard.batch.discovery import folder_beside
    from blurguard.batch.output_tree import FolderTask
    from blurguard.batch.runner import anonymize_folder

    if in_place and out is not None:
        raise typer.BadParameter("--in-place and --out exclude each other")
    target = photos if in_place else out or folder_beside(photos)
    task = FolderTask(photos, target, run.worker_config, run.overwrite, run.dry_run)
    if task.in_place and not in_place:
        raise ConfigError(f"{target}: the results would replace the originals; choose another --out or give --in-place")
    found = task.discover()
    if not found.media:
        run.console.say(f"no pictures or videos in {photos}")
    code = _batch(run, len(found.media), anonymize_folder(task, found.media), found.left_alone)
    if found.media and not run.dry_run:
        run.console.say(f"results in {target}")
    return EXIT_BATCH_FAILED if code else EXIT_OK


@_command("file")
def _file(
    run: Run,
    files: Annotated[list[Path], typer.Argument(help="One or more pictures or videos.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Name of the result, or a folder.", show_default="NAME_blurred beside it"),
    ] = None,
) -> int:
    """Hide the faces in single pictures and videos."""
    from blurguard.batch.discovery import targets_for
    from blurguard.batch.runner import anonymize_files

    pairs = targets_for(list(dict.fromkeys(files)), out)
    outcomes = anonymize_files(pairs, run.worker_config, overwrite=run.overwrite, dry_run=run.dry_run)
    code = _batch(run, len(pairs), outcomes, Counter())
    return EXIT_BATCH_FAILED if code and len(pairs) > 1 else code


@_command("detect")
def _detect(
    run: Run,
    paths: Annotated[list[Path], typer.Argument(help="Pictures and videos, or folders of them.")],
    json_file: Annotated[
        Path, typer.Option("--json", help="A JSON line per file goes here; - is standard output.")
    ] = Path("-"),
) -> int:
    """Find the faces in pictures and videos and write where they are; hides nothing."""
    from blurguard.batch.discovery import discover
    from blurguard.batch.runner import detect_files
    from blurguard.cli.report import JsonLines, detection_json

    if run.report is not None and run.report == json_file:
        raise ConfigError(f"{json_file}: --json and --report need a name each")
    left_alone: Counter[str] = Counter()
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = discover(path)
            files.extend(found.media)
            left_alone += found.left_alone
        else:
            files.append(path)
    crew = run.worker_config.sized_for(len(files))
    crew.factory()  # a detector that cannot run is no picture's failure
    with JsonLines(json_file) as lines:

        def written() -> Iterator[Outcome]:
            for outcome in detect_files(files, crew):
                lines.write(detection_json(outcome))
                yield outcome

        code = _batch(run, len(files), written(), left_alone)
    return EXIT_BATCH_FAILED if code and paths != files[:1] else code


@_command("watch", more=watch_options, without=("dry_run", "report"))
def _watch(
    run: Run,
    inbox: Annotated[Path, typer.Argument(help="Folder to watch, with everything below it.")],
    outbox: Annotated[Path, typer.Argument(help="Folder for the results, in a tree of the same names.")],
) -> int:
    """Hide the faces in whatever lands in a folder, until stopped.

    SIGTERM or Ctrl-C stop it, SIGHUP has the settings read again. It may be killed and started again at any moment.
    """
    from blurguard.batch.process import configure_process, cpu_count
    from blurguard.watch.daemon import WatchTask, watch
    from blurguard.watch.event_loop import RuntimeConfig
    from blurguard.watch.folders import folders_for

    configure_process()
    settings = run.watch_settings.complete()
    folders = folders_for(inbox, outbox, settings)

    def read_orders() -> RuntimeConfig:
        try:
            again, watching = run.reload_settings()
        except typer.BadParameter as error:
            raise ConfigError(str(error)) from error
        return RuntimeConfig(_crew(again, run.console, cpu_count()), watching.complete())

    task = WatchTask(
        folders, RuntimeConfig(_crew(run.settings, run.console, cpu_count()), settings), read_orders, run.overwrite
    )
    with run.console.live(f"watching {inbox}"):
        watch(task, run.console)
    run.console.say(f"stopped; results are in {outbox}")
    return EXIT_OK


@app.command("status")
def _status(
    outbox: Annotated[Path, typer.Argument(help="Outbox of a drop folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 unless a daemon lives that is not paused.")
    ] = False,
    health: Annotated[
        Path | None, typer.Option(help="What the daemon was given as --health.", show_default="in the outbox")
    ] = None,
) -> None:
    """Tell how a drop folder is doing."""
    from blurguard.cli.console import printable
    from blurguard.watch.health import read_status

    with _plain_errors():
        status = read_status(outbox, health, time.time())
        for line in [json.dumps(status.as_json())] if as_json else map(printable, status.lines()):
            typer.echo(line)
    if check and not status.healthy:
        raise typer.Exit(EXIT_UNFORESEEN)


@app.command("models")
def _models() -> None:
    """List the detectors that can be chosen with --model."""
    from blurguard.detection import model_zoo

    with _plain_errors():
        for index, spec in enumerate(model_zoo.all_specs()):
            thresholds = ", ".join(f"{mode} {score:g}" for mode, score in spec.thresholds.items())
            typer.echo(f"{spec.name}{'' if index else ' (default)'}")
            typer.echo(f"  hides from score: {thresholds}\n  license: {spec.license}\n  source: {spec.source}")
            typer.echo(f"  trained on: {spec.training_data}\n  SHA-256: {spec.sha256}")
            typer.echo(f"  file: {model_zoo.models_dir() / spec.file}")


@app.command("doctor")
def _doctor(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders that must be writable.", show_default="this one")
    ] = None,
) -> None:
    """Check runtime, models, codecs and folders; the exit code is that of the first failure."""
    from rich.markup import escape

    from blurguard.cli.console import plain_console, printable
    from blurguard.cli.doctor import run_checks

    console, code = plain_console(), EXIT_OK
    console.print(f"blurguard {__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    with _plain_errors():
        for finding in run_checks(folders or [Path()]):
            code = code or finding.exit_code
            mark = "[bold red]FAIL[/]" if finding.exit_code else "[green]ok[/]  "
            console.print(f"{mark} {escape(printable(finding.name))}: {escape(printable(finding.detail))}")
    raise typer.Exit(code)


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
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show stops nothing
            stream.reconfigure(errors="backslashreplace")
    app()


def _interrupt(number: int, _: object) -> None:
    """Treat a polite kill and a closed terminal as Ctrl-C: clean up, leave nothing."""
    signal.signal(number, signal.SIG_IGN)  # impatience shall not cut the cleaning up short
    raise KeyboardInterrupt


def _batch(run: Run, total: int, outcomes: Iterator[Outcome], left_alone: Counter[str]) -> int:
    """Drive a batch to its end, telling of it; returns the exit code of the first failure, or 0."""
    from blurguard.batch.process import configure_process
    from blurguard.cli.report import JsonLines, outcome_json

    configure_process()
    started = time.perf_counter()
    with JsonLines(run.report) as report, contextlib.closing(outcomes):  # type: ignore[type-var]
        run.console.start(total)
        try:
            for outcome in outcomes:
                report.write(outcome_json(outcome, run.effective_settings))
                run.console.advance(outcome)
        finally:
            run.console.finish()
    run.console.close(time.perf_counter() - started, left_alone)
    return next(iter(run.console.tally.exit_codes), EXIT_OK)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn an error into a message and its exit code, for commands without shared options."""
    from blurguard.cli.console import printable

    try:
        yield
    except BlurguardError as error:
        typer.echo(f"error: {printable(str(error))}", err=True)
        raise typer.Exit(error.exit_code) from error
