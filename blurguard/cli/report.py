"""Machine-readable reports: one JSON line per file, written when the file is done."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from blurguard.errors import OutputError
from blurguard.files.errors import os_errors
from blurguard.settings import Settings
from blurguard.types import Outcome


def outcome_json(outcome: Outcome, settings: Settings) -> dict[str, Any]:
    """Return an outcome as JSON types, with the model and settings that led to it."""
    return {
        "source": str(outcome.source), "target": None if outcome.target is None else str(outcome.target),
        **_fields(outcome, "status", "kind", "width", "height", "frames"),
        "faces": [face.as_json() for face in outcome.faces], "seconds": round(outcome.seconds, 4),
        "model": outcome.model, "settings": settings.as_json(),
        **_fields(outcome, "error", "reason", "exit_code"), **_second_pass(outcome),
    }  # fmt: skip


def detection_json(outcome: Outcome) -> dict[str, Any]:
    """Return the faces of a file for ``blurguard detect``, with the reason if it failed."""
    faces = [face.as_json() for face in outcome.faces]
    record = {"source": str(outcome.source), **_fields(outcome, "width", "height"), "faces": faces}
    return record | _second_pass(outcome) | ({"error": outcome.reason} if outcome.reason else {})


def _fields(outcome: Outcome, *names: str) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in names}


def _second_pass(outcome: Outcome) -> dict[str, str]:
    return {"second_pass": outcome.second_pass} if outcome.second_pass else {}


class JsonLines:
    """A file of JSON lines, flushed after each. ``-`` is standard output, None discards the lines."""

    def __init__(self, path: Path | None) -> None:
        """Open the file.

        Raises:
            OutputError: it cannot be written, or exists and is not a report.
        """
        self._path = path if path and path != Path("-") else Path("standard output")
        self._file: IO[str] | None = sys.stdout if path == Path("-") else None
        if path is not None and self._file is None:
            with os_errors(path):
                _refuse_other_files(path)
                self._file = path.open("w", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Add one line. Names that are not valid text are escaped.

        Raises:
            OutputError: the disk is full, or the reader of standard output is gone.
        """
        if self._file is None:
            return
        try:
            with os_errors(self._path):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        except OutputError:
            if self._file is sys.stdout:  # otherwise Python retries at exit, and prints a traceback
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())
            raise

    def __enter__(self) -> JsonLines:
        """Return the file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file, unless it is standard output."""
        if self._file is not None and self._file is not sys.stdout:
            with os_errors(self._path):
                self._file.close()


def _refuse_other_files(path: Path) -> None:
    """Refuse to replace other files: ``--report holiday.jpg`` must not delete a picture."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(9) != b'{"source"':
                raise OutputError(f"{path}: exists and is not a report; choose another name")
