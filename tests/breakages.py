"""Deliberately broken builds: each function here breaks one thing in the imported modules of blurguard.

``python -m tests.broken`` is the command line of a broken build, and ``python -m tests.test_promises`` checks one.
A function that other modules have imported is replaced there, where it is looked up (``replace_in``). No attribute is
named in a string: mypy and tools that rename see all of them.
"""

import errno
import os
import random
import signal
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from watchdog.observers.api import BaseObserver

from blurguard.anonymize import anonymizer, pages
from blurguard.anonymize.anonymizer import Anonymizer
from blurguard.batch import runner
from blurguard.detection import multiscale, single_pass
from blurguard.files import atomic
from blurguard.files.atomic import StagedFile
from blurguard.images import codec, formats, metadata, png
from blurguard.redaction import masks, mosaic, regions
from blurguard.settings import Settings
from blurguard.types import Image, Outcome, Region

Breakage = Callable[[], None]
Fault = Callable[[], NoReturn]
VARIABLE = "BROKEN_BUILD"  # in the environment of a broken build: the name of its breakage


def replace_in(modules: Iterable[ModuleType], whole: Callable[..., Any], broken: Callable[..., Any]) -> None:
    """Replace a function in modules that have imported it."""
    name = whole.__name__
    for module in modules:
        if getattr(module, name) is not whole:
            raise AttributeError(f"{module.__name__}.{name} is another function")
        setattr(module, name, broken)


# --- one for each promise, and more -----------------------------------------------------------------------------


def end_before_the_last_row_and_column() -> None:
    whole = regions._clip_region

    def broken(box: NDArray[np.float64], face_width: float, width: int, height: int) -> Region | None:
        return whole(box, face_width, width - 1, height - 1)

    regions._clip_region = broken


def feather_inside() -> None:
    whole = masks._ellipse_mask

    def broken(xs: NDArray[np.float32], ys: NDArray[np.float32], box: tuple[float, ...], feather: int) -> masks.Mask:
        x0, y0, x1, y1 = box
        return whole(xs, ys, (x0 + feather, y0 + feather, x1 - feather, y1 - feather), feather)

    masks._ellipse_mask = broken


def make_cells_as_small_as_pixels() -> None:
    mosaic.CELLS = 99


class Silent(random.SystemRandom):
    """A source of noise without any."""

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        return 0.0


def add_no_noise() -> None:
    mosaic._RANDOM = Silent()


def feather_too_wide() -> None:
    def broken(region: Region) -> int:
        side = max(region.x1 - region.x0, region.y1 - region.y0)
        return max(2, min(24, round(0.2 * side)))

    mosaic.feather_px = broken


def draw_boxes_that_nobody_asked_for() -> None:
    whole = pages.hide_into

    def broken(image: Image, regions: Iterable[Region], settings: Settings) -> None:
        whole(image, regions, replace(settings, boxes=True))

    replace_in([anonymizer, pages], whole, broken)


def open_the_target_first() -> None:
    whole = Anonymizer.process

    def broken(self: Anonymizer, source: Path, target: Path, *, replace_existing: bool = False) -> Outcome:
        with target.open("ab"):
            return whole(self, source, target, replace_existing=True)

    Anonymizer.process = broken  # type: ignore[method-assign]


def keep_scratch() -> None:
    whole = atomic.scratch_in

    def broken(folder: Path, needed: Callable[[], bool] = lambda: True) -> AbstractContextManager[Path]:
        return whole(folder, lambda: True)

    replace_in([atomic, runner], whole, broken)


def take_a_cut_file_for_a_whole_one() -> None:
    def broken(data: bytes) -> None:
        pass

    png.PngCodec.check_complete = broken  # type: ignore[method-assign]


def copy_exif() -> None:
    whole = codec.PillowCodec.__init__

    def broken(self: codec.PillowCodec, data: bytes, picture: Any, keep_metadata: bool) -> None:
        whole(self, data, picture, keep_metadata)
        self._exif = picture.getexif().tobytes()

    codec.PillowCodec.__init__ = broken  # type: ignore[method-assign]


