"""Faces are hidden in a frame's own planes, all of them, and nothing else is changed."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blurguard.anonymize.surfaces import is_supported, surfaces_of
from blurguard.anonymize.tracked import TrackRedactor
from blurguard.redaction.masks import make_mask
from blurguard.redaction.mosaic import feather_px
from blurguard.redaction.regions import regions_from, scale_to_plane
from blurguard.settings import Settings, Shape
from blurguard.types import Detections, Region
from blurguard.video.rgb import RgbConverter

PAINTABLE = (
    "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv440p", "yuv410p", "yuva420p", "yuv420p10le", "yuv422p10le",
    "yuv444p12le", "gray", "gray10le", "gbrp", "gbrp10le", "gbrap", "nv12", "nv21", "rgb24", "bgr24", "rgba", "bgra",
    "bgr0", "rgb48le",
)  # fmt: skip
WIDTH, HEIGHT = 97, 75  # odd on purpose
BOX = (30.0, 20.0, 60.0, 52.0)


def noise(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def frame_of(rgb: Any, pixel_format: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24").reformat(format=pixel_format)
    frame.color_range = 2 if pixel_format.startswith("yuvj") else 1
    return frame


def alpha_of(frame: av.VideoFrame) -> Any:
    if frame.format.name in ("rgba", "bgra"):
        return frame.to_ndarray()[:, :, 3].copy()
    if len(frame.planes) < 4:
        return None
    return np.frombuffer(memoryview(frame.planes[3]), np.uint8).reshape(HEIGHT, -1)[:, :WIDTH].copy()


def region_of(box: tuple[float, ...], width: int = WIDTH, height: int = HEIGHT) -> Region:
    found = Detections(np.array([box], np.float32), np.ones(1, np.float32))
    return regions_from(found, 0.2, width, height)[0]


def hidden_in(region: Region, width: int = WIDTH, height: int = HEIGHT, feather: bool = False) -> Any:
    """Return (H, W) which samples are hidden; with their feather, which may change at all."""
    shape = Shape.ELLIPSE
    share = make_mask((height, width), (0, 0), region, shape, feather_px(region)).dense()
    return share > 0 if feather else share == 1


@pytest.mark.parametrize("pixel_format", ["yuyv422", "pal8", "p010le", "monob", "rgb555le", "argb", "yuv420p10be"])
def test_what_cannot_be_painted_is_told(pixel_format: str) -> None:
    assert not is_supported(pixel_format)


@pytest.mark.parametrize("pixel_format", PAINTABLE)
def test_nothing_of_the_face_is_left_in_any_plane(pixel_format: str) -> None:
    """Whatever stood under the ellipse, what stands there afterwards is the same: black."""
    assert is_supported(pixel_format)
    region, results = region_of(BOX), []
    inside = hidden_in(region)
    for seed in (1, 2):
        rgb = noise()
        rgb[inside] = noise(seed=seed)[inside]
        frame = frame_of(rgb, pixel_format)
        TrackRedactor(Settings(style="solid")).redact(surfaces_of(frame, 0, (0, 255, 0)), [(0, region)])  # type: ignore[arg-type]
        results.append(frame)
    first, second = (RgbConverter(0, Fraction(1), None).convert(frame) for frame in results)
    assert first[inside].max() <= 2
    assert np.abs(first[inside].astype(int) - second[inside]).max() == 0
    for plane in surfaces_of(results[0], 0, (0, 0, 0)):
        small = scale_to_plane(region, (plane.step_x, plane.step_y))
        middle = plane.pixels[(small.y0 + small.y1) // 2, (small.x0 + small.x1) // 2]
        assert np.array_equal(middle, np.rint(plane.black))


@pytest.mark.parametrize("pixel_format", PAINTABLE)
def test_outside_nothing_changes(pixel_format: str) -> None:
    region = region_of(BOX)
    frame = frame_of(noise(), pixel_format)
    planes = surfaces_of(frame, 0, (0, 255, 0))
    before, alpha = [plane.pixels.copy() for plane in planes], alpha_of(frame)
    TrackRedactor(Settings()).redact(planes, [(0, region)])
    for plane, plain in zip(planes, before, strict=True):
        height, width = plain.shape[:2]
        small = scale_to_plane(region, (plane.step_x, plane.step_y))
        beyond = ~hidden_in(small, width, height, feather=True)
        assert np.array_equal(plane.pixels[beyond], plain[beyond])
        assert not np.array_equal(plane.pixels, plain)
    assert np.array_equal(alpha_of(frame), alpha)


@pytest.mark.parametrize("width", [1, 4, 5, 6, 9, 97])
def test_samples_stand_for_as_many_px_as_the_format_says(width: int) -> None:
    _, chroma, _ = surfaces_of(av.VideoFrame(width, 8, "yuv411p"), 0, (0, 0, 0))
    assert chroma.step_x == min(4, width) and chroma.step_y == 1


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.floats(-30, 130)] * 2), st.tuples(*[st.floats(2, 90)] * 2),
    st.sampled_from([(2, 2), (2, 1), (1, 2), (4, 4), (1, 1)]),
)  # fmt: skip
def test_every_chroma_sample_of_a_hidden_px_is_hidden(
    corner: tuple[float, ...], size: tuple[float, ...], step: tuple[int, int]
) -> None:
    x, y = corner
    found = Detections(np.array([[x, y, x + size[0], y + size[1]]], np.float32), np.ones(1, np.float32))
    for region in regions_from(found, 0.1, WIDTH, HEIGHT):
        wide, high = -(-WIDTH // step[0]), -(-HEIGHT // step[1])
        small = scale_to_plane(region, step)
        rows, columns = np.nonzero(hidden_in(region))
        hidden = hidden_in(small, wide, high)
        assert hidden[rows // step[1], columns // step[0]].all()


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "rgb24"])
def test_regions_are_those_of_the_upright_picture(pixel_format: str, rotation: int) -> None:
    frame = frame_of(noise(), pixel_format)
    height, width = np.rot90(noise(), rotation // 90).shape[:2]
    region = region_of((5, 10, 30, 40), width, height)
    TrackRedactor(Settings(style="solid")).redact(surfaces_of(frame, rotation, (0, 0, 0)), [(0, region)])  # type: ignore[arg-type]
    rgb = RgbConverter(rotation, Fraction(1), None).convert(frame)
    assert rgb[hidden_in(region, width, height)].max() <= 2
    assert rgb[~hidden_in(region, width, height, feather=True)].mean() > 100


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p10le", "gbrp", "bgr24", "rgba", "nv12"])
def test_boxes_have_their_color(pixel_format: str) -> None:
    frame, region = frame_of(np.full((HEIGHT, WIDTH, 3), 128, np.uint8), pixel_format), region_of(BOX)
    TrackRedactor(Settings(boxes=True)).redact(surfaces_of(frame, 0, (255, 0, 0)), [(0, region)])
    line = RgbConverter(0, Fraction(1), None).convert(frame)[region.y0 - 1, region.x0 + 4 : region.x1 - 4]
    assert np.abs(line.astype(int) - (255, 0, 0)).max() < 40


def test_a_frame_that_the_decoder_still_needs_is_not_painted_on() -> None:
    """Later frames are predicted from earlier ones: a face hidden in those would haunt the others."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", "mp4") as out:
        stream = out.add_stream("libx264", 25, options={"preset": "ultrafast", "tune": "zerolatency", "g": "100"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(20):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise(96, 64), "rgb24")))
        out.mux(stream.encode())

    def decoded(paint: bool) -> list[Any]:
        pictures = []
        with av.open(io.BytesIO(buffer.getvalue()), "r") as source:
            for number, frame in enumerate(source.decode(video=0)):
                if paint and number % 3 == 0:
                    region = region_of((10, 10, 60, 50), 96, 64)
                    TrackRedactor(Settings()).redact(surfaces_of(frame, 0, (0, 0, 0)), [(0, region)])
                pictures.append(frame.to_ndarray(format="rgb24"))
        return pictures

    for number, (plain, painted) in enumerate(zip(decoded(False), decoded(True), strict=True)):
        assert np.array_equal(plain, painted) == bool(number % 3), number


