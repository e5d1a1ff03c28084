"""Image files, page by page. Pages of photos and documents stand alone. In animations faces are tracked."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from blurguard.anonymize.media import WINDOW_BYTES, FaceLog, MediaInfo, MediaJob, make_face
from blurguard.anonymize.surfaces import surface_of
from blurguard.anonymize.tracked import Frames, TrackRedactor, redact_tracks
from blurguard.detection.detector import Detector
from blurguard.images.formats import ImageFile, Page
from blurguard.redaction.regions import paired_regions
from blurguard.settings import Settings
from blurguard.tracking.lookahead import Detected, FrameDetections
from blurguard.tracking.scene_cuts import SceneCutDetector
from blurguard.types import Detections, Face, Image, Region

_MIN_WINDOW_FRAMES = 25  # of an animation, however large its frames are
_MIN_FRAME_MS, _DEFAULT_FRAME_MS = 20.0, 100.0  # browsers show frames below the first for the second


def process_pages(image_file: ImageFile, job: MediaJob, log: FaceLog) -> Iterator[Page]:
    """Yield every page with its faces detected, and hidden if the job says so.

    Raises:
        InputError: a page cannot be read.
    """
    width, height, detector = image_file.width, image_file.height, job.detectors[0]
    log.info = MediaInfo(image_file.file_type, width, height, image_file.page_count)
    if not image_file.is_animated:
        return _process_alone(_detect_pages(image_file, detector, job.min_score), job, log)
    frames = _detect_pages(image_file, detector, job.weak_score)
    max_frames = max(_MIN_WINDOW_FRAMES, WINDOW_BYTES // (4 * width * height))
    box_rgb = job.settings.box_rgb
    return redact_tracks(frames, lambda page: [surface_of(page.image, box_rgb)], (width, height), job, max_frames, log)


def faces_in(image: Image, detections: Detections, margin: float, frame: int = 0) -> list[tuple[Face, Region]]:
    """Return the detected faces that reach into the image, each with its region."""
    regions = paired_regions(detections, margin, image.width, image.height)
    faces = zip(detections.boxes, detections.scores, regions, strict=True)
    return [(make_face(box, score, region, frame), region) for box, score, region in faces if region is not None]


def hide_into(image: Image, regions: Iterable[Region], settings: Settings) -> None:
    """Hide regions in ``image.pixels`` itself, each under a mosaic of its own, and draw boxes if wanted."""
    TrackRedactor(settings).redact([surface_of(image, settings.box_rgb)], list(enumerate(regions)))


def _detect_pages(image_file: ImageFile, detector: Detector, min_score: float) -> Frames[Page]:
    """Yield every page, writable, with its detections."""
    cuts, seconds = SceneCutDetector(), 0.0

    def detect(rgb: NDArray[np.uint8]) -> FrameDetections:
        # The RGB copy is freed before the page is yielded.
        detections = detector.detect(rgb, min_score)
        return FrameDetections(seconds, detections, image_file.is_animated and cuts.is_cut(rgb))

    for page in map(_writable, image_file.pages()):
        yield page, detect(page.image.rgb8())
        seconds += (page.duration_ms if page.duration_ms >= _MIN_FRAME_MS else _DEFAULT_FRAME_MS) / 1000


def _process_alone(pages: Iterable[Detected[Page]], job: MediaJob, log: FaceLog) -> Iterator[Page]:
    """Yield every page with the faces that were detected in this page."""
    for number, (page, detected) in enumerate(map(log.add_defect, pages)):
        found = faces_in(page.image, detected.detections, job.settings.margin, number)
        log.add_faces(face for face, _ in found)
        if job.hide:
            hide_into(page.image, [region for _, region in found], job.settings)
        yield page


def _writable(page: Page) -> Page:
    image = page.image
    if image.pixels.flags.writeable:
        return page
    return replace(page, image=Image(image.pixels.copy(), image.layout, image.palette))
