"""Compose a video with exactly known face boxes in every frame, from the example photos.

A hand-held camera pans, zooms and sways over composed crowds (``compose_crowd.py``); if wanted, other faces walk
through the picture on their own, some of them in and out of it, and the scene changes from time to time. The
boxes follow from the same transforms that move the pixels, so they are exact in every frame.

    python -m examples.compose_clip CLIP.mp4 [--size 640x360] [--fps 25] [--seconds 2] [--walkers 3] [--cuts 1]

Beside ``CLIP.mp4`` comes ``CLIP.json``: ``{"width", "height", "fps", "frames": [[face, ...], ...]}``, a list for
each frame, a face being ``{"id", "x", "y", "w", "h", "visible", "ignore"}``. Boxes are px and may reach beyond the
picture; ``visible`` is the share of the face's ellipse that the frame shows, and faces of which little or nothing
can be recognized are to be ignored.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TypedDict

import av
import cv2
import numpy as np
import numpy.typing as npt

from examples import compose_crowd as crowd
from examples.compose_crowd import Box, Canvas, Cutout, Image, Placement

IGNORED_BELOW = 0.6  # share of a face's ellipse that is visible
SMALLEST_PX = 8.0  # height; smaller faces are to be ignored
WORLD = 1.6  # size of the picture that is panned over, in frames
MIN_ZOOM, MAX_ZOOM = 0.8, 1.25  # px of the frame for each px of that picture
MAX_TILT = math.radians(2.0)
SWAY = 0.004  # amplitude of a hand's shake, in frame widths
WALKER_PX = (20.0, 200.0)  # heights of the faces that walk, at most; in low frames they are smaller
WALKER_SHARE = 0.4  # of the frame's height, at most
WALKING_SPEED = (0.6, 3.0)  # face widths a second
GRAIN_SPARE = 64  # px: the frames take their noise from one piece that is so much larger
SCENE_IDS = 1000  # faces of the second scene are counted from here
_AUDIO_RATE = 48_000
_BT709 = 1


class ClipFace(TypedDict):
    """One face in one frame: its box in px, how much of it shows, and whether it is to be left out of account."""

    id: int
    x: float
    y: float
    w: float
    h: float
    visible: float
    ignore: bool


class ClipTruth(TypedDict):
    """What is known of a clip."""

    width: int
    height: int
    fps: float
    frames: list[list[ClipFace]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a clip is composed from; the same plan gives the same pictures and boxes.

    Attributes:
        size_wh: of the frames, px; odd sizes are encoded as 4:4:4.
        fps: frames a second.
        seconds: length.
        seed: of everything that is left to chance.
        faces: in the crowd of each scene, of 10 to 245 px times the zoom.
        walkers: faces that walk through each scene on their own.
        cuts: scene changes, evenly spread.
        grain: standard deviation of the camera's noise, gray levels.
        audio: whether there is a tone.
        crf: quality of the encoder.
    """

    size_wh: tuple[int, int] = (640, 360)
    fps: int = 25
    seconds: float = 2.0
    seed: int = 7
    faces: int = 24
    walkers: int = 0
    cuts: int = 0
    grain: float = 1.5
    audio: bool = False
    crf: int = 18

    @property
    def count(self) -> int:
        """Frames in all."""
        return max(1, round(self.fps * self.seconds))


@dataclass(frozen=True, slots=True)
class Wave:
    """Something that swings about a middle, smoothly."""

    middle: float
    reach: float
    period: float  # seconds
    phase: float

    def at(self, seconds: float) -> float:
        """Return where it is."""
        return self.middle + self.reach * math.sin(self.phase + 2 * math.pi * seconds / self.period)


