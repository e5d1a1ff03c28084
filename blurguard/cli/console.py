"""What a person sees: a bar on a terminal, plain lines elsewhere, JSON lines if asked, a closing table."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from blurguard.types import Outcome, Status
from blurguard.watch.health import DaemonState, Health

_JSON_EVERY_SECONDS = 5.0  # of each video
_STYLES = {Status.DONE: "green", Status.SKIPPED: "dim", Status.FAILED: "bold red"}


def printable(path: Path | str) -> str:
    """Return a name that is safe to print: bytes that are no text and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _InterruptSafeStream:
    """A standard stream to which writing is no error when its terminal has been closed: SIGHUP decides what happens."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _closed_terminal_ignored():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _closed_terminal_ignored():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _closed_terminal_ignored() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def plain_console(to_stderr: bool = False) -> Console:
    """Return a console that prints names as they are: no emoji, nothing highlighted, no line cut."""
    stream = cast(IO[str], _InterruptSafeStream(sys.stderr if to_stderr else sys.stdout))
    return Console(file=stream, highlight=False, soft_wrap=True, emoji=False)


class Tally:
    """Counts outcomes; also the exit code's source."""

    def __init__(self) -> None:
        self.by_status: Counter[Status] = Counter()
        self.faces = 0
        self.exit_codes: list[int] = []

    def add(self, outcome: Outcome) -> None:
        """Count one file."""
        self.by_status[outcome.status] += 1
        self.faces += len(outcome.faces)
        if outcome.status is Status.FAILED:
            self.exit_codes.append(outcome.exit_code)


