"""From picture to hidden picture, and from file to file: what the command line, the batch and the library share."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from blurguard.anonymize.surfaces import canvas_of, color_in, draw_boxes_into, hide_into
from blurguard.anonymize.tracked import WEAK_SCORE_RATIO, FaceLog, redact_tracks
from blurguard.detection.detector import Detector, load_detector
from blurguard.errors import InputError
from blurguard.files.atomic import (
    StagedFile,
    digest_bytes,
    digest_file,
    publish,
    remove_stale,
    scratch_in,
    stage_bytes,
    stage_file,
)
from blurguard.files.errors import read_errors
from blurguard.files.filetypes import FileType, type_of_file
from blurguard.files.stamp import FileStamp
from blurguard.images.still import ImageFile, Page, open_image
from blurguard.redaction.mosaic import Plane
from blurguard.redaction.regions import paired_regions
from blurguard.settings import Settings
from blurguard.tracking.lookahead import FrameDetections, TrackingConfig
from blurguard.tracking.scene_cuts import SceneCutDetector
from blurguard.types import Detections, Face, Image, Layout, Outcome, Pixels, Region, Status

if TYPE_CHECKING:
    from blurguard.anonymize.video import VideoJob, VideoResult

# Called with a video, the frames that are done, and how many there are if that is known.
Progress = Callable[[Path, int, int | None], None]

# Changes whenever the same settings and model would give another result: results of before are redone then.
DIGEST_VERSION = 3
_WINDOW_BYTES = 640 << 20  # of an animation's frames in the window in which faces are followed
_MIN_WINDOW_FRAMES = 25  # in it, however large they are
_MIN_FRAME_MS, _DEFAULT_FRAME_MS = 20.0, 100.0  # browsers show frames of less than the first for the second
# Pictures are read whole: larger ones would only exhaust the memory.
MAX_BYTES = 4 << 30
# What settings do not change the result.
_NEUTRAL_SETTINGS = ("jobs", "max_pixels")


@dataclass(frozen=True, slots=True)
class StagedResult:
    """A file that has been handled up to the point where its result needs only its name.

    Attributes:
        outcome: what to report; ``done`` once the draft is published.
        draft: the result in scratch, or None when nothing is to be written.
        source: stamp of the source, taken before it was read.
        source_digest: BLAKE2b of what was read.
    """

    outcome: Outcome
    staged: StagedFile | None
    source_stamp: FileStamp
    source_digest: str


class Anonymizer:
    """Finds faces and hides them, in arrays, images and files. Not thread-safe: one per thread.

    Attributes:
        settings: what was asked for.
        detector: what looks.
        threads: how many look at the frames of a video.
        progress: is told of the frames of videos.
    """

    def __init__(self, settings: Settings | None = None, detector: Detector | None = None) -> None:
        """Load the detector that the settings ask for, or take another one.

        Raises:
            ModelError: the model is missing or damaged, or no runtime is installed.
        """
        self.settings = settings or Settings()
        self.detector = detector or load_detector(self.settings)
        self.threads = 1
        self.progress: Progress = lambda *_: None
        self._spare: list[Detector] | None = None if detector else []
        self._flaws: set[str] = set()  # of the file at hand, for its report

    @property
    def min_score(self) -> float:
        """Score from which a face is hidden: the settings' or, without one there, the detector's."""
        chosen = self.settings.min_score
        return self.detector.threshold if chosen is None else chosen

    @property
    def recipe(self) -> str:
        """Digest of all that decides what comes out besides the picture itself."""
        settings = {key: value for key, value in self.settings.as_json().items() if key not in _NEUTRAL_SETTINGS}
        return config_digest(settings | {"min_score": self.min_score}, self.detector.identity)

    def detect(self, image: Image) -> Detections:
        """Return the faces in an image; hides nothing."""
        return _Noting(self.detector, self._flaws).detect(image.rgb8(), self.min_score)

    def faces(self, image: Image, frame: int = 0) -> list[tuple[Face, Region]]:
        """Return each face that is to be hidden, with its region."""
        found = self.detect(image)
        regions = paired_regions(found, self.settings.margin, image.width, image.height)
        return [
            (_face(box, score, region, frame), region)
            for box, score, region in zip(found.boxes, found.scores, regions, strict=True)
            if region is not None
        ]

    def hide(self, image: Image) -> tuple[Image, tuple[Face, ...]]:
        """Return a copy of the image with its faces hidden, and which they are."""
        copy = Image(image.pixels.copy(), image.layout, image.palette)
        return copy, self.hide_into(copy)

    def hide_into(self, image: Image, frame: int = 0) -> tuple[Face, ...]:
        """Hide the faces in ``image.pixels`` itself; return which they are."""
        found = self.faces(image, frame)
        regions = [region for _, region in found]
        hide_into(image, regions, self.settings.style, self.settings.shape)
        if self.settings.boxes:
            draw_boxes_into(image, regions, self.settings.box_rgb)
        return tuple(face for face, _ in found)

    def look(self, source: Path) -> Outcome:
        """Return the faces of a file; writes nothing.

        Raises:
            InputError: the file cannot be read as a picture or video.
        """
        started = time.perf_counter()
        self._flaws.clear()
        if type_of_file(source) is FileType.VIDEO:
            from blurguard.anonymize.video import detect_video

            return self._of_film(source, detect_video(source, self._look(source)), started)
        still, _, _ = self._open(source)
        if still.is_animated:
            roll = FaceLog(with_paths=True)
            for _ in self._cloaked(still, roll, paint=False):
                pass
            return self._outcome(source, still, roll.faces(), started)
        faces = [face for index, page in enumerate(still.pages()) for face, _ in self.faces(page.image, index)]
        return self._outcome(source, still, tuple(faces), started)

    def work(self, source: Path, scratch: Path) -> StagedResult:
        """Read a file, hide its faces and leave the result in scratch.

        Raises:
            InputError: the file cannot be read as a picture or video.
            OutputError: scratch cannot be written to.
        """
        started = time.perf_counter()
        self._flaws.clear()
        if type_of_file(source) is FileType.VIDEO:
            return self._film(source, scratch, started)
        still, stamp, digest = self._open(source)
        if still.is_animated:
            roll = FaceLog()
            draft = stage_bytes(scratch, still.encode(self._cloaked(still, roll, paint=True)))
            return StagedResult(self._outcome(source, still, roll.faces(), started), draft, stamp, digest)
        faces: list[Face] = []
        draft = stage_bytes(scratch, still.encode(self._hidden(still, faces)))
        return StagedResult(self._outcome(source, still, tuple(faces), started), draft, stamp, digest)

    def process(self, source: Path, target: Path, *, replace_existing: bool = False) -> Outcome:
        """Read a picture file and write it to ``target`` with its faces hidden: whole, or not at all.

        Args:
            source: the file; never changed unless it is the target too.
            target: name of the result; in its folder a private scratch folder exists meanwhile.
            replace_existing: whether a file of that name may be replaced.

        Raises:
            InputError: the file cannot be read as a picture.
            OutputError: the result cannot be written, or the name is taken.
        """
        remove_stale(target.parent)
        with scratch_in(target.parent) as scratch:
            work = self.work(source, scratch)
            assert work.staged is not None  # noqa: S101 - work() always writes one
            publish(work.staged, target, replace_existing)
        return replace(work.outcome, target=target)

    def _hidden(self, still: ImageFile, faces: list[Face]) -> Iterator[Page]:
        """Yield the pages with their faces hidden, one at a time; tells of the faces in ``faces``."""
        for index, page in enumerate(still.pages()):
            image = _writable(page.image)
            faces.extend(self.hide_into(image, index))
            yield replace(page, image=image)

    def _cloaked(self, still: ImageFile, roll: FaceLog, paint: bool) -> Iterator[Page]:
        """Yield the frames of an animation with their faces followed and hidden; tells of them on the roll."""
        settings = self.settings
        detector = _Noting(self.detector, self._flaws)

        def seen() -> Iterator[tuple[Page, FrameDetections]]:
            cuts, seconds = SceneCutDetector(), 0.0
            for page in still.pages():
                rgb = page.image.rgb8()
                found = detector.detect(rgb, self.min_score * WEAK_SCORE_RATIO)
                yield replace(page, image=_writable(page.image)), FrameDetections(seconds, found, cuts.is_cut(rgb))
                seconds += (page.duration_ms if page.duration_ms >= _MIN_FRAME_MS else _DEFAULT_FRAME_MS) / 1000

        def planes(page: Page) -> list[Plane]:
            return [Plane(canvas_of(page.image), 1, 1, color_in(page.image, settings.box_rgb))]

        most_frames = max(_MIN_WINDOW_FRAMES, _WINDOW_BYTES // (4 * still.width * still.height))
        rules = TrackingConfig(self.min_score, settings.hold, most_frames)
        yield from redact_tracks(seen(), planes if paint else None, (still.width, still.height), settings, rules, roll)

    def _film(self, source: Path, scratch: Path, started: float) -> StagedResult:
        from blurguard.anonymize.video import hide_video

        with read_errors(source):
            stamp, digest = FileStamp.of(source), digest_file(source)
        films: list[VideoResult] = []

        def write(path: Path) -> None:
            films.append(hide_video(source, path, self._look(source)))

        draft = stage_file(scratch, write)
        return StagedResult(self._of_film(source, films[0], started), draft, stamp, digest)

    def _look(self, source: Path) -> VideoJob:
        """Return how a video is looked at: by a detector for each thread, unless we were given one."""
        from blurguard.anonymize.video import VideoJob

        def told(done: int, total: int | None) -> None:
            self.progress(source, done, total)

        spare = self._spare
        while spare is not None and len(spare) < self.threads - 1:
            spare.append(load_detector(self.settings))
        detectors = [self.detector, *(spare or [])[: self.threads - 1]]
        return VideoJob([_Noting(detector, self._flaws) for detector in detectors], self.min_score, self.settings, told)

    def _of_film(self, source: Path, film: VideoResult, started: float) -> Outcome:
        return Outcome(
            source,
            Status.DONE,
            kind=film.kind,
            reason=film.damage,
            faces=film.faces,
            frames=film.frames,
            width=film.width,
            height=film.height,
            seconds=time.perf_counter() - started,
            model=self.detector.identity,
            second_pass=self._second_pass(),
        )

    def _open(self, source: Path) -> tuple[ImageFile, FileStamp, str]:
        kind = type_of_file(source)
        with read_errors(source):
            stamp = FileStamp.of(source)
            if stamp.size > MAX_BYTES:
                raise InputError(f"{source}: {stamp.size / 1e9:.1f} GB are more than any picture needs")
            data = source.read_bytes()
        settings = self.settings
        still = open_image(data, kind, str(source), settings.max_pixels, settings.keep_metadata)
        return still, stamp, digest_bytes(data)

    def _outcome(self, source: Path, still: ImageFile, faces: tuple[Face, ...], started: float) -> Outcome:
        return Outcome(
            source,
            Status.DONE,
            kind=still.file_type,
            faces=faces,
            frames=still.page_count,
            width=still.width,
            height=still.height,
            seconds=time.perf_counter() - started,
            model=self.detector.identity,
            second_pass=self._second_pass(),
        )

    def _second_pass(self) -> str:
        """Return why pictures of the file at hand were looked at twice."""
        return ", ".join(sorted(self._flaws))


@overload
def hide_faces(image: NDArray[np.uint8], settings: Settings | None = None) -> NDArray[np.uint8]: ...
@overload
def hide_faces(image: NDArray[np.uint16], settings: Settings | None = None) -> NDArray[np.uint16]: ...
@overload
def hide_faces(image: Image, settings: Settings | None = None) -> Image: ...
def hide_faces(image: Pixels | Image, settings: Settings | None = None) -> Pixels | Image:
    """Return a copy of a picture with every face hidden.

    For more than a few pictures make one ``Anonymizer`` and call its ``hide``: this one loads the detector
    each time.

    Args:
        image: upright; an ``Image``, or an array of RGB (H, W, 3), RGBA (H, W, 4) or grey (H, W), uint8 or uint16.
        settings: as for ``Anonymizer``.

    Raises:
        ValueError: an array of another shape or type.
        ModelError: the model is missing or damaged, or no runtime is installed.
    """
    if isinstance(image, Image):
        return Anonymizer(settings).hide(image)[0]
    pixels = image[:, :, None] if image.ndim == 2 else image
    layouts = {1: Layout.GREY, 3: Layout.RGB, 4: Layout.RGBA}
    if pixels.ndim != 3 or pixels.shape[2] not in layouts:
        raise ValueError(f"expected (H, W), (H, W, 3) or (H, W, 4) pixels, not {image.shape}")
    hidden, _ = Anonymizer(settings).hide(Image(pixels, layouts[pixels.shape[2]]))
    return hidden.pixels.reshape(image.shape)


@dataclass(frozen=True, slots=True)
class _Noting:
    """A detector that notes for which flaws of what it is shown it looks twice."""

    inner: Detector
    flaws: set[str]

    @property
    def identity(self) -> str:
        return self.inner.identity

    @property
    def threshold(self) -> float:
        return self.inner.threshold

    def detect(self, rgb: NDArray[np.uint8], min_score: float) -> Detections:
        found = self.inner.detect(rgb, min_score)
        if found.flaw:
            self.flaws.add(found.flaw)
        return found


def config_digest(settings: dict[str, object], identity: str) -> str:
    """Return the digest of settings and model under which a result is up to date."""
    told = json.dumps([DIGEST_VERSION, settings, identity], sort_keys=True, default=str)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _face(box: NDArray[np.float32], score: np.float32, region: Region, frame: int) -> Face:
    x0, y0, x1, y1 = (float(v) for v in box)
    return Face((x0, y0, x1, y1), float(score), region.box, frame)


def _writable(image: Image) -> Image:
    if image.pixels.flags.writeable:
        return image
    return Image(image.pixels.copy(), image.layout, image.palette)