@pytest.mark.parametrize(
    ("aspect", "longest", "expected"),
    [(Fraction(1), None, (200, 100)), (Fraction(2), None, (400, 100)), (Fraction(1, 2), None, (200, 200)),
     (Fraction(1), 50, (50, 25)), (Fraction(2), 100, (100, 25)), (Fraction(1), 1000, (200, 100))],
)  # fmt: skip
def test_detectors_see_square_px(aspect: Fraction, longest: int | None, expected: tuple[int, int]) -> None:
    frame = frame_of(noise(200, 100), "yuv420p")
    assert RgbConverter(0, aspect, longest).convert(frame).shape == (*expected[::-1], 3)


def test_hdr_is_brought_to_what_detectors_know() -> None:
    """Diffuse white (203 cd/m2) is 58 % of PQ's scale (ITU-R BT.2408, table 1), and should look white."""
    frame = frame_of(np.full((16, 16, 3), round(0.58 * 255), np.uint8), "rgb24")
    frame.color_trc = 16
    assert RgbConverter(0, Fraction(1), None).convert(frame).min() >= 250
    frame = frame_of(np.zeros((16, 16, 3), np.uint8), "rgb24")
    frame.color_trc = 16
    assert RgbConverter(0, Fraction(1), None).convert(frame).max() == 0
