"""Command registration: options from declared settings, a ``Run`` for the command, and one place for errors."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from blurguard.cli.options import RunOptions, options_for
from blurguard.errors import EXIT_INTERRUPTED, EXIT_UNFORESEEN, BlurguardError, ConfigError
from blurguard.settings import Settings, WatchSettings, read_settings

if TYPE_CHECKING:
    from blurguard.batch.workers import WorkerConfig
    from blurguard.cli.console import ConsoleProgress

Command = Callable[..., int]
Register = Callable[[Command], Command]
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
        from blurguard.detection.model_zoo import load_manifest

        score = (
            self.settings.min_score or load_manifest().model(self.settings.model).plans[self.settings.mode].threshold
        )
        return replace(self.settings, min_score=score)

    @property
    def worker_config(self) -> WorkerConfig:
        """The workers of a batch, with one thread each."""
        return worker_config(self.settings, self.console)


def worker_config(settings: Settings, console: ConsoleProgress, threads: int = 1) -> WorkerConfig:
    """Return as many workers as set, by default one per processor. They report to the console."""
    from blurguard.anonymize.anonymizer import Anonymizer
    from blurguard.batch.process import cpu_count
    from blurguard.batch.workers import WorkerConfig

    return WorkerConfig(functools.partial(Anonymizer, settings), settings.jobs or cpu_count(), threads, console.frames)


# Scores of the first version were no probabilities, so a number that was chosen then hides other faces now.
PROBABILITY_NOTE = "min-score {:g} is a probability: 0.5 hides boxes that are as likely a face as not"


def command(app: typer.Typer, name: str, *tables: type[Any], without: tuple[str, ...] = ()) -> Register:
    """Register a command that returns an exit code. If it has tables, it takes a ``Run`` as ``run``.

    Args:
        app: to register it with.
        name: of the command.
        tables: declared settings that become options of the command.
        without: settings that do not.
    """

    def register(function: Command) -> Command:
        shared = {table: [each for each in options_for(table) if each.name not in without] for table in tables}

        def run_command(**values: Any) -> None:
            given = {
                table: {each.name: value for each in options if (value := values.pop(each.name)) is not None}
                for table, options in shared.items()
            }
            raise typer.Exit(_exit_code(function, given, values))

        own = [each for each in inspect.signature(function, eval_str=True).parameters.values() if each.name != "run"]
        keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        parameters = [*keyword_only, *itertools.chain(*shared.values())]
        run_command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run_command.__annotations__ = {each.name: each.annotation for each in parameters}
        run_command.__doc__ = function.__doc__
        app.command(name)(run_command)
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
            run = arguments["run"] = Run(*read(), read, options, console)
            if run.settings.min_score is not None:
                console.say(PROBABILITY_NOTE.format(run.settings.min_score))
        return function(**arguments)
    except BlurguardError as error:
        console.fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        console.fail("interrupted; finished results are complete, unfinished ones were removed")
        return EXIT_INTERRUPTED
    except (typer.Exit, typer.BadParameter):  # typer reports them
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
        return replace(settings, **given[Settings]), replace(watch_settings, **given.get(WatchSettings, {}))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