@dataclass(frozen=True, slots=True)
class Camera:
    """Where a scene's camera looks: waves for the place (0 to 1 of what can be reached), zoom, tilt and shake."""

    size_wh: tuple[int, int]
    world_wh: tuple[int, int]
    place: tuple[Wave, Wave]
    zoom: Wave
    tilt: Wave
    shake: tuple[Wave, Wave]

    @classmethod
    def of(cls, rng: random.Random, size_wh: tuple[int, int], world_wh: tuple[int, int]) -> Camera:
        """Return a camera that moves as chance has it."""

        def wave(middle: float, reach: float, shortest: float, longest: float) -> Wave:
            return Wave(middle, reach, rng.uniform(shortest, longest), rng.uniform(0, 2 * math.pi))

        sway = SWAY * size_wh[0]
        return cls(
            size_wh,
            world_wh,
            (wave(0.5, 0.5, 5, 9), wave(0.5, 0.5, 7, 12)),
            wave((MIN_ZOOM + MAX_ZOOM) / 2, (MAX_ZOOM - MIN_ZOOM) / 2, 6, 10),
            wave(0, MAX_TILT, 3, 5),
            (wave(0, sway, 0.3, 0.7), wave(0, sway, 0.3, 0.7)),
        )

    def matrix(self, seconds: float) -> npt.NDArray[np.float64]:
        """Return the 2x3 affine from the world to the frame; coordinates are px edges, not centers."""
        zoom, tilt = self.zoom.at(seconds), self.tilt.at(seconds)
        cos, sin = math.cos(tilt), math.sin(tilt)
        size, world = np.array(self.size_wh), np.array(self.world_wh)
        half = (cos * size + abs(sin) * size[::-1]) / 2 / zoom  # of what the frame shows of the world
        place, shake = (np.array([wave.at(seconds) for wave in waves]) for waves in (self.place, self.shake))
        middle = np.clip(half + place * (world - 2 * half) + shake, half, world - half)  # never looks beyond it
        linear = zoom * np.array([[cos, -sin], [sin, cos]])
        shift = size / 2 - linear @ middle
        return np.hstack([linear, shift[:, None]])


@dataclass(frozen=True, slots=True)
class Walker:
    """A face that goes its own way over the frame."""

    placement: Placement
    start: tuple[float, float]
    speed: tuple[float, float]  # px a second
    bob: Wave
    tone: int

    def at(self, seconds: float) -> Placement:
        """Return where it is."""
        x, y = (start + speed * seconds for start, speed in zip(self.start, self.speed, strict=True))
        return replace(self.placement, center=(x, y + self.bob.at(seconds)))


@dataclass(frozen=True, slots=True)
class Scene:
    """What is before the camera between two cuts: ``boxes`` and ``shown`` are of the faces in the world."""

    world: Image
    boxes: tuple[Box, ...]
    shown: tuple[float, ...]  # share of each face that nothing in the world covers; 0 where its box is not exact
    camera: Camera
    walkers: tuple[Walker, ...]
    first_id: int

    def frame(self, seconds: float) -> tuple[Image, list[ClipFace]]:
        """Return the picture (H, W, 3) RGB at a time, and the faces in it."""
        matrix, size_wh = self.camera.matrix(seconds), self.camera.size_wh
        canvas = Canvas(_viewed(self.world, matrix, size_wh))
        there: list[tuple[int, Box, float]] = []
        for index, (box, shown) in enumerate(zip(self.boxes, self.shown, strict=True)):
            _note(canvas, there, (self.first_id + index, moved(box, matrix), shown))
        for index, walker in enumerate(self.walkers):
            placement = walker.at(seconds)
            if _within(placement.tile_box(), size_wh):
                crowd._paste(canvas, placement, np.random.default_rng(walker.tone))
                canvas.visible.pop()  # it is noted like the others
                _note(canvas, there, (self.first_id + len(self.boxes) + index, placement.face_box(), 1.0))
        pairs = zip(there, canvas.visible, strict=True)
        return canvas.image, [_clip_face(face, int(seen.sum()) / pixels) for face, (_, seen, pixels) in pairs]


def moved(box: Box, matrix: npt.NDArray[np.float64]) -> Box:
    """Return the bounds of a box's ellipse after a transform that turns, scales and shifts."""
    (a, b, _), (c, d, _) = matrix
    x, y = matrix @ np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 1])
    half_w, half_h = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    reach_x, reach_y = math.hypot(a * half_w, b * half_h), math.hypot(c * half_w, d * half_h)
    return float(x) - reach_x, float(y) - reach_y, float(x) + reach_x, float(y) + reach_y


