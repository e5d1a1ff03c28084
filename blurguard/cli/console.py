"""Console output: progress bars on a terminal, plain lines elsewhere, or JSON lines."""

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

from rich import progress
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from blurguard.errors import EXIT_OK
from blurguard.types import Outcome, Status
from blurguard.watch.health import DaemonState, Health

_JSON_SECONDS = 5.0  # between two "frames" events of a video
_STYLES = {Status.DONE: "green", Status.SKIPPED: "dim", Status.FAILED: "bold red"}


def printable(path: Path | str) -> str:
    """Return a name that is safe to print: invalid UTF-8 and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _TerminalStream:
    """A standard stream that ignores writes to a closed terminal. The process decides on SIGHUP itself."""

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
    """Return a console that prints names unchanged: no emoji codes, no highlighting, no wrapping."""
    stream = cast(IO[str], _TerminalStream(sys.stderr if to_stderr else sys.stdout))
    return Console(file=stream, highlight=False, soft_wrap=True, emoji=False)


class _Rate(progress.ProgressColumn):
    """Files or frames per second, or seconds per file or frame if that is above 1."""

    def render(self, task: progress.Task) -> Text:
        speed, unit = task.finished_speed or task.speed, task.fields["unit"]
        if not speed:
            return Text(f"-- {unit}s/s", style="progress.data.speed")
        text = f"{speed:.1f} {unit}s/s" if speed >= 1 else f"{1 / speed:.1f} s/{unit}"
        return Text(text, style="progress.data.speed")


class _HeadedProgress(progress.Progress):
    """Progress bars below a headline."""

    headline = Text()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the headline, then the bars."""
        yield self.headline
        yield from super().get_renderables()


class ConsoleProgress:
    """Reports a batch or a drop folder to the user, and counts outcomes.

    Lines go to standard output. Failures go to standard error, also if ``quiet``. On a terminal, progress bars
    replace the lines, unless ``verbose``. With ``as_json``, JSON lines on standard error replace all of it.

    Attributes:
        exit_code: of the first failure, 0 without one.
    """

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool, to_stderr: bool = False) -> None:
        self.out, self.errors = plain_console(to_stderr), plain_console(to_stderr=True)
        self.exit_code, self._faces = EXIT_OK, 0
        self._quiet, self._as_json = quiet, as_json
        self._status_counts: Counter[Status] = Counter()
        self._bars: _HeadedProgress | None = None
        self._batch: progress.TaskID | None = None
        self._headline = self._state = ""
        self._videos: dict[Path, progress.TaskID] = {}
        self._last_json: dict[Path, float] = {}
        self._lines = not quiet and not as_json and (verbose or not self.errors.is_terminal)

    @contextlib.contextmanager
    def batch(self, total: int) -> Iterator[None]:
        """Show the progress of a batch of ``total`` files."""
        with self._show_bars():
            if self._bars is not None:
                self._batch = self._bars.add_task("hiding faces", total=total, unit="file")
            yield

    @contextlib.contextmanager
    def live(self, headline: str) -> Iterator[None]:
        """Show a drop folder: one line per file, and its state below a headline."""
        self._headline, self._lines = headline, not self._quiet and not self._as_json
        with self._show_bars():
            if self._bars is None:
                self.say(headline)
            yield

    @contextlib.contextmanager
    def _show_bars(self) -> Iterator[None]:
        if self._quiet or self._as_json or not self.errors.is_terminal:
            yield
            return
        name, remaining = progress.TextColumn("{task.description}", markup=False), progress.TimeRemainingColumn()
        columns = name, progress.BarColumn(), progress.MofNCompleteColumn(), _Rate(), remaining
        self._bars = _HeadedProgress(*columns, console=self.errors, transient=True)
        try:
            with self._bars:
                yield
        finally:
            self._bars = None

    def show_health(self, health: Health) -> None:
        """Show the state of the drop folder. Called several times a second."""
        state = f"{health.state}: {health.why}" if health.why else str(health.state)
        if self._bars is not None:
            since = max(health.latest - health.started, 1.0)
            counts = f"{health.queued} waiting, {health.working} working, {health.done} done, {health.failed} failed"
            text = f"{self._headline} ({state}): {counts}, {health.done / since:.1f} files/s"
            self._bars.headline = Text(printable(text), "bold red" if health.state is DaemonState.PAUSED else "bold")
        if self._as_json and state != self._state:
            self._json("state", state=health.state, why=health.why)
        self._state = state

    def frames(self, source: Path, done: int, total: int | None) -> None:
        """Show the progress of a video. May be called from any thread."""
        if self._as_json and monotonic() - self._last_json.get(source, 0.0) >= _JSON_SECONDS:
            self._last_json[source] = monotonic()
            self._json("frames", source=str(source), done=done, total=total)
        bars = self._bars
        if bars is None:
            return
        if source not in self._videos:
            self._videos[source] = bars.add_task(printable(source.name), total=total, unit="frame")
        bars.update(self._videos[source], completed=done, total=total)

    def advance(self, outcome: Outcome) -> None:
        """Count and report one file."""
        self._status_counts[outcome.status] += 1
        self._faces += len(outcome.faces)
        self.exit_code = self.exit_code or outcome.exit_code
        if self._as_json:
            self._json("file", source=str(outcome.source), status=outcome.status, faces=len(outcome.faces),
                       seconds=round(outcome.seconds, 3), reason=outcome.reason)  # fmt: skip
        elif outcome.status is Status.FAILED:
            self.errors.print(Text(f"failed   {printable(outcome.reason)}", style=_STYLES[outcome.status]))
        elif self._lines:
            self._above_bars.print(_line(outcome))
        if self._bars is not None and self._batch is not None:
            self._bars.advance(self._batch)
        self.clear_progress(outcome.source)

    def clear_progress(self, source: Path) -> None:
        """Remove the progress of a video."""
        self._last_json.pop(source, None)
        video = self._videos.pop(source, None)
        if self._bars is not None and video is not None:
            self._bars.remove_task(video)

    def say(self, text: str) -> None:
        """Print one line, unless quiet."""
        if self._as_json:
            self._json("note", text=text)
        elif not self._quiet:
            self._above_bars.print(Text(printable(text)))

    def fail(self, text: str) -> None:
        """Print an error that does not belong to a single file."""
        if self._as_json:
            self._json("error", text=text)
        else:
            self.errors.print(Text(f"error: {printable(text)}", style="bold red"))

    def show_totals(self, seconds: float, left_alone: Counter[str]) -> None:
        """Print the totals of a batch.

        Args:
            seconds: wall time of the batch.
            left_alone: files that were not processed, by reason.
        """
        counts = {status.value: self._status_counts[status] for status in Status} | {"faces": self._faces}
        if self._as_json:
            self._json("end", **counts, seconds=round(seconds, 3), left_alone=dict(left_alone))
        elif not self._quiet:
            table = Table(*counts, "seconds")
            table.add_row(*map(str, counts.values()), f"{seconds:.1f}")
            self.out.print(table)
            if left_alone:
                reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_alone.items()))
                self.out.print(Text(f"left alone: {reasons}"))

    @property
    def _above_bars(self) -> Console:
        """The console for lines. If bars are shown on the same terminal, lines go above them."""
        return self.errors if self._bars is not None and self.out.is_terminal else self.out

    def _json(self, event: str, **values: object) -> None:
        # Not through the console: after an interrupted print it would only collect lines and write none.
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
