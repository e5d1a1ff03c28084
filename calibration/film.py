"""How many faces are hidden in a video whose faces are known in every frame, with and without following them.

``python -m calibration film CLIP.mp4 CLIP.json`` prints the tables of docs/accuracy.md for videos. The truth is
``{"width", "height", "fps", "frames": [[{"id", "x", "y", "w", "h", "visible", "ignore"}, ...], ...]}``, px; such
clips come from ``python -m examples.compose_clip``.

What is hidden is asked of the code that hides: the regions that it notes on its roll, drawn by what draws them
into frames. With ``--check`` the clip is also hidden for good, and the file that comes out is decoded and looked
at: of a face that is bare there, the detail is still that of the original.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.anonymize.anonymizer import Anonymizer
from blurguard.anonymize.media import FaceLog, MediaJob
from blurguard.anonymize.video import detect_video
from blurguard.boxes import iou, rescale_boxes
from blurguard.detection.detector import Detector, TwoSpeedDetector
from blurguard.detection.registry import load_detector
from blurguard.redaction.mosaic import Mosaic, Surface, redact_region
from blurguard.redaction.regions import regions_from
from blurguard.settings import Mode, Settings, Shape, Style
from blurguard.tracking.lookahead import TrackedBox
from blurguard.tracking.schedule import THOROUGH_SECONDS
from blurguard.types import Detections, Region
from blurguard.video.reader import open_video
from calibration import CalibrationError
from calibration.score import BUCKETS, HIDDEN_SHARE, IGNORE, SIZES, Labeled, _ellipse, _outside
from calibration.tables import table

SAME_IOU = 0.3  # with a true box; hidden ones are larger
WHITE = 255
# Cells of a hidden face and the blur over them have no detail this fine; sigma as a share of the face's height.
DETAIL_SHARE = 0.08
LEFT_OVER = 0.6  # correlation of the detail in the original and in the result, from which a face counts as bare

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The faces of one frame: as in a labeled picture, and which of the video's faces each is, int (N,)."""

    picture: Labeled
    ids: NDArray[np.int64]

    def counted(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield number and box of each face that counts."""
        for number, box, flags in zip(self.ids, self.picture.boxes, self.picture.flags, strict=True):
            if not flags & IGNORE:
                yield int(number), box


@dataclass(frozen=True, slots=True)
class Watched:
    """What was made of a video: what is hidden in each frame, and what its own detections alone would hide.

    Attributes:
        hidden: by frame.
        alone: by frame, empty if not the same detector saw all frames.
        thorough: frames that the detector saw itself. Its quick form saw the others.
        cpu_seconds: CPU time a frame for reading, detecting and tracking.
    """

    hidden: list[list[tuple[TrackedBox, Region]]]
    alone: list[list[Region]]
    thorough: int = 0
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of the faces; shares in percent, of faces counted once for each frame.

    Attributes:
        by_height: one for each bucket of ``calibration.score``, None where there is no such face.
        hidden: of all.
        in_tracks: bare stretches of a face between two frames in which one and the same track had it.
        between_finds: bare stretches between two frames in which the face is hidden.
        longest_bare: frames of the longest bare stretch of a face that is hidden somewhere.
        never: faces that are bare in all their frames.
        faces: in the video.
        outside: share of the picture that is hidden away from all faces.
    """

    by_height: tuple[float | None, ...]
    hidden: float
    in_tracks: int
    between_finds: int
    longest_bare: int
    never: int
    faces: int
    outside: float


class Notes(FaceLog):
    """A roll that keeps all that is ever written on it."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: dict[int, list[tuple[TrackedBox, Region]]] = {}

    def add(self, frame: int, tracked: TrackedBox, region: Region) -> None:
        """Write down that a face is hidden in a frame."""
        super().add(frame, tracked, region)
        self.frames.setdefault(frame, []).append((tracked, region))


class Witness:
    """A detector that remembers what it said, in px of pictures of another size."""

    def __init__(self, detector: Detector, size_wh: tuple[int, int]) -> None:
        self._detector = detector
        self._size = size_wh
        self.said: list[Detections] = []

    @property
    def identity(self) -> str:
        """The detector's."""
        return self._detector.identity

    @property
    def threshold(self) -> float:
        """The detector's."""
        return self._detector.threshold

    @property
    def quick(self) -> Detector | None:
        """The detector's."""
        return self._detector.quick if isinstance(self._detector, TwoSpeedDetector) else None

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        """Return what the detector says."""
        found = self._detector.detect(rgb, min_score)
        boxes = rescale_boxes(found.boxes, (rgb.shape[1], rgb.shape[0]), self._size)
        self.said.append(Detections(boxes, found.scores))
        return found


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    parser = steps.add_parser("film", help="faces hidden in a labeled video, with and without following them")
    parser.add_argument("clip", type=Path)
    parser.add_argument("truth", type=Path, help="its faces, JSON")
    parser.add_argument("--model", default="", help="name in the manifest (default: the default one)")
    parser.add_argument("--min-score", type=float, help="hide faces from this score (default: the model's)")
    parser.add_argument("--mode", choices=[*Mode], action="append", help="only this one (may be repeated)")
    parser.add_argument(
        "--seconds", type=float, action="append", help="between thorough frames of accurate mode (may be repeated)"
    )
    parser.add_argument("--check", action="store_true", help="hide the faces and look at the file that comes out, too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the tables."""
    cv2.setNumThreads(1)
    labels = load_labels(arguments.truth)
    seconds = arguments.seconds or [THOROUGH_SECONDS]
    score, model = arguments.min_score, arguments.model
    settings = [Settings(mode=Mode(mode), model=model, min_score=score) for mode in arguments.mode or [*Mode]]
    count = sum(len(list(frame.counted())) for frame in labels)
    print(f"{arguments.clip.name}: {len(labels)} frames, {count} faces in frames, margin {Settings().margin:g}\n")
    rows = [row for chosen in settings for row in _rows(arguments.clip, chosen, seconds, labels)]
    print(table(_HEAD, rows))
    if arguments.check:
        told = [_told(chosen.mode, *check(arguments.clip, chosen, labels)) for chosen in settings]
        print(f"\n{table(_CHECK_HEAD, told)}")
    return 0


def _rows(clip: Path, settings: Settings, seconds: Sequence[float], labels: Sequence[Labels]) -> Iterator[list[str]]:
    """Yield the rows of one mode. The last one is that of the detections alone."""
    if settings.mode is Mode.FAST:
        jobs = {f"fast, every {name}": (stride, 0.0) for stride, name in ((2, "second frame"), (1, "frame"))}
    else:
        jobs = {f"accurate, thorough every {each:g} s": (1, each) for each in seconds}
        jobs["accurate, thorough on every frame"] = 1, 0.0
    for name, (stride, interval) in jobs.items():
        watched = watch(clip, settings, stride, interval)
        yield _row(name, "yes", figures(labels, watched), watched)
    yield _row(name, "no", figures(labels, unfollowed(watched)), watched)


_HEAD = (
    "looks at", "follows", *SIZES, "all", "bare inside a track", "bare between two finds", "longest bare, frames",
    "never hidden", "masked outside faces", "frames of the detector itself", "CPU, ms a frame",
)  # fmt: skip
_CHECK_HEAD = (
    "file written", "faces in frames", "not to be seen in the file", "planned hidden, yet seen", "longest bare, frames",
)  # fmt: skip


def _row(name: str, follows: str, got: Figures, watched: Watched) -> list[str]:
    shares = [f"{share:.1f} %" if share is not None else "–" for share in got.by_height]
    tracks = str(got.in_tracks) if follows == "yes" else "–"
    counts = (tracks, str(got.between_finds), str(got.longest_bare), f"{got.never} of {got.faces}")
    cost = (f"{watched.thorough} of {len(watched.hidden)}", f"{1000 * watched.cpu_seconds:.0f}")
    return [name, follows, *shares, f"{got.hidden:.2f} %", *counts, f"{got.outside:.2f} %", *cost]


def _told(mode: Mode, total: int, gone: int, broken: int, longest: int) -> list[object]:
    return [mode, total, f"{100 * gone / max(total, 1):.2f} %", broken, longest]


def load_labels(path: Path) -> list[Labels]:
    """Return the faces of every frame.

    Raises:
        CalibrationError: the file is not what it must be.
    """
    try:
        truth = json.loads(path.read_text("utf-8"))
        return [_labels(path, truth, frame) for frame in truth["frames"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"{path} does not hold the faces of a video: {error}") from error


def _labels(path: Path, truth: dict[str, int], frame: list[dict[str, float]]) -> Labels:
    rows = np.array([(f["x"], f["y"], f["w"], f["h"]) for f in frame], np.float64).reshape(-1, 4)
    boxes = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:]], axis=1).astype(np.float32)
    flags = np.array([IGNORE * bool(face["ignore"]) for face in frame], np.int64)
    picture = Labeled(path, int(truth["width"]), int(truth["height"]), boxes, flags)
    return Labels(picture, np.array([face["id"] for face in frame], np.int64))