def frames(plan: Plan) -> Iterator[tuple[Image, list[ClipFace]]]:
    """Yield the frames (H, W, 3) RGB, each with its faces."""
    width, height = plan.size_wh
    rng = np.random.default_rng(plan.seed)
    noise = _grain(plan, rng)
    for number in range(plan.cuts + 1):
        scene = _scene(plan, number)
        for index in range(_first(plan, number), _first(plan, number + 1)):
            image, faces = scene.frame(index / plan.fps)
            x, y = rng.integers(0, GRAIN_SPARE, 2)
            # OpenCV adds and clips at once, in a tenth of the time that numpy takes.
            cv2.add(image, noise[y : y + height, x : x + width], dst=image, dtype=cv2.CV_8U)
            yield image, faces


def write_clip(plan: Plan, path: Path) -> ClipTruth:
    """Write the clip as H.264 in MP4 and return its faces; the JSON is not written."""
    truth: list[list[ClipFace]] = []

    def images() -> Iterator[Image]:
        for image, faces in frames(plan):
            truth.append(faces)
            yield image

    encode(images(), path, plan)
    return {"width": plan.size_wh[0], "height": plan.size_wh[1], "fps": plan.fps, "frames": truth}


def write(plan: Plan, path: Path) -> ClipTruth:
    """Write the clip and, beside it, its faces as JSON."""
    truth = write_clip(plan, path)
    head = json.dumps({key: value for key, value in truth.items() if key != "frames"})
    # One frame per line keeps the file readable.
    lines = ",\n".join(json.dumps(faces) for faces in truth["frames"])
    path.with_suffix(".json").write_text(f'{head[:-1]}, "frames": [\n{lines}\n]}}\n', encoding="utf-8")
    return truth


