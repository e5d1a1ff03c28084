"""Makes and measures the models that blurguard ships; never part of the wheel."""

from pathlib import Path

__all__ = ["CalibrationError", "write_whole"]


class CalibrationError(Exception):
    """A step cannot go on: its source, its result or the manifest is not what it must be."""


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is whole or absent at its name."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