def watch(clip: Path, settings: Settings, stride: int, thorough_seconds: float = THOROUGH_SECONDS) -> Watched:
    """Look at a clip as the program does, but at every ``stride``-th frame only.

    With another ``thorough_seconds``, accurate mode sees more or fewer frames thoroughly, with 0 every one.
    """
    with open_video(clip, max_pixels=settings.max_pixels) as video:
        size = video.info.upright_size
    notes, witness = Notes(), Witness(load_detector(settings), size)
    threshold = witness.threshold if settings.min_score is None else settings.min_score
    job = MediaJob([witness], threshold, settings, hide=False, detect_every=stride, thorough_seconds=thorough_seconds)
    start = time.process_time()
    detect_video(clip, job, notes)
    count, seconds = notes.info.frames, time.process_time() - start
    hidden = [notes.frames.get(frame, []) for frame in range(count)]
    alone: list[list[Region]] = [[] for _ in range(count)]
    if not thorough_seconds or witness.quick is None:
        for frame, found in zip(range(0, count, stride), witness.said, strict=True):
            strong = found.scores >= threshold
            chosen = Detections(found.boxes[strong], found.scores[strong])
            alone[frame] = regions_from(chosen, settings.margin, *size)
    return Watched(hidden, alone, len(witness.said), seconds / max(1, count))


