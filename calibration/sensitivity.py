"""What a quantized network loses against the float one: on labeled pictures, in time, and layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from blurguard.detection.interpreter import Network
from blurguard.settings import Mode, Settings
from calibration.candidate import alone, candidate
from calibration.evaluate import TABLE_HEAD, detect_all, pixels_of, row_of
from calibration.score import SIZES, Hidden, Labeled, hidden_at, subset_aps
from calibration.tables import table

__all__ = ["Noise", "Quality", "comparison", "layer_table", "milliseconds", "noise_of", "noises_by_layer", "quality_of"]

SIDES = (192, 384, 768)  # px, at which time is measured
ROUNDS = 20  # runs of which the quickest counts
MIDDLE_PX = 384  # side of the part of a picture that maps are compared on
TOP_SHARE = 0.01  # of all cells: those with the highest scores, where faces are

Make = Callable[[str], bytes]
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Maps = tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class Noise:
    """Signal-to-noise ratios, dB: the maps' variance to the squared errors in the cells with the highest scores.

    Infinite where nothing differs.
    """

    boxes: float
    scores: float


@dataclass(frozen=True, slots=True)
class Quality:
    """What a network finds: AP by subset and hidden faces by height (`score.BUCKETS`), in percent."""

    aps: tuple[float, ...]
    by_height: tuple[float, ...]

    def minus(self, other: Quality) -> Quality:
        """Return the differences, in points."""
        pairs = ((self.aps, other.aps), (self.by_height, other.by_height))
        return Quality(*(tuple(a - b for a, b in zip(*pair, strict=True)) for pair in pairs))


def comparison(networks: Mapping[str, bytes], truth: list[Labeled], mode: str, sides: Sequence[int] = SIDES) -> str:
    """Return a Markdown table with a row for each .tflite file: what it finds, its time on one thread, its size.

    Faces are hidden from the same score in all rows. How near the maps are to those of the first file is told of the
    middles of the pictures.
    """
    headers = ["network", *TABLE_HEAD[1:], f"ms at {' / '.join(map(str, sides))} px", "boxes / scores dB", "bytes"]
    times = milliseconds(networks, sides)
    rows = []
    middles = _middles(truth)
    expected = _maps(next(iter(networks.values())), middles)
    for name, data in networks.items():
        aps, point, spent = _found(data, truth, mode)
        noise = _noise(expected, _maps(data, middles))
        took = " / ".join(f"{time:.1f}" for time in times[name])
        maps = f"{noise.boxes:.1f} / {noise.scores:.1f}"
        rows.append([*row_of(name, aps, point, spent), took, maps, f"{len(data):,}"])
    return table(headers, rows)


def quality_of(data: bytes, truth: list[Labeled], mode: str) -> Quality:
    """Return what a .tflite file finds in labeled pictures."""
    aps, point, _ = _found(data, truth, mode)
    return Quality(tuple(aps), point.by_height)


def milliseconds(
    networks: Mapping[str, bytes], sides: Sequence[int] = SIDES, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Return for each .tflite file the least time of a run on one thread, ms, at each side.

    They run in turns, so that what else the machine does concerns all alike.
    """
    least = {name: [np.inf] * len(sides) for name in networks}
    for index, side in enumerate(sides):
        canvas = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        ready = {name: Network(candidate(data), data) for name, data in networks.items()}
        for turn in range(rounds + 1):
            for name, network in ready.items():
                started = perf_counter()
                network.run(canvas)
                if turn:  # the first one also builds the interpreter
                    least[name][index] = min(least[name][index], 1000 * (perf_counter() - started))
    return least


def noise_of(reference: bytes, data: bytes, crops: Pixels) -> Noise:
    """Return what the maps of one .tflite file differ from those of another, on crops, uint8 (N, h, w, 3) RGB."""
    return _noise(_maps(reference, crops), _maps(data, crops))


def noises_by_layer(reference: bytes, layers: Sequence[str], alone: Make, crops: Pixels) -> dict[str, Noise]:
    """Return the noise when only one layer is INT8 (``alone(layer)`` makes that file), by layer, the worst first."""
    expected = _maps(reference, crops)
    noises = {layer: _noise(expected, _maps(alone(layer), crops)) for layer in layers}
    return dict(sorted(noises.items(), key=lambda item: min(item[1].boxes, item[1].scores)))


def layer_table(noises: Mapping[str, Noise], described: Mapping[str, str], losses: Mapping[str, Quality]) -> str:
    """Return a Markdown table of layers, in the order of ``noises``.

    ``losses`` holds what some layers lose alone, differences of `Quality`: AP and hidden faces of each size, in points.
    """
    head = ["only this one INT8", "what", "boxes dB", "scores dB", "AP lost easy / medium / hard"]
    head += [f"{size} lost" for size in SIZES]
    rows = []
    for layer, noise in noises.items():
        cells = [layer, described[layer], f"{noise.boxes:.1f}", f"{noise.scores:.1f}"]
        if layer in losses:
            loss = losses[layer]
            cells += [" / ".join(f"{ap:.1f}" for ap in loss.aps), *(f"{lost:.1f}" for lost in loss.by_height)]
        rows.append(cells + [""] * (len(head) - len(cells)))
    return table(head, rows)


def _found(data: bytes, truth: list[Labeled], mode: str) -> tuple[list[float], Hidden, float]:
    """Return APs in percent, the operating point, and ms of processor time a picture."""
    detector = alone(candidate(data), data, Mode(mode))
    found, spent = detect_all(detector, truth)
    aps = subset_aps(truth, found)
    return aps, hidden_at(truth, found, detector.threshold, Settings().margin), spent


def _middles(truth: list[Labeled]) -> Pixels:
    """Return the middle of each picture, uint8 (N, MIDDLE_PX, MIDDLE_PX, 3) RGB; smaller pictures end in black."""
    middles = np.zeros((len(truth), MIDDLE_PX, MIDDLE_PX, 3), np.uint8)
    for picture, middle in zip(truth, middles, strict=True):
        pixels = pixels_of(picture)
        y, x = (max(0, side - MIDDLE_PX) // 2 for side in pixels.shape[:2])
        part = pixels[y : y + MIDDLE_PX, x : x + MIDDLE_PX]
        middle[: part.shape[0], : part.shape[1]] = part
    return middles


def _maps(data: bytes, crops: Pixels) -> Maps:
    """Return boxes (N, h/4, w/4, 4) and logits (N, h/4, w/4)."""
    network = Network(candidate(data), data)
    boxes, logits = zip(*(network.run(crop) for crop in crops), strict=True)
    return np.stack(boxes), np.stack(logits)


def _noise(expected: Maps, got: Maps) -> Noise:
    likely = expected[1] >= np.quantile(expected[1], 1 - TOP_SHARE)
    return Noise(*(_decibels(*pair, likely) for pair in zip(expected, got, strict=True)))


def _decibels(signal: Floats, noisy: Floats, counted: NDArray[np.bool_]) -> float:
    """Return how much larger the variance of a map (N, h, w, ...) is than its mean squared error where that counts."""
    error = float(np.square((noisy - signal)[counted], dtype=np.float64).mean())
    power = float(signal.var(axis=(0, 1, 2), dtype=np.float64).mean())
    return 10 * math.log10(power / error) if error and power else math.inf
