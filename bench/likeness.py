"""Size of the videos that are written, and how like their sources they are away from what is hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.measure import Section, Target, times
from bench.video import full_hd, lumas
from blurguard import Anonymizer, BlurguardError, Mode, Settings
from blurguard.files.filetypes import FileType, type_of_file
from blurguard.redaction.mosaic import feather_px
from blurguard.types import Region
from blurguard.video.reader import open_video
from calibration.film import watch
from examples.compose_clip import Plan, write_clip

SSIM_AT_LEAST = 0.98
COMPARED_FRAMES = 24  # of each clip, evenly spread
SSIM_SIGMA, SSIM_REACH, SSIM_C1, SSIM_C2 = 1.5, 5, (0.01 * 255) ** 2, (0.03 * 255) ** 2  # Wang et al. 2004
BLOCK_PX = 16  # of the encoder: what is hidden may change all of a block
VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}


@dataclass(frozen=True, slots=True)
class Likeness:
    """How a result compares with its source: bytes over bytes, and SSIM away from what is hidden."""

    size: float
    ssim: float
    lowest: float


def against_sources(work: Path, folder: Path | None) -> Section:
    """Measure size and SSIM of every clip of a folder, or of composed ones."""
    clips = sorted(path for path in folder.iterdir() if path.suffix in VIDEO_SUFFIXES) if folder else _composed(work)
    rows, lowest = [], 1.0
    for clip in clips:
        try:
            is_video = type_of_file(clip) is FileType.VIDEO
            got = compared(clip, work / "out") if is_video else None
        except BlurguardError as error:
            rows.append((clip.name, "–", "–", type(error).__name__))
            continue
        if got is not None:
            rows.append((clip.name, times(got.size), f"{got.ssim:.4f}", f"{got.lowest:.4f}"))
            lowest = min(lowest, got.ssim)
    return Section(
        "Size and likeness of videos",
        "The file written against its source, fast mode. SSIM of luma (Wang et al. 2004, Gaussian window), mean over "
        f"the px whose window meets nothing hidden, in {COMPARED_FRAMES} frames of each clip: the mean of the frames, "
        "and the lowest.",
        ("", "size", "SSIM", "lowest frame"),
        rows,
        [Target("SSIM outside of what is hidden", f"≥ {SSIM_AT_LEAST:g}", f"{lowest:.4f}", lowest >= SSIM_AT_LEAST)],
    )


def compared(clip: Path, out: Path) -> Likeness:
    """Hide the faces of a clip and compare the result with it.

    Raises:
        BlurguardError: it cannot be handled.
    """
    out.mkdir(exist_ok=True)
    settings, target = Settings(mode=Mode.FAST), out / clip.name
    Anonymizer(settings).process(clip, target, replace_existing=True)
    hidden = watch(clip, settings, 1).hidden
    with open_video(clip, max_pixels=settings.max_pixels) as video:
        turns = video.info.rotation // 90
    step = max(1, len(hidden) // COMPARED_FRAMES)
    values = []
    for number, (before, after) in enumerate(zip(lumas(clip), lumas(target), strict=True)):
        if number % step == 0:
            likeness_map = ssim(before, after)
            touched = _touched([region for _, region in hidden[number]], before.shape, turns)
            if not touched.all():
                values.append(float(likeness_map[~touched].mean()))
    size = target.stat().st_size / clip.stat().st_size
    target.unlink()
    values = values or [math.nan]  # all of it was hidden
    return Likeness(size, float(np.mean(values)), min(values))


def ssim(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the structural similarity of two pictures (H, W) at every px."""
    one, other = before.astype(np.float32), after.astype(np.float32)
    side = 2 * SSIM_REACH + 1

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.GaussianBlur(values, (side, side), SSIM_SIGMA), np.float32)

    a, b = mean(one), mean(other)
    power_a, power_b, shared = mean(one * one) - a * a, mean(other * other) - b * b, mean(one * other) - a * b
    similar = (2 * a * b + SSIM_C1) * (2 * shared + SSIM_C2)
    return np.asarray(similar / ((a * a + b * b + SSIM_C1) * (power_a + power_b + SSIM_C2)), np.float32)


def _touched(regions: list[Region], shape_hw: tuple[int, ...], turns: int) -> NDArray[np.bool_]:
    """Return (H, W) where the window of the SSIM meets a hidden region, its feather or the blocks that it lies in."""
    touched = np.zeros(shape_hw, np.bool_)
    upright = np.rot90(touched, turns)  # a view
    for region in regions:
        grow = feather_px(region) + BLOCK_PX + SSIM_REACH
        upright[max(0, region.y0 - grow) : region.y1 + grow, max(0, region.x0 - grow) : region.x1 + grow] = True
    return touched


def _composed(work: Path) -> list[Path]:
    """Write clips of several kinds."""
    plans = {
        "1080p, 30 frames/s": full_hd(2.0),
        "640x360, walkers, cuts": Plan(seconds=3.0, seed=3, walkers=3, cuts=2),
        "320x240, noisy": Plan((320, 240), seconds=3.0, seed=5, grain=6.0),
        "odd, 4:4:4": Plan((321, 241), seconds=2.0, seed=6),
    }
    for name, plan in plans.items():
        write_clip(plan, work / f"{name}.mp4")
    return [work / f"{name}.mp4" for name in plans]
