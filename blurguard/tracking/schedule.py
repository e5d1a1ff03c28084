"""Decides which frames of a video a thorough detector sees, and which ones a quick one alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
S = TypeVar("S")

# Between two thorough frames of one scene, at most. In composed clips up to 0.3 % more face-frames stay bare than
# with every frame thorough, at two fifths of the cost (docs/accuracy.md).
THOROUGH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Planned(Generic[T]):
    """A frame before detection.

    Attributes:
        item: the frame.
        seconds: presentation time.
        is_cut: a new scene starts with this frame.
        is_thorough: the thorough detector sees it.
    """

    item: T
    seconds: float
    is_cut: bool
    is_thorough: bool = False


def plan_frames(frames: Iterable[tuple[T, float, bool]], interval: float, max_frames: int) -> Iterator[Planned[T]]:
    """Yield every frame, one behind the source, with the decision whether it is thorough.

    The first and the last frame of each scene are, and enough between them.

    Args:
        frames: with presentation time, s, and whether a new scene starts. A step back in time starts one too.
        interval: between two thorough frames, s, at most. Adjacent frames may be further apart.
        max_frames: from one thorough frame to the next, at most.
    """
    pending: Planned[T] | None = None
    since, count = 0.0, 0  # time of the last thorough frame, and frames since then
    for following in itertools.chain((Planned(*frame) for frame in frames), [None]):
        if pending is not None:
            ends = following is None or _starts_scene(following, pending)
            late = following is not None and following.seconds - since > interval + 1e-6
            is_thorough = count == 0 or ends or late or count >= max_frames
            yield Planned(pending.item, pending.seconds, pending.is_cut, is_thorough)
            since, count = (pending.seconds, 1) if is_thorough else (since, count + 1)
            count = 0 if ends else count
        pending = following


def split_frames(frames: Iterable[S], plan_of: Callable[[S], Planned[T]]) -> Iterator[tuple[list[S], bool]]:
    """Yield the frames from each thorough one to the next, and whether that next one is the last of them.

    It is the first of the following list too. After the last thorough frame of a scene there is none.
    """
    held: list[S] = []
    for frame in frames:
        if held and _starts_scene(plan_of(frame), plan_of(held[-1])):
            yield held, False
            held = []
        held.append(frame)
        if plan_of(frame).is_thorough and len(held) > 1:
            yield held, True
            held = [frame]
    if held:
        yield held, False


def _starts_scene(frame: Planned[T], before: Planned[T]) -> bool:
    """Return whether a scene starts with a frame, as the tracker decides it."""
    return frame.is_cut or frame.seconds < before.seconds