def unfollowed(watched: Watched) -> Watched:
    """Return what each frame's own detections would hide; no track has any part in it."""
    nobody = np.zeros(4, np.float32)
    return Watched(
        [[(TrackedBox(-1, nobody, 0.0, is_detected=False), region) for region in regions] for regions in watched.alone],
        watched.alone,
    )


def figures(labels: Sequence[Labels], watched: Watched) -> Figures:
    """Return what became of the faces.

    Raises:
        CalibrationError: the video has not the frames that the labels are of.
    """
    if len(labels) != len(watched.hidden):
        raise CalibrationError(f"the video has {len(watched.hidden)} frames, the labels are of {len(labels)}")
    covered: dict[int, dict[int, bool]] = {}  # by face, then by frame: whether it is hidden
    held: dict[tuple[int, int], list[int]] = {}  # frames by face and track
    heights, outside = [], 0
    for frame, (truth, covers) in enumerate(zip(labels, watched.hidden, strict=True)):
        mask = mask_of([region for _, region in covers], truth.picture)
        for number, box in truth.counted():
            is_hidden = covered_share(box, mask) >= HIDDEN_SHARE
            covered.setdefault(number, {})[frame] = is_hidden
            heights.append((float(box[3] - box[1]), is_hidden))
            for track in _tracks_at(box, covers):
                held.setdefault((number, track), []).append(frame)
        outside += _outside(truth.picture, mask)
    bare = {number: bare_stretches(frames) for number, frames in covered.items()}
    finds = {n: [f for f, is_hidden in frames.items() if is_hidden] for n, frames in covered.items()}
    in_tracks = {(n, stretch) for (n, _), frames in held.items() for stretch in _between(bare[n], frames)}
    tall, hits = np.array(heights or [(0.0, False)]).T
    return Figures(
        tuple(_percent(hits[(tall >= low) & (tall < high)]) for low, high in BUCKETS),
        _percent(hits) or 0.0,
        len(in_tracks),
        sum(len(_between(bare[number], frames)) for number, frames in finds.items()),
        max((last - first + 1 for n in bare if finds[n] for first, last in bare[n]), default=0),
        sum(not frames for frames in finds.values()),
        len(covered),
        100 * outside / max(1, sum(frame.picture.width * frame.picture.height for frame in labels)),
    )


