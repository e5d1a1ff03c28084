"""Makes and measures the models that blurguard ships; never part of the wheel."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

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


@contextmanager
def whole_at(path: Path) -> Iterator[Path]:
    """Give a file to write, which gets its name once it is whole; if writing fails, the name keeps what it has."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is whole or absent at its name."""
    with whole_at(path) as part:
        part.write_bytes(data)


def counted(items: Sequence[Item]) -> Iterator[Item]:
    """Yield the items, and tell a terminal how many are done."""
    for index, item in enumerate(items):
        yield item
        if sys.stderr.isatty():
            print(f"\r{index + 1}/{len(items)}", end="", file=sys.stderr)
