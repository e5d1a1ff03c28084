"""The pictures that no network is trained on: thresholds, probabilities and choices are made on them.

They are chosen by a hash of the file name alone, so every machine and every folder gives the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Protocol, TypeVar

__all__ = ["KEPT_OUT", "data_set", "divided", "kept_out"]

KEPT_OUT = {"wider_more": 300, "masked": 80}  # pictures of each data set, by its folder's name; others give none


class _Pictured(Protocol):
    @property
    def path(self) -> Path: ...


Item = TypeVar("Item", bound=_Pictured)


def kept_out(names: Iterable[str], count: int) -> frozenset[str]:
    """Return the ``count`` file names with the smallest SHA-256; of paths, only the file name counts."""
    files = {PurePath(name).name for name in names}
    return frozenset(sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


def data_set(source: Path) -> str:
    """Return the name of a data set: of its folder, also where a .jsonl file of it is given."""
    return (source.parent if source.suffix == ".jsonl" else source).name


def divided(source: Path, pictures: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Return the pictures of a data set to train on, and those kept out."""
    kept = kept_out((picture.path.name for picture in pictures), KEPT_OUT.get(data_set(source), 0))
    parts: tuple[list[Item], list[Item]] = ([], [])
    for picture in pictures:
        parts[picture.path.name in kept].append(picture)
    return parts
