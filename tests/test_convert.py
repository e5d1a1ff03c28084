"""Every kind of picture keeps its kind, its pixels and its palette."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from blurguard.errors import InputError
from blurguard.images.convert import apply_orientation, from_pillow, remap_palette, to_pillow, with_palette
from blurguard.types import Image, Layout, Palette

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
LAYOUTS = {
    "L": Layout.GREY,
    "LA": Layout.GREY_ALPHA,
    "RGB": Layout.RGB,
    "RGBA": Layout.RGBA,
    "CMYK": Layout.CMYK,
}
WIDTH, HEIGHT = 13, 7


def noise(*shape: int, depth: type = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(len(shape)).integers(0, np.iinfo(depth).max + 1, shape).astype(depth)


def indexed(colors: int = 256) -> Pillow.Image:
    """Return a picture with indices all over its palette, in which the last two colors are the same."""
    picture = Pillow.fromarray((noise(HEIGHT, WIDTH).astype(int) % colors).astype(np.uint8))
    palette = np.random.default_rng(2).integers(0, 256, (colors, 3)).astype(np.uint8)
    palette[-1] = palette[-2]
    picture.putpalette(palette.tobytes())
    return picture


def same(one: Pillow.Image, other: Pillow.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("mode", CHANNELS)
def test_pictures_come_back_bit_for_bit(mode: str) -> None:
    pixels = noise(HEIGHT, WIDTH, CHANNELS[mode])
    picture = Pillow.frombytes(mode, (WIDTH, HEIGHT), pixels.tobytes())
    image = from_pillow(picture)
    assert image.layout is LAYOUTS[mode] and image.palette is None
    assert np.array_equal(image.pixels, pixels)
    assert same(to_pillow(image), picture)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_deep_grey_keeps_all_16_bits(mode: str) -> None:
    pixels = noise(HEIGHT, WIDTH, depth=np.uint16)
    order = ">u2" if mode.endswith("B") else "<u2"
    picture = Pillow.frombytes(mode, (WIDTH, HEIGHT), pixels.astype(order).tobytes())
    image = from_pillow(picture)
    assert image.layout is Layout.GREY and image.pixels.dtype == np.uint16
    assert np.array_equal(image.pixels[..., 0], pixels)
    assert np.array_equal(np.array(to_pillow(image)), pixels)


def test_black_and_white_stays_one_bit() -> None:
    picture = Pillow.fromarray(noise(HEIGHT, WIDTH)).convert("1")
    image = from_pillow(picture)
    assert image.layout is Layout.GREY and set(np.unique(image.pixels)) == {0, 255}
    assert same(to_pillow(image), picture)


TRANSPARENCIES = [None, 3, bytes(range(256)), bytes([0, 128])]


@pytest.mark.parametrize("transparency", TRANSPARENCIES)
@pytest.mark.parametrize("colors", [256, 5])
def test_indices_palette_and_transparency_come_back(colors: int, transparency: int | bytes | None) -> None:
    picture = indexed(colors)
    if transparency is not None:
        picture.info["transparency"] = transparency
    image = from_pillow(picture)
    wanted = picture.convert("RGB" if transparency is None else "RGBA")
    assert image.layout is (Layout.RGB if transparency is None else Layout.RGBA)
    assert np.array_equal(image.pixels, np.array(wanted))
    back = to_pillow(image)
    assert same(back, picture)
    assert same(back.convert(wanted.mode), wanted)


@pytest.mark.parametrize("mode", ["I", "F", "LAB", "HSV"])
def test_kinds_that_we_cannot_keep_are_refused(mode: str) -> None:
    with pytest.raises(InputError, match=f"kind {mode} "):
        from_pillow(Pillow.new(mode, (4, 4)))


@pytest.mark.parametrize(
    ("mode", "layout"),
    [("YCbCr", Layout.RGB), ("RGBX", Layout.RGB), ("RGBa", Layout.RGBA), ("La", Layout.GREY_ALPHA)],
)
def test_kinds_that_are_only_stored_differently_are_read(mode: str, layout: Layout) -> None:
    source = {"RGBa": "RGBA", "La": "LA"}.get(mode, "RGB")
    image = from_pillow(Pillow.new(source, (4, 4), 200 if source == "LA" else "#0a141e").convert(mode))
    assert image.layout is layout and image.pixels.shape == (4, 4, layout.channels)


def test_deep_color_is_not_cut_to_8_bits_in_silence() -> None:
    with pytest.raises(ValueError, match="16-bit rgb"):
        to_pillow(Image(noise(HEIGHT, WIDTH, 3, depth=np.uint16), Layout.RGB))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "I;16", "1", "P"])
def test_all_orientations_agree_with_pillow(mode: str, orientation: int) -> None:
    if mode in ("P", "1"):
        picture = indexed().convert(mode) if mode == "P" else indexed().convert("L").convert("1")
    elif mode == "I;16":
        picture = Pillow.frombytes(mode, (WIDTH, HEIGHT), noise(HEIGHT, WIDTH, depth=np.uint16).tobytes())
    else:
        picture = Pillow.frombytes(mode, (WIDTH, HEIGHT), noise(HEIGHT, WIDTH, CHANNELS[mode]).tobytes())
    picture.getexif()[0x0112] = orientation
    wanted = ImageOps.exif_transpose(picture)
    image = apply_orientation(from_pillow(picture), orientation)
    assert same(to_pillow(image), wanted)
    if image.palette is not None:
        assert np.array_equal(image.palette.colors[image.palette.indices], image.pixels)


@pytest.mark.parametrize("orientation", [0, 9, 65535, -1])
def test_orientations_that_do_not_exist_change_nothing(orientation: int) -> None:
    image = Image(noise(HEIGHT, WIDTH, 3), Layout.RGB)
    assert np.array_equal(apply_orientation(image, orientation).pixels, image.pixels)


@given(arrays(np.uint8, (6, 8), elements=st.integers(0, 19)), arrays(np.bool_, (6, 8)))
def test_reindexing_keeps_what_is_untouched_and_takes_the_nearest_color_elsewhere(
    indices: NDArray[np.uint8], changed: NDArray[np.bool_]
) -> None:
    colors = noise(20, 3)
    colors[10:] = colors[:10]  # two indices of every color
    pixels = colors[indices]
    pixels[changed] = noise(int(changed.sum()), 3)
    palette = Palette(colors, indices.copy())
    again = remap_palette(Image(pixels, Layout.RGB, palette), palette)
    assert again.dtype == np.uint8 and np.array_equal(palette.indices, indices)
    assert np.array_equal(again[~changed], indices[~changed])
    apart = ((pixels[changed][:, None].astype(int) - colors[None].astype(int)) ** 2).sum(axis=2)
    chosen = ((pixels[changed].astype(int) - colors[again[changed]]) ** 2).sum(axis=1)
    assert np.array_equal(chosen, apart.min(axis=1))


def test_an_indexed_picture_that_has_changed_keeps_its_palette() -> None:
    picture = indexed(40)
    image = from_pillow(picture)
    image.pixels[2:5, 3:9] = 128
    back = to_pillow(image)
    assert back.mode == "P"
    before, after = np.array(picture), np.array(back)
    kept = np.ones((HEIGHT, WIDTH), np.bool_)
    kept[2:5, 3:9] = False
    assert np.array_equal(before[kept], after[kept])
    assert len(np.unique(after[~kept])) == 1


def test_what_is_clear_stays_clear_and_what_is_not_does_not_become_so() -> None:
    colors = np.array([[0, 0, 0, 255], [200, 200, 200, 0], [255, 255, 255, 255]], np.uint8)
    palette = Palette(colors, np.array([[0, 1, 2]], np.uint8))
    image = Image(colors[palette.indices], Layout.RGBA, palette)
    image.pixels[..., :3] = [[190, 190, 190], [0, 0, 0], [210, 210, 210]]
    assert remap_palette(image, palette).tolist() == [[2, 1, 2]]


@pytest.mark.parametrize("layout", [Layout.GREY, Layout.GREY_ALPHA, Layout.RGB, Layout.RGBA])
@pytest.mark.parametrize("values", [[10, 200], [0, 255], [7], range(0, 256, 40)])
def test_a_palette_of_its_own_colors_gives_the_same_pixels(layout: Layout, values: list[int]) -> None:
    pixels = np.random.default_rng(0).choice(np.array(values, np.uint8), (4, 9, layout.channels))
    colors = len(np.unique(pixels.reshape(-1, layout.channels), axis=0))
    image = with_palette(Image(pixels, layout))
    assert image.palette is not None and len(image.palette.colors) == colors
    assert np.array_equal(image.palette.colors[image.palette.indices], pixels)
    mode = "RGBA" if layout.has_alpha else "RGB"
    wanted = to_pillow(Image(pixels, layout)).convert(mode)
    assert same(to_pillow(image).convert(mode), wanted)


def test_more_than_256_colors_have_no_palette() -> None:
    pixels = np.zeros((1, 257, 3), np.uint8)
    pixels[0, :, 0], pixels[0, 256, 1] = np.arange(257) % 256, 1
    image = Image(pixels, Layout.RGB)
    assert with_palette(image) is image
    assert with_palette(Image(pixels[:, :256], Layout.RGB)).palette is not None