def allow_all_of_exif() -> None:
    def broken(exif: Pillow.Exif) -> bytes:
        return exif.tobytes()

    replace_in([codec], metadata.allowed_exif, broken)


def copy_the_end_of_the_file() -> None:
    whole = formats.ImageFile.encode

    def broken(self: formats.ImageFile, pages: Iterable[formats.Page]) -> bytes:
        end = self._codec._data[-40:] if isinstance(self._codec, codec.PillowCodec) else b""
        return whole(self, pages) + end

    formats.ImageFile.encode = broken  # type: ignore[method-assign]


def fail_to_hide() -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        raise KeyError("broken")

    replace_in([anonymizer, pages], pages.hide_into, broken)


def run_out_of_watches() -> None:
    """Be on a system that has no watches left for watchdog."""

    def broken(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "no watches are left")

    BaseObserver.schedule = broken  # type: ignore[method-assign]


# Name -> the promise whose check finds it out, and the breakage.
BROKEN: dict[str, tuple[str, Breakage]] = {
    "ends before the last row and column": ("covered", end_before_the_last_row_and_column),
    "feather inside": ("covered", feather_inside),
    "cells as small as pixels": ("covered", make_cells_as_small_as_pixels),
    "no noise": ("covered", add_no_noise),
    "feather too wide": ("untouched", feather_too_wide),
    "boxes that nobody asked for": ("untouched", draw_boxes_that_nobody_asked_for),
    "the target is opened first": ("closed", open_the_target_first),
    "scratch stays": ("closed", keep_scratch),
    "a cut file is a whole one": ("closed", take_a_cut_file_for_a_whole_one),
    "exif is copied": ("clean", copy_exif),
    "all of exif may be kept": ("clean", allow_all_of_exif),
    "what follows the picture is copied": ("clean", copy_the_end_of_the_file),
}


# --- a fault at every stage of a file ---------------------------------------------------------------------------


def raise_error() -> NoReturn:
    raise RuntimeError("injected")


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("lives on")


def strike_in_detecting(fault: Fault) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        fault()

    replace_in([multiscale], single_pass.detect_once, broken)


def strike_in_hiding(fault: Fault) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        fault()

    replace_in([anonymizer, pages], pages.hide_into, broken)


def strike_in_encoding(fault: Fault) -> None:
    whole = formats.ImageFile.encode

    def broken(self: formats.ImageFile, pages: Iterable[formats.Page]) -> bytes:
        whole(self, pages)
        fault()

    formats.ImageFile.encode = broken  # type: ignore[method-assign]


def strike_in_writing(fault: Fault) -> None:
    """Strike when a draft has its content, and before it is on disk."""
    whole = atomic.stage_file

    def broken(scratch: Path, write: Callable[[Path], str | None]) -> StagedFile:
        def written(path: Path) -> str | None:
            write(path)
            fault()

        return whole(scratch, written)

    replace_in([atomic], whole, broken)


def strike_in_renaming(fault: Fault) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        fault()

    replace_in([atomic, runner], atomic.publish, broken)


STAGES: dict[str, Callable[[Fault], None]] = {
    "detect": strike_in_detecting,
    "hide": strike_in_hiding,
    "encode": strike_in_encoding,
    "write": strike_in_writing,
    "rename": strike_in_renaming,
}
FAULTS: dict[str, Fault] = {"raise": raise_error, "kill": kill}


BREAKAGES: dict[str, Breakage] = {
    **{name: breakage for name, (_, breakage) in BROKEN.items()},
    **{f"{fault} in {stage}": partial(STAGES[stage], FAULTS[fault]) for stage in STAGES for fault in FAULTS},
    "hiding fails": fail_to_hide,
    "no watches are left": run_out_of_watches,
}
