"""Where the time goes in a video: CPU time of the threads, by stage."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import cv2

from bench.measure import Section, ms, now
from bench.video import CLIP_SECONDS, full_hd
from blurguard import Anonymizer, Mode, Settings
from blurguard.anonymize import tracked, video
from blurguard.anonymize.surfaces import surfaces_of
from blurguard.anonymize.tracked import TrackRedactor
from blurguard.tracking.lookahead import TrackingConfig, track_faces
from blurguard.video.reader import VideoReader, open_video
from blurguard.video.rgb import RgbConverter
from blurguard.video.writer import VideoWriter
from examples.compose_clip import write_clip

Item = TypeVar("Item")


class Laps:
    """CPU time by name, in all threads; what is measured within something else is not counted there."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._mine = threading.local()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count what this thread does meanwhile."""
        stack = self._mine.__dict__.setdefault("stack", [])
        self._turn(stack)
        stack.append(name)
        try:
            yield
        finally:
            self._turn(stack)
            stack.pop()

    def _turn(self, stack: list[str]) -> None:
        """Give the time since the last turn to what it was spent in."""
        clock = time.thread_time()
        if stack:
            with self._lock:
                self.seconds[stack[-1]] += clock - self._mine.clock
        self._mine.clock = clock

    def call(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return function(*args, **kwargs)

        return counted

    def each(self, name: str, items: Iterable[Item]) -> Generator[Item, None, None]:
        """Yield the items of an iterator; what it takes to get them is counted."""
        source = iter(items)
        try:
            while True:
                with self.of(name):
                    try:
                        item = next(source)
                    except StopIteration:
                        return
                yield item
        finally:
            getattr(source, "close", lambda: None)()


DECODE, SCALE, DETECT, FOLLOW, HIDE, ENCODE = STAGES = (
    "decode", "scale for the detector", "detect", "follow", "hide", "encode, copy sound, mux",
)  # fmt: skip
_BETWEEN = "between"


def _changed(owner: object, member: Callable[..., Any], changed: Callable[..., Any]) -> AbstractContextManager[object]:
    """Return a patch of a module, class or object member, which must exist under its own name."""
    manager: AbstractContextManager[object] = patch.object(owner, member.__name__, changed)
    return manager


@contextmanager
def counted_stages(laps: Laps, anonymizer: Anonymizer) -> Iterator[None]:
    """Count the stages of videos; decoder and encoder work in one thread each, which is the one that calls them."""
    video_frames = VideoReader.frames

    def followed(items: Iterable[Any], rules: TrackingConfig) -> Generator[Any, None, None]:
        return laps.each(FOLLOW, track_faces(laps.each(_BETWEEN, items), rules))

    detector = anonymizer.detector
    changes = [
        _changed(video, open_video, functools.partial(open_video, threads=1)),
        _changed(video, VideoWriter, functools.partial(VideoWriter, threads=1)),
        _changed(VideoReader, VideoReader.frames, lambda video: laps.each(DECODE, video_frames(video))),
        _changed(RgbConverter, RgbConverter.convert, laps.call(SCALE, RgbConverter.convert)),
        _changed(detector, detector.detect, laps.call(DETECT, detector.detect)),
        _changed(tracked, track_faces, followed),
        _changed(video, surfaces_of, laps.call(HIDE, surfaces_of)),
        _changed(TrackRedactor, TrackRedactor.redact, laps.call(HIDE, TrackRedactor.redact)),
        _changed(VideoWriter, VideoWriter.write, laps.call(ENCODE, VideoWriter.write)),
        _changed(VideoWriter, VideoWriter.close, laps.call(ENCODE, VideoWriter.close)),
    ]
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        yield


def by_stage(work: Path) -> Section:
    """Measure where the time goes, in one process."""
    cv2.setNumThreads(1)
    plan = full_hd(CLIP_SECONDS)
    clip = work / "stages.mp4"
    write_clip(plan, clip)
    columns, totals = [], []
    for mode in Mode:
        anonymizer, laps = Anonymizer(Settings(mode=mode)), Laps()
        with counted_stages(laps, anonymizer):
            before = now()
            anonymizer.process(clip, work / f"stages_{mode}.mp4")
            spent = (now() - before).per(plan.count)
        own = [laps.seconds[stage] / plan.count for stage in STAGES]
        columns.append([*own, spent.cpu - sum(own), spent.cpu])
        totals.append(f"{1 / spent.wall:.1f} frames/s ({mode})")
    names = (*STAGES, "everything else, start-up too", "all")
    shares = [[ms(value), f"{100 * value / column[-1]:.0f} %"] for column in columns for value in column]
    half = len(names)
    rows = [(name, *shares[index], *shares[half + index]) for index, name in enumerate(names)]
    return Section(
        "Where the time goes in a video: 1080p H.264",
        f"CPU time of the threads in each stage, per frame, over {plan.count} frames in one process with one detector; "
        f"decoder and encoder were kept to one thread each. In that run: {', '.join(totals)}.",
        ("", *(cell for mode in Mode for cell in (f"{mode}, ms", "share"))),
        rows,
    )
