"""Makes and measures the models that blurguard ships; never part of the wheel."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from io import BufferedRandom
from pathlib import Path
from typing import TypeVar

from blurguard.files.atomic import atomic_file

__all__ = ["FILE_IDENTIFIER", "CalibrationError", "counted", "read_network", "whole_at", "write_whole"]

FILE_IDENTIFIER = b"TFL3"  # of the TFLite schema, bytes 4 to 7 of a file

Item = TypeVar("Item")


class CalibrationError(Exception):
    """A step cannot go on: its source, its result or the manifest is not what it must be."""


def read_network(path: Path) -> bytes:
    """Return the content of a .tflite file.

    Raises:
        CalibrationError: it cannot be read, or is no such file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"cannot read the network {path}: {error.strerror}") from error
    if data[4:8] != FILE_IDENTIFIER:
        raise CalibrationError(f"{path} is no .tflite file")
    return data


def whole_at(path: Path) -> AbstractContextManager[BufferedRandom]:
    """Give a new file to write, which replaces the one at ``path`` once it is complete."""
    return atomic_file(path, durable=False, mode=0o666)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one step."""
    with whole_at(path) as file:
        file.write(data)


def counted(items: Sequence[Item]) -> Iterator[Item]:
    """Yield the items, and tell a terminal how many are done."""
    for index, item in enumerate(items):
        yield item
        if sys.stderr.isatty():
            print(f"\r{index + 1}/{len(items)}", end="", file=sys.stderr)