def encode(images: Iterable[Image], path: Path, plan: Plan) -> None:
    """Encode pictures (H, W, 3) RGB; the same ones give the same file where both sides are multiples of 16.

    At other sizes x264's choices follow what happens to lie behind the picture in memory, and files differ a little.
    """
    width, height = plan.size_wh
    pixel_format = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"crf": str(plan.crf), "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("h264", rate=plan.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709
        sound = container.add_stream("aac", rate=_AUDIO_RATE) if plan.audio else None
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            container.mux(stream.encode(frame.reformat(format=pixel_format, dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
        if sound is not None:
            for part in _tone(plan.count / plan.fps):
                container.mux(sound.encode(part))
            container.mux(sound.encode(None))


def _tone(seconds: float) -> Iterator[av.AudioFrame]:
    step = 1024
    for start in range(0, round(seconds * _AUDIO_RATE), step):
        at = np.arange(start, start + step) / _AUDIO_RATE
        wave = np.sin(2 * math.pi * (220 + 40 * np.sin(at)) * at) * 0.2
        frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = _AUDIO_RATE, start, Fraction(1, _AUDIO_RATE)
        yield frame


# ---- scenes ------------------------------------------------------------------------------------


def _first(plan: Plan, scene: int) -> int:
    """Return the number of a scene's first frame."""
    return scene * plan.count // (plan.cuts + 1)


def _scene(plan: Plan, number: int) -> Scene:
    rng = random.Random(plan.seed * 1009 + number)
    world_wh = round(WORLD * plan.size_wh[0]), round(WORLD * plan.size_wh[1])
    world, faces = crowd.compose(plan.seed + 100 * number, world_wh, plan.faces)
    boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in (face["box"] for face in faces))
    # Of a face that the world's edge cuts, only the cut box is told.
    shown = tuple(0.0 if face["clipped"] else 1 - face["occluded"] for face in faces)
    camera = Camera.of(rng, plan.size_wh, world_wh)
    times = _first(plan, number) / plan.fps, _first(plan, number + 1) / plan.fps
    walkers = tuple(_walker(rng, plan, times) for _ in range(plan.walkers))
    return Scene(world, boxes, shown, camera, walkers, number * SCENE_IDS)


def _walker(rng: random.Random, plan: Plan, times: tuple[float, float]) -> Walker:
    """Return a face that is in the frame at some moment between two times, and may come or go meanwhile."""
    width, height = plan.size_wh
    limit = min(WALKER_PX[1], WALKER_SHARE * height)
    # As many of 20 to 40 px as of 100 to 200: steps of size are ratios.
    tall = math.exp(rng.uniform(math.log(min(WALKER_PX[0], limit)), math.log(limit)))
    placement = replace(_lightened(crowd._new_placement(rng, tall)), framed=False)
    x0, _, x1, _ = placement.face_box()
    pace = rng.choice((-1, 1)) * rng.uniform(*WALKING_SPEED) * (x1 - x0)
    speed = pace, rng.uniform(-0.15, 0.15) * pace
    # It passes this place at this time.
    when, place = rng.uniform(*times), (rng.uniform(0.1, 0.9) * width, rng.uniform(0.2, 0.8) * height)
    start = place[0] - speed[0] * when, place[1] - speed[1] * when
    bob = Wave(0, 0.06 * tall, rng.uniform(0.5, 0.8), rng.uniform(0, 2 * math.pi))
    return Walker(placement, start, speed, bob, rng.randrange(1 << 30))


def _lightened(placement: Placement) -> Placement:
    """Return a placement with no more pixels than are drawn: it is drawn in every frame."""
    cutout, scale = placement.cutout, min(1.0, placement.scale)
    high, wide = cutout.pixels.shape[:2]
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    pixels = np.asarray(cv2.resize(cutout.pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    x0, y0, x1, y1 = cutout.box
    across, down = size[0] / wide, size[1] / high
    return replace(placement, cutout=Cutout(cutout.source, pixels, (x0 * across, y0 * down, x1 * across, y1 * down)))


# ---- frames ------------------------------------------------------------------------------------


def _viewed(world: Image, matrix: npt.NDArray[np.float64], size_wh: tuple[int, int]) -> Image:
    # OpenCV counts from pixel centers, the matrix from pixel edges.
    shift = matrix[:, 2] + matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5
    whole = np.hstack([matrix[:, :2], shift[:, None]])
    drawn = cv2.warpAffine(world, whole, size_wh, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(drawn, np.uint8)


def _within(box: Box, size_wh: tuple[int, int]) -> bool:
    return box[0] < size_wh[0] and box[1] < size_wh[1] and box[2] > 0 and box[3] > 0


def _note(canvas: Canvas, there: list[tuple[int, Box, float]], face: tuple[int, Box, float]) -> None:
    """Write down a face (number, box, share shown) if it is in the picture, and which pixels are its own."""
    if _within(face[1], canvas.size_wh):
        window = crowd._clip(face[1], canvas.size_wh)
        x0, y0, x1, y1 = face[1]
        whole = math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)
        pixels = int(crowd._ellipse_pixels(face[1], whole).sum())
        canvas.visible.append((window, crowd._ellipse_pixels(face[1], window), pixels))
        there.append(face)


def _clip_face(face: tuple[int, Box, float], seen: float) -> ClipFace:
    number, (x0, y0, x1, y1), shown = face
    visible = shown * seen
    return {
        "id": number,
        "x": round(x0, 2),
        "y": round(y0, 2),
        "w": round(x1 - x0, 2),
        "h": round(y1 - y0, 2),
        "visible": round(visible, 3),
        "ignore": visible < IGNORED_BELOW or y1 - y0 < SMALLEST_PX,
    }


def _grain(plan: Plan, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    shape = plan.size_wh[1] + GRAIN_SPARE, plan.size_wh[0] + GRAIN_SPARE
    noise = np.rint(rng.standard_normal(shape, np.float32) * plan.grain).astype(np.int16)
    return np.repeat(noise[:, :, None], 3, axis=2)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compose a video with exactly known face boxes in every frame.")
    parser.add_argument("clip", type=Path, help="the MP4 file; its boxes go into a .json beside it")
    parser.add_argument("--size", type=_size, default=Plan().size_wh, metavar="WxH")
    for name in ("fps", "seconds", "seed", "faces", "walkers", "cuts", "grain", "crf"):
        default = getattr(Plan(), name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--audio", action="store_true", help="add a tone")
    values = vars(parser.parse_args())
    clip, size_wh = values.pop("clip"), values.pop("size")
    write(Plan(size_wh=size_wh, **values), clip)


if __name__ == "__main__":
    main()
