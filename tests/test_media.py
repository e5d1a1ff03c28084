"""Files are what their content says, and a folder gives each of its pictures once."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from blurguard.batch.discovery import blurred_name, discover
from blurguard.batch.journal import FileRecord, FileState, open_journal
from blurguard.errors import InputError
from blurguard.files.filetypes import HEAD_BYTES, FileType, sniff_type, type_from_suffix, type_of_file
from tests.conftest import EXAMPLES

JPEG = b"\xff\xd8\xff\xe0" + bytes(40)


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    brands = major + bytes(4) + b"".join(compatible)
    return struct.pack(">I4s", 8 + len(brands), b"ftyp") + brands + struct.pack(">I4s", 900, b"meta") + bytes(400)


SIGNATURES = [
    (JPEG, FileType.JPEG),
    (b"\x89PNG\r\n\x1a\n", FileType.PNG),
    (b"GIF87a", FileType.GIF),
    (b"GIF89a", FileType.GIF),
    (b"RIFF\x10\0\0\0WEBPVP8 ", FileType.WEBP),
    (b"RIFF\x10\0\0\0AVI LIST", FileType.VIDEO),
    (b"RIFF\x10\0\0\0WAVEfmt ", FileType.UNKNOWN),
    (b"II*\0\x08\0\0\0", FileType.TIFF),
    (b"MM\0*\0\0\0\x08", FileType.TIFF),
    (b"II+\0\x08\0\0\0", FileType.TIFF),
    (b"MM\0+\0\x08\0\0", FileType.TIFF),
    (b"BM" + struct.pack("<IHHII", 70, 0, 7, 54, 40) + bytes(36), FileType.BMP),
    (b"BM: minutes of the meeting, page 2", FileType.UNKNOWN),
    (b"\0\0\0\x0cjP  \r\n\x87\n", FileType.JPEG2000),
    (b"\xff\x4f\xff\x51\0", FileType.JPEG2000),
    (ftyp(b"heic", b"mif1", b"heic"), FileType.HEIC),
    (ftyp(b"mif1", b"mif1", b"heic"), FileType.HEIC),
    (ftyp(b"mif1"), FileType.HEIC),
    (ftyp(b"hevc", b"msf1"), FileType.HEIC),
    (ftyp(b"avif", b"mif1", b"miaf"), FileType.AVIF),
    (ftyp(b"mif1", b"avif"), FileType.AVIF),
    (ftyp(b"avis", b"msf1", b"hevc"), FileType.AVIF),
    (ftyp(b"crx ", b"isom"), FileType.RAW),
    (ftyp(b"isom", b"mp41"), FileType.VIDEO),
    (ftyp(b"qt  "), FileType.VIDEO),
    (ftyp(b"3gp4"), FileType.VIDEO),
    (b"\0\0\0\x08wide\0\0\0\0mdat", FileType.VIDEO),
    (b"\0\0\x10\0moov", FileType.VIDEO),
    (b"\x1aE\xdf\xa3\x01", FileType.VIDEO),
    (b"FLV\x01\x05", FileType.VIDEO),
    (b"\0\0\x01\xba\x44", FileType.VIDEO),
    (b"\0\0\x01\xb3\x16", FileType.VIDEO),
    (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9", FileType.VIDEO),
    (b"OggS\0", FileType.VIDEO),
    ((b"\x47" + bytes(187)) * 3, FileType.VIDEO),
    (b"Great photos of the summer" + bytes(400), FileType.UNKNOWN),
    (b"#!/bin/sh\n", FileType.UNKNOWN),
    (b"", FileType.UNKNOWN),
    (b"\xff\xd8", FileType.UNKNOWN),
]


@pytest.mark.parametrize(("content", "kind"), SIGNATURES)
def test_the_first_bytes_tell_the_kind(content: bytes, kind: FileType) -> None:
    assert sniff_type(content[:HEAD_BYTES]) is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("JPEG", FileType.JPEG), ("PNG", FileType.PNG), ("WEBP", FileType.WEBP), ("TIFF", FileType.TIFF),
        ("BMP", FileType.BMP), ("GIF", FileType.GIF), ("AVIF", FileType.AVIF), ("JPEG2000", FileType.JPEG2000),
        ("DIB", FileType.UNKNOWN),
    ],
)  # fmt: skip
def test_what_pillow_writes_is_recognized(name: str, kind: FileType, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (90, 80, 70)).save(stream, name)
    path = tmp_path / "no suffix"
    path.write_bytes(stream.getvalue())
    assert type_of_file(path) is kind
    assert kind.is_still == (kind is not FileType.UNKNOWN)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", FileType.JPEG),
        ("A.JPEG", FileType.JPEG),
        ("a.b.TifF", FileType.TIFF),
        ("a.heif", FileType.HEIC),
        ("a.DNG", FileType.RAW),
        ("a.mp4", FileType.VIDEO),
        ("a.txt", FileType.UNKNOWN),
        ("jpg", FileType.UNKNOWN),
        (".jpg", FileType.UNKNOWN),
        ("a", FileType.UNKNOWN),
    ],
)
def test_the_suffix_tells_what_a_file_claims_to_be(name: str, kind: FileType) -> None:
    assert type_from_suffix(Path("folder.png", name)) is kind


def test_raw_files_that_look_like_tiff_are_raw_by_their_suffix(tmp_path: Path) -> None:
    for name, kind in (("a.NEF", FileType.RAW), ("a.tif", FileType.TIFF), ("a.jpg", FileType.TIFF)):
        (tmp_path / name).write_bytes(b"II*\0\x08\0\0\0")
        assert type_of_file(tmp_path / name) is kind
    (tmp_path / "b.nef").write_bytes(JPEG)
    assert type_of_file(tmp_path / "b.nef") is FileType.JPEG


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jpg: cannot be read: No such file"):
        type_of_file(tmp_path / "absent.jpg")
    with pytest.raises(InputError, match="cannot be"):
        type_of_file(tmp_path)


def test_the_example_photos_are_what_they_claim() -> None:
    photos = list((EXAMPLES / "photos").iterdir())
    assert discover(EXAMPLES / "photos").media == tuple(sorted(photos))
    assert all(type_of_file(photo) is type_from_suffix(photo) for photo in photos)


def make(folder: Path, *names: str, content: bytes = JPEG) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def names_found(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in discover(folder).media]


def test_media_are_found_at_any_depth_in_a_stable_order(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.png", "a/deep/er/c.JPG", "Z.jpg", "a.jpg", "é.jpg", "two\nlines.jpg"]
    for order in (names, names[::-1]):
        folder = tmp_path / str(order[0] == "b.jpg")
        make(folder, *order)
        found = names_found(folder)
        assert found == ["Z.jpg", "a/deep/er/c.JPG", "a/z.png", "a.jpg", "b.jpg", "two\nlines.jpg", "é.jpg"]


def test_names_that_are_no_text_are_found(tmp_path: Path) -> None:
    raw = b"latin \xe9\xff.jpg"
    make(tmp_path, os.fsdecode(raw))
    assert [os.fsencode(path.name) for path in discover(tmp_path).media] == [raw]


def test_content_or_suffix_makes_media(tmp_path: Path) -> None:
    make(tmp_path, "no suffix", "odd.xyz")
    make(tmp_path, "text.jpg", content=b"text")
    make(tmp_path, "empty.png", content=b"")
    make(tmp_path, "notes.txt", "README", content=b"text")
    make(tmp_path, "empty", content=b"")
    found = discover(tmp_path)
    assert sorted(path.name for path in found.media) == ["empty.png", "no suffix", "odd.xyz", "text.jpg"]
    assert found.left_alone == {"not media": 3}


def test_hidden_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", ".b.jpg", ".thumbnails/c.jpg", ".thumbnails/deep/d.jpg", "e/.f/g.jpg")
    found = discover(tmp_path)
    assert [path.name for path in found.media] == ["a.jpg"]
    assert found.left_alone == {"hidden": 4}


def test_our_own_record_is_nobodys_pictures(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", ".blurguard/scratch/x/b.jpg")
    found = discover(tmp_path)
    assert [path.name for path in found.media] == ["a.jpg"]
    assert not found.left_alone


def record(folder: Path, *names: str) -> None:
    """Tell the folder's journal that these files are results of ours."""
    with open_journal(folder) as journal:
        for name in names:
            info = (folder / name).stat()
            made = FileRecord(
                FileState.DONE, output_size=info.st_size, output_mtime_ns=info.st_mtime_ns, output_digest="x"
            )
            journal.put(Path(name), made)