def mask_of(regions: Sequence[Region], picture: Labeled) -> Mask:
    """Return (H, W) what is hidden for good, feathers left out: drawn by what draws into frames."""
    pixels = np.zeros((picture.height, picture.width, 1), np.uint8)
    white = np.array([WHITE], np.float32)
    surface = Surface(pixels, WHITE, black=white, box_color=white, noise=0.0)
    for region in regions:
        redact_region(surface, region, Mosaic(), Style.SOLID, Shape.ELLIPSE)
    return np.asarray(pixels[:, :, 0] == WHITE)


def bare_stretches(frames: dict[int, bool]) -> list[tuple[int, int]]:
    """Return first and last frame of each stretch in which a face is there and not hidden."""
    stretches: list[tuple[int, int]] = []
    for frame in sorted(frame for frame, is_hidden in frames.items() if not is_hidden):
        if stretches and stretches[-1][1] == frame - 1:
            stretches[-1] = stretches[-1][0], frame
        else:
            stretches.append((frame, frame))
    return stretches


def _between(stretches: Sequence[tuple[int, int]], frames: Sequence[int]) -> list[tuple[int, int]]:
    """Return the stretches that lie between the first and the last of some frames."""
    if not frames:
        return []
    return [(first, last) for first, last in stretches if min(frames) < first and last < max(frames)]


def _tracks_at(box: NDArray[np.float32], covers: Sequence[tuple[TrackedBox, Region]]) -> list[int]:
    """Return the tracks that were seen in this frame where the face is."""
    seen = [cover for cover, _ in covers if cover.is_detected]
    if not seen:
        return []
    overlaps = iou(box[None], np.array([cover.box for cover in seen], np.float32))[0]
    return [cover.track_id for cover, overlap in zip(seen, overlaps, strict=True) if overlap >= SAME_IOU]


def covered_share(box: NDArray[np.float32], mask: Mask) -> float:
    """Return how much of the part of a face's ellipse that lies in the picture is hidden, 0 to 1."""
    rows, columns, inside = _ellipse(box, mask.shape)
    return float(mask[rows, columns][inside].mean()) if inside.any() else 1.0


def _percent(hits: NDArray[np.float64]) -> float | None:
    return 100 * float(hits.mean()) if len(hits) else None


# ---- the file that comes out --------------------------------------------------------------------


def check(clip: Path, settings: Settings, labels: Sequence[Labels]) -> tuple[int, int, int, int]:
    """Hide the faces of a clip and look at the result.

    Returns:
        Faces in frames; how many cannot be seen in the file; how many can although they were to be hidden; frames
        of the longest stretch in which a face is to be seen that cannot be seen somewhere else.
    """
    planned = watch(clip, settings, 1).hidden
    total = gone = broken = 0
    bare: dict[int, dict[int, bool]] = {}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / clip.name
        Anonymizer(settings).process(clip, target)
        for frame, (before, after) in enumerate(zip(_lumas(clip), _lumas(target), strict=True)):
            mask = mask_of([region for _, region in planned[frame]], labels[frame].picture)
            for number, box in labels[frame].counted():
                is_gone = detail_left(before, after, box) < LEFT_OVER
                bare.setdefault(number, {})[frame] = is_gone
                total, gone = total + 1, gone + is_gone
                broken += not is_gone and covered_share(box, mask) >= HIDDEN_SHARE
    found = [bare_stretches(frames) for frames in bare.values() if any(frames.values())]
    return total, gone, broken, max((last - first + 1 for runs in found for first, last in runs), default=0)


def detail_left(before: NDArray[np.uint8], after: NDArray[np.uint8], box: NDArray[np.float32]) -> float:
    """Return how alike the detail of a face's ellipse is in two pictures (H, W): 1 the same, 0 nothing is left."""
    rows, columns, inside = _ellipse(box, before.shape)
    if not inside.any():
        return 0.0
    sigma = max(1.0, DETAIL_SHARE * float(box[3] - box[1]))
    details = []
    for luma in (before, after):
        patch = luma[rows, columns].astype(np.float32)
        detail = (patch - cv2.GaussianBlur(patch, (0, 0), sigma))[inside]
        details.append(detail - detail.mean())
    power = float(np.sqrt((details[0] ** 2).sum() * (details[1] ** 2).sum()))
    return float((details[0] * details[1]).sum()) / power if power > 0 else 0.0


def _lumas(path: Path) -> Iterator[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield np.asarray(frame.to_ndarray(format="gray"), np.uint8)
