"""What may travel with a picture does, and nothing that tells who or where."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, ImageCms
from PIL import Image as Pillow

from blurguard.images.metadata import (
    KEPT_BASE,
    KEPT_EXIF,
    allowed_exif,
    allowed_profile,
    allowed_resolution,
    orientation_of,
)

B = ExifTags.Base
IFD = ExifTags.IFD
HIDDEN = "Secret-4711"
KEPT: dict[int, Any] = {
    B.DateTimeOriginal: "2024:05:06 07:08:09",
    B.OffsetTime: "+02:00",
    B.SubsecTimeOriginal: "123",
    B.ExposureTime: 0.004,
    B.FNumber: 2.8,
    B.ISOSpeedRatings: 400,
    B.ExposureBiasValue: -0.5,
    B.Flash: 16,
    B.FocalLength: 35.0,
    B.LensModel: "35mm F2",
    B.LensSpecification: (24.0, 70.0, 2.8, 4.0),
}
DROPPED_BASE: dict[int, Any] = {
    B.ImageDescription: HIDDEN,
    B.Artist: HIDDEN,
    B.Copyright: HIDDEN,
    B.HostComputer: HIDDEN,
    B.Software: HIDDEN,
    B.XPAuthor: HIDDEN.encode("utf-16-le"),
    B.XPComment: HIDDEN.encode("utf-16-le"),
    B.DocumentName: HIDDEN,
    B.CameraSerialNumber: HIDDEN,
    B.XMLPacket: HIDDEN.encode(),
    B.Orientation: 6,
}
DROPPED_EXIF: dict[int, Any] = {
    B.MakerNote: HIDDEN.encode() * 50,
    B.UserComment: b"ASCII\0\0\0" + HIDDEN.encode(),
    B.CameraOwnerName: HIDDEN,
    B.BodySerialNumber: HIDDEN,
    B.LensSerialNumber: HIDDEN,
    B.ImageUniqueID: HIDDEN,
    B.RelatedSoundFile: HIDDEN,
    B.SubjectLocation: (100, 200),
}


def photo_with_everything() -> Pillow.Image:
    """Return a JPEG, as a camera writes it, with all that may and may not travel on."""
    exif = Pillow.Exif()
    exif.update({B.Make: "Maker", B.Model: "Camera 1", B.DateTime: "2024:05:06 07:08:09"} | DROPPED_BASE)
    exif[IFD.Exif] = KEPT | DROPPED_EXIF
    exif[IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (52.0, 31.0, 12.0),
        ExifTags.GPS.GPSAreaInformation: HIDDEN.encode(),
    }
    stream = io.BytesIO()
    Pillow.new("RGB", (8, 8)).save(stream, "JPEG", exif=exif, comment=HIDDEN.encode())
    picture = Pillow.open(io.BytesIO(stream.getvalue()))
    read = picture.getexif()
    assert read.get_ifd(IFD.GPSInfo) and read.get_ifd(IFD.Exif)[B.MakerNote]
    return picture


def reread(block: bytes) -> Pillow.Exif:
    exif = Pillow.Exif()
    exif.load(block)
    return exif


def test_time_camera_lens_and_exposure_are_kept() -> None:
    exif = reread(allowed_exif(photo_with_everything().getexif()))
    assert exif[B.Make] == "Maker" and exif[B.Model] == "Camera 1" and exif[B.DateTime]
    kept = exif.get_ifd(IFD.Exif)
    assert set(kept) == set(KEPT)
    for tag, value in KEPT.items():
        assert kept[tag] == (value if isinstance(value, str) else pytest.approx(value))


def test_nothing_but_the_allowed_tags_is_left() -> None:
    block = allowed_exif(photo_with_everything().getexif())
    exif = reread(block)
    assert set(exif) - {IFD.Exif} <= KEPT_BASE
    assert set(exif.get_ifd(IFD.Exif)) <= KEPT_EXIF
    for ifd in (IFD.GPSInfo, IFD.MakerNote, IFD.Interop, IFD.IFD1):
        assert not exif.get_ifd(ifd)
    for secret in (HIDDEN.encode(), HIDDEN.encode("utf-16-le")):
        assert secret not in block


@pytest.mark.parametrize(("tags", "inner"), [(DROPPED_BASE, False), (DROPPED_EXIF, True)])
def test_a_block_of_which_nothing_is_allowed_is_empty(tags: dict[int, Any], inner: bool) -> None:
    exif = Pillow.Exif()
    if inner:
        exif[IFD.Exif] = tags
    else:
        exif.update(tags)
    assert allowed_exif(reread(exif.tobytes())) == b""
    assert allowed_exif(Pillow.Exif()) == b""


def test_names_of_people_places_and_devices_are_not_on_the_list() -> None:
    assert not {B.Orientation, B.GPSInfo, B.Artist, B.Copyright, B.JpegIFOffset} & KEPT_BASE
    assert not set(DROPPED_EXIF) & KEPT_EXIF


def test_a_thumbnail_does_not_survive() -> None:
    stream = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(stream, "JPEG")
    thumbnail = stream.getvalue()
    exif = Pillow.Exif()
    exif[B.Make] = "Maker"
    block = bytearray(exif.tobytes()[6:])
    assert block[:2] == b"MM"
    first = int.from_bytes(block[4:8], "big")
    count = int.from_bytes(block[first : first + 2], "big")
    link = first + 2 + 12 * count
    block[link : link + 4] = len(block).to_bytes(4, "big")
    at = len(block) + 2 + 2 * 12 + 4
    for_long = b"\0\x04\0\0\0\1"
    entries = b"\2\1" + for_long + at.to_bytes(4, "big") + b"\2\2" + for_long + len(thumbnail).to_bytes(4, "big")
    block += b"\0\2" + entries + bytes(4) + thumbnail
    exif = reread(b"Exif\0\0" + bytes(block))
    assert exif.get_ifd(IFD.IFD1)[B.JpegIFByteCount] == len(thumbnail)
    kept = allowed_exif(exif)
    assert b"Maker" in kept and not reread(kept).get_ifd(IFD.IFD1)
    assert thumbnail[:20] not in kept and len(kept) < 100


@pytest.mark.parametrize("value", ["x" * 129, "two\nlines", b"Maker", "\x00\x01"])
def test_allowed_tags_hold_short_plain_text_or_nothing(value: Any) -> None:
    exif = Pillow.Exif()
    exif[B.Make] = value
    exif._ifds[IFD.Exif] = {B.LensModel: value}
    assert allowed_exif(exif) == b""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"12", tuple(range(5)), ("12", 1)])
def test_allowed_tags_hold_few_plain_numbers_or_nothing(value: Any) -> None:
    exif = Pillow.Exif()
    exif._ifds[IFD.Exif] = {B.ExposureTime: value, B.LensSpecification: value}
    assert allowed_exif(exif) == b""


@pytest.mark.parametrize("tag", [B.DateTimeOriginal, B.OffsetTime, B.SubsecTime, B.ExposureTime, B.Flash])
def test_only_names_of_makers_and_models_hold_words(tag: int) -> None:
    exif = Pillow.Exif()
    exif._ifds[IFD.Exif] = {tag: "Jane Doe"}
    assert allowed_exif(exif) == b""


@pytest.mark.parametrize("tag", [B.Make, B.Model, B.DateTime])
@pytest.mark.parametrize("value", [1.5, 3, (1, 2)])
def test_numbers_in_place_of_text_are_dropped(tag: int, value: Any) -> None:
    exif = Pillow.Exif()
    exif[tag] = value
    assert allowed_exif(exif) == b""


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it skips
@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(6, 700), st.integers(0, 255)), max_size=8))
def test_damaged_blocks_are_cut_down_or_refused_but_never_break_it(changes: list[tuple[int, int]]) -> None:
    block = bytearray(photo_with_everything().info["exif"])
    for place, value in changes:
        block[place % len(block)] = value
    try:
        exif = reread(bytes(block))
    except SyntaxError:
        return  # Pillow's word for a header that is none
    kept = allowed_exif(exif)
    assert not kept or set(reread(kept).get_ifd(IFD.Exif)) <= KEPT_EXIF


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_a_color_profile_is_kept_and_cut_to_its_declared_size() -> None:
    whole = profile()
    assert allowed_profile(whole) == whole
    assert allowed_profile(whole + b"\xff\xd8\xff a hidden picture") == whole


@pytest.mark.parametrize(
    "bogus",
    [
        None,
        "text",
        b"",
        b"\xff\xd8\xff" * 100,
        profile()[:100],
        profile()[:-1],
        profile().replace(b"acsp", b"face", 1),
        bytes(4) + profile()[4:],
        (131).to_bytes(4, "big") + profile()[4:],
        (9 << 20).to_bytes(4, "big") + profile()[4:] + bytes(9 << 20),
    ],
    ids=range(10),
)
def test_what_is_no_color_profile_is_dropped(bogus: Any) -> None:
    assert allowed_profile(bogus) is None


def test_plausible_resolutions_are_kept() -> None:
    assert allowed_resolution((72, 300.5)) == (72.0, 300.5)


NO_RESOLUTIONS = [
    None,
    (),
    (72,),
    ("x", 1),
    (0, 72),
    (72, -1),
    (float("nan"), 72),
    (72, float("inf")),
    (1e9, 72),
]


@pytest.mark.parametrize("dpi", NO_RESOLUTIONS)
def test_implausible_resolutions_are_dropped(dpi: Any) -> None:
    assert allowed_resolution(dpi) is None


@pytest.mark.parametrize("junk", ["abc", 0, 9, -3, 2.5, None, (6,), b"\x06"])
def test_an_orientation_that_is_none_turns_nothing(junk: object) -> None:
    exif = Pillow.Exif()
    exif[B.Orientation] = junk
    assert orientation_of(exif) == 1


def test_an_orientation_is_read() -> None:
    exif = Pillow.Exif()
    exif[B.Orientation] = 6
    assert orientation_of(exif) == 6