class _Rate(ProgressColumn):
    """Files or frames per second, or seconds for each where that is the handier number."""

    def render(self, task: Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields["unit"]
        if not speed:
            return Text(f"-- {unit}s/s", style="progress.data.speed")
        text = f"{speed:.1f} {unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"
        return Text(text, style="progress.data.speed")


class _ProgressWithHeadline(Progress):
    """Bars under a line of text."""

    headline = Text()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the line, then the bars."""
        yield self.headline
        yield from super().get_renderables()


class ConsoleProgress:
    """Tells a person how a batch goes.

    Lines go to standard output, failures to standard error, also when ``quiet``. On a terminal there is a bar
    instead of lines, unless ``verbose``. ``as_json`` replaces all of it by JSON lines on standard error.
    """

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool, to_stderr: bool = False) -> None:
        self.out = plain_console(to_stderr)
        self.errors = plain_console(to_stderr=True)
        self.tally = Tally()
        self._quiet = quiet
        self._as_json = as_json
        self._bar: _ProgressWithHeadline | None = None
        self._batch: TaskID | None = None
        self._headline = self._state = ""
        self._videos: dict[Path, TaskID] = {}
        self._last_json: dict[Path, float] = {}
        self._lines = not quiet and not as_json and (verbose or not self.errors.is_terminal)

    def start(self, total: int) -> None:
        """Show the bar where there is a terminal."""
        if self._show_bar() and self._bar is not None:
            self._batch = self._bar.add_task("hiding faces", total=total, unit="file")

    @contextlib.contextmanager
    def live(self, what: str) -> Iterator[None]:
        """Show how a drop folder is doing for as long as this lasts: a line per file, and how things stand."""
        self._headline, self._lines = what, not self._quiet and not self._as_json
        if not self._show_bar():
            self.say(what)
        try:
            yield
        finally:
            self.finish()

    def show_health(self, health: Health) -> None:
        """Tell how a drop folder is doing."""
        state = f"{health.state}: {health.why}" if health.why else str(health.state)
        if self._bar is not None:
            since = max(health.latest - health.started, 1.0)
            counts = f"{health.queued} waiting, {health.working} working, {health.done} done, {health.failed} failed"
            text = f"{self._headline} ({state}): {counts}, {health.done / since:.1f} files/s"
            self._bar.headline = Text(
                printable(text), style="bold red" if health.state is DaemonState.PAUSED else "bold"
            )
        if state != self._state:
            self._state = state
            if self._as_json:
                self._json("state", state=health.state, why=health.why)

    def _show_bar(self) -> bool:
        """Show bars where there is a terminal; tells whether there is one."""
        if self._quiet or self._as_json or not self.errors.is_terminal:
            return False
        what = TextColumn("{task.description}", markup=False)
        columns = what, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()
        self._bar = _ProgressWithHeadline(*columns, console=self.errors, transient=True)
        self._bar.start()
        return True

    def frames(self, source: Path, done: int, total: int | None) -> None:
        """Tell how far a video is; may be called from any thread."""
        if self._as_json and monotonic() - self._last_json.get(source, 0.0) >= _JSON_EVERY_SECONDS:
            self._last_json[source] = monotonic()
            self._json("frames", source=str(source), done=done, total=total)
        if self._bar is None:
            return
        if source not in self._videos:
            self._videos[source] = self._bar.add_task(printable(source.name), total=total, unit="frame")
        self._bar.update(self._videos[source], completed=done, total=total)

    def advance(self, outcome: Outcome) -> None:
        """Tell of one file."""
        self.tally.add(outcome)
        if self._as_json:
            self._json("file", source=str(outcome.source), status=outcome.status, faces=len(outcome.faces),
                       seconds=round(outcome.seconds, 3), reason=outcome.reason)  # fmt: skip
        elif outcome.status is Status.FAILED:
            self.errors.print(Text(f"failed   {printable(outcome.reason)}", style=_STYLES[outcome.status]))
        elif self._lines:
            self._above.print(_line(outcome))
        if self._bar is not None and self._batch is not None:
            self._bar.advance(self._batch)
        self.clear_progress(outcome.source)

    def clear_progress(self, source: Path) -> None:
        """Tell nothing more of how far a video is."""
        self._last_json.pop(source, None)
        film = self._videos.pop(source, None)
        if self._bar is not None and film is not None:
            self._bar.remove_task(film)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """Print one line, unless quiet."""
        if self._as_json:
            self._json("note", text=text)
        elif not self._quiet:
            self._above.print(Text(printable(text)))

    def fail(self, text: str) -> None:
        """Print an error that is of no single file."""
        if self._as_json:
            self._json("error", text=text)
        else:
            self.errors.print(Text(f"error: {printable(text)}", style="bold red"))

    def close(self, seconds: float, left_alone: Counter[str]) -> None:
        """Print the closing table; ``seconds`` is the wall time of all of it."""
        counts = {status.value: self.tally.by_status[status] for status in Status}
        if self._as_json:
            self._json("end", **counts, faces=self.tally.faces, seconds=round(seconds, 3), left_alone=dict(left_alone))
            return
        if self._quiet:
            return
        table = Table(*counts, "faces", "seconds")
        table.add_row(*(str(count) for count in counts.values()), str(self.tally.faces), f"{seconds:.1f}")
        self.out.print(table)
        if left_alone:
            told = ", ".join(f"{count} {reason}" for reason, count in sorted(left_alone.items()))
            self.out.print(Text(f"left alone: {told}"))

    @property
    def _above(self) -> Console:
        """Where lines go: on a terminal with bars, above them."""
        return self.errors if self._bar is not None and self.out.is_terminal else self.out

    def _json(self, event: str, **values: object) -> None:
        # Not through the console: an interruption while that prints leaves it collecting lines for ever.
        self.errors.file.write(json.dumps({"event": event, **values}) + "\n")
        self.errors.file.flush()


def _line(outcome: Outcome) -> Text:
    line = Text(f"{outcome.status:<8} ", style=_STYLES[outcome.status])
    line.append(printable(outcome.source), style="default")
    if outcome.status is Status.DONE or outcome.faces:
        noun = "face" if len(outcome.faces) == 1 else "faces"
        line.append(f"  {len(outcome.faces)} {noun}  {outcome.seconds:.2f} s", style="default")
    if outcome.reason:
        line.append(f"  ({outcome.reason})")
    return line