def test_our_results_below_the_folder_are_left_alone_and_nothing_else_is(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "out/a.jpg", "out/deep/b.jpg", "out/original.jpg", "out/edited.jpg", "other/e.jpg")
    record(tmp_path / "out", "a.jpg", "deep/b.jpg", "edited.jpg")
    (tmp_path / "out" / "edited.jpg").write_bytes(JPEG + b"more")
    found = discover(tmp_path)
    assert names_found(tmp_path) == ["a.jpg", "other/e.jpg", "out/edited.jpg", "out/original.jpg"]
    assert found.left_alone == {"own output": 2}


def test_a_journal_that_cannot_be_read_makes_nothing_ours(tmp_path: Path) -> None:
    make(tmp_path, "out/a.jpg", "out/.blurguard/journal.sqlite")
    assert names_found(tmp_path) == ["out/a.jpg"]


def test_links_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "private.jpg")
    make(tmp_path / "in", "a.jpg")
    for name, to in (("file.jpg", "a.jpg"), ("out", "../elsewhere"), ("loop", "."), ("self.jpg", "self.jpg")):
        (tmp_path / "in" / name).symlink_to(to)
    (tmp_path / "in" / "gone.jpg").symlink_to("nowhere")
    found = discover(tmp_path / "in")
    assert [path.name for path in found.media] == ["a.jpg"]
    assert found.left_alone == {"links": 5}


def test_discover_a_linked_folder(tmp_path: Path) -> None:
    """The folder that the user names may itself be a link."""
    make(tmp_path / "in", "a.jpg", "sub/b.jpg")
    (tmp_path / "link").symlink_to("in")
    assert names_found(tmp_path / "link") == ["a.jpg", "sub/b.jpg"]


def test_special_files_are_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    found = discover(tmp_path)  # would wait for ever for a writer
    assert found.media == () and found.left_alone == {"special": 2}


def a_file(folder: Path) -> Path:
    make(folder, "a.jpg")
    return folder / "a.jpg"


@pytest.mark.parametrize(
    ("path_in", "told"), [(a_file, "not a folder"), (lambda folder: folder / "absent", "no such folder")]
)
def test_what_is_no_folder_is_an_error(path_in: Callable[[Path], Path], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        discover(path_in(tmp_path))


@pytest.mark.parametrize(
    ("name", "blurred"),
    [
        ("photos", "photos_blurred"),
        ("a.jpg", "a_blurred.jpg"),
        ("a.b.JPG", "a.b_blurred.JPG"),
        (".a", ".a_blurred"),
    ],
)
def test_results_are_named_after_their_source(name: str, blurred: str) -> None:
    assert blurred_name(Path("folder") / name) == Path("folder") / blurred
