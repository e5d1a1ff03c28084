"""The Anonymizer: detects and hides the faces of arrays, images and files. Command line and library share it."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from blurguard.anonymize.media import FaceLog, MediaJob
from blurguard.anonymize.pages import faces_in, hide_into, process_pages
from blurguard.detection.detector import Detector
from blurguard.detection.registry import load_detector
from blurguard.errors import InputError
from blurguard.files import atomic
from blurguard.files.errors import read_errors
from blurguard.files.filetypes import FileType, type_of_file
from blurguard.files.stamp import FileStamp
from blurguard.images.formats import ImageFile, open_image
from blurguard.settings import Settings
from blurguard.types import Detections, Face, Image, Layout, Outcome, Pixels, Region, Status

# Called with a video, its finished frames, and the number of all frames if known.
Progress = Callable[[Path, int, int | None], None]

# Raise it whenever the same settings and model would give another result. Older results are then redone.
DIGEST_VERSION = 4
# Image files are read whole. Larger ones would only exhaust the memory.
MAX_BYTES = 4 << 30
_NEUTRAL_SETTINGS = ("jobs", "max_pixels")  # the result does not depend on them


@dataclass(frozen=True, slots=True)
class StagedResult:
    """A processed file. Its result is complete, but not yet published under its name.

    Attributes:
        outcome: for the report. Its status ``done`` holds once the result is published.
        staged: the result in scratch, or None if nothing is to be written.
        source_stamp: stamp of the source, taken before it was read.
        source_digest: BLAKE2b of the content that was read.
    """

    outcome: Outcome
    staged: atomic.StagedFile | None
    source_stamp: FileStamp
    source_digest: str


class Anonymizer:
    """Detects and hides faces in arrays, images and files. Not thread-safe: use one per thread.

    Attributes:
        settings: of the user.
        detector: detects the faces.
        threads: detectors that work on a video at the same time.
        progress: called after each frame of a video.
    """

    def __init__(self, settings: Settings | None = None, detector: Detector | None = None) -> None:
        """Use this detector, or load the one of the settings.

        Raises:
            ModelError: the model is missing or damaged, or no runtime is installed.
        """
        self.settings = settings or Settings()
        self.detector = detector or load_detector(self.settings)
        self.threads = 1
        self.progress: Progress = lambda *_: None
        self._spare: list[Detector] = []  # for the other threads
        self._can_load = detector is None  # a detector of the caller's works alone

    @property
    def min_score(self) -> float:
        """Score from which a face is hidden: of the settings, or else the detector's default."""
        chosen = self.settings.min_score
        return self.detector.threshold if chosen is None else chosen

    @property
    def recipe(self) -> str:
        """Digest of everything but the file that decides on a result: settings, threshold, model."""
        settings = {key: value for key, value in self.settings.as_json().items() if key not in _NEUTRAL_SETTINGS}
        return config_digest(settings | {"min_score": self.min_score}, self.detector.identity)

    def detect(self, image: Image) -> Detections:
        """Return the faces in an image. Hides nothing."""
        return self.detector.detect(image.rgb8(), self.min_score)

    def faces(self, image: Image, frame: int = 0) -> list[tuple[Face, Region]]:
        """Return each face to hide, with its region.

        Args:
            image: upright.
            frame: number of the page or frame, for the report.
        """
        return faces_in(image, self.detect(image), self.settings.margin, frame)

    def hide(self, image: Image) -> tuple[Image, tuple[Face, ...]]:
        """Return a copy of the image with its faces hidden, and these faces."""
        copy = Image(image.pixels.copy(), image.layout, image.palette)
        return copy, self.hide_into(copy)

    def hide_into(self, image: Image, frame: int = 0) -> tuple[Face, ...]:
        """Hide the faces in ``image.pixels`` itself and return them, numbered as by ``faces``."""
        found = self.faces(image, frame)
        hide_into(image, [region for _, region in found], self.settings)
        return tuple(face for face, _ in found)

    def look(self, source: Path) -> Outcome:
        """Detect the faces of a file. Writes nothing.

        Raises:
            InputError: the file cannot be read as an image or video.
        """
        started, log = time.perf_counter(), FaceLog(with_paths=True)
        kind = type_of_file(source)
        if kind is FileType.VIDEO:
            from blurguard.anonymize.video import detect_video

            detect_video(source, self._job(source, self.threads, hide=False), log)
        else:
            image_file, _, _ = self._open_image(source, kind)
            for _ in process_pages(image_file, self._job(source, 1, hide=False), log):
                pass
        return self._outcome(source, log, started)

    def work(self, source: Path, scratch: Path) -> StagedResult:
        """Hide the faces of a file, and leave the result in scratch.

        Raises:
            InputError: the file cannot be read as an image or video.
            OutputError: the scratch folder cannot be written.
        """
        started, log = time.perf_counter(), FaceLog()
        kind = type_of_file(source)
        if kind is FileType.VIDEO:
            from blurguard.anonymize.video import hide_video

            with read_errors(source):  # a video is too large to be read into memory
                stamp, digest = FileStamp.of(source), atomic.digest_file(source)
            job = self._job(source, self.threads, hide=True)
            staged = atomic.stage_file(scratch, lambda path: hide_video(source, path, job, log))
        else:
            image_file, stamp, digest = self._open_image(source, kind)
            pages = process_pages(image_file, self._job(source, 1, hide=True), log)
            staged = atomic.stage_bytes(scratch, image_file.encode(pages))
        return StagedResult(self._outcome(source, log, started), staged, stamp, digest)

    def process(self, source: Path, target: Path, *, replace_existing: bool = False) -> Outcome:
        """Write a file with its faces hidden to ``target``: completely, or not at all.

        Args:
            source: an image or video. It stays unchanged unless it is the target too.
            target: name of the result. Its folder holds a private scratch folder in the meantime.
            replace_existing: whether an existing file of that name is replaced.

        Raises:
            InputError: the file cannot be read as an image or video.
            OutputError: the result cannot be written, or the name is taken.
        """
        atomic.remove_stale(target.parent)
        with atomic.scratch_in(target.parent) as scratch:
            result = self.work(source, scratch)
            assert result.staged is not None  # noqa: S101 - work() always writes a result
            atomic.publish(result.staged, target, replace_existing)
        return replace(result.outcome, target=target)

    def _open_image(self, source: Path, kind: FileType) -> tuple[ImageFile, FileStamp, str]:
        """Return an opened image file, its stamp before reading, and the digest of its content."""
        with read_errors(source):
            stamp = FileStamp.of(source)
            if stamp.size > MAX_BYTES:
                raise InputError(f"{source}: {stamp.size / 1e9:.1f} GB are more than any picture needs")
            data = source.read_bytes()
        image_file = open_image(data, kind, str(source), self.settings.max_pixels, self.settings.keep_metadata)
        return image_file, stamp, atomic.digest_bytes(data)

    def _job(self, source: Path, threads: int, *, hide: bool) -> MediaJob:
        """Return a job with a detector per thread, or with the caller's detector alone."""
        while self._can_load and len(self._spare) < threads - 1:
            self._spare.append(load_detector(self.settings))
        detectors = [self.detector, *self._spare[: threads - 1]]
        return MediaJob(detectors, self.min_score, self.settings, hide, partial(self.progress, source))

    def _outcome(self, source: Path, log: FaceLog, started: float) -> Outcome:
        outcome = Outcome(source, Status.DONE, model=self.detector.identity, seconds=time.perf_counter() - started)
        return replace(outcome, **log.info._asdict(), faces=log.faces(), second_pass=", ".join(sorted(log.defects)))


@overload
def hide_faces(image: NDArray[np.uint8], settings: Settings | None = None) -> NDArray[np.uint8]: ...
@overload
def hide_faces(image: NDArray[np.uint16], settings: Settings | None = None) -> NDArray[np.uint16]: ...
@overload
def hide_faces(image: Image, settings: Settings | None = None) -> Image: ...
def hide_faces(image: Pixels | Image, settings: Settings | None = None) -> Pixels | Image:
    """Return a copy of an image with every face hidden.

    This loads the detector at each call. For many images make one ``Anonymizer`` and call its ``hide``.

    Args:
        image: upright, an ``Image`` or an array, uint8 or uint16: RGB (H, W, 3), RGBA (H, W, 4) or gray (H, W).
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


def config_digest(settings: dict[str, object], identity: str) -> str:
    """Return the digest of settings and model by which results are up to date.

    Args:
        settings: all that change the result.
        identity: of the detector.
    """
    text = json.dumps([DIGEST_VERSION, settings, identity], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
