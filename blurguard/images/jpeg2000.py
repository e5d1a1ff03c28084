"""JPEG 2000: files of boxes (JP2) and bare codestreams (ISO/IEC 15444-1)."""

from collections.abc import Iterable
from typing import Any

from blurguard.errors import InputError
from blurguard.files.isobmff import Box, make_box, picture_boxes
from blurguard.images.codec import Page, PillowCodec
from blurguard.images.metadata import allowed_profile
from blurguard.types import Image

_CODESTREAM = b"\xff\x4f"  # the first marker of one


class Jpeg2000Codec(PillowCodec):
    """JPEG 2000. Pillow reads palettes but writes none, and neither reads nor writes color profiles."""

    pillow_name = "JPEG2000"

    def __init__(self, data: bytes, picture: Any, keep_metadata: bool) -> None:
        super().__init__(data, picture, keep_metadata)
        # The ICC profile in the header of the file (I.5.3.3).
        colors = (part for part in _header_boxes(data)[1] if part.type == b"colr" and data[part.payload] in (2, 3))
        self._icc = allowed_profile(next((data[part.payload + 3 : part.stop] for part in colors), None))

    @staticmethod
    def check_complete(data: bytes) -> None:
        """Raise ``ValueError`` if the codestream has no end marker (A.4.4): decoders accept it, only less sharp."""
        start, stop = _codestream_span(data)
        if b"\xff\xd9" not in data[max(start, stop - 64) : stop]:
            raise ValueError("truncated: no end of codestream")

    def _decode(self) -> Image:
        """Return the picture. A palette is replaced by its colors."""
        image = super()._decode()
        return Image(image.pixels, image.layout)

    def write(self, pages: Iterable[Page]) -> bytes:
        """Return a JPEG 2000 file with the color profile. A bare codestream has no place for one."""
        data = super().write(pages)
        header, parts = _header_boxes(data)
        if self._icc is None or header is None:
            return data
        others = [make_box(part.type, data[part.payload : part.stop]) for part in parts if part.type != b"colr"]
        payload = b"".join([*others, make_box(b"colr", b"\2\0\0" + self._icc)])
        return data[: header.start] + make_box(b"jp2h", payload) + data[header.stop :]

    def _page_options(self) -> dict[str, Any]:
        """Return the wavelet that the codestream's COD marker declares (A.6.1).

        Raises:
            InputError: the SIZ marker (A.5.1) declares color of more than 8 bits, which Pillow would cut.
        """
        data = self._data
        start, _ = _codestream_span(data)
        components = int.from_bytes(data[start + 40 : start + 42], "big")
        depth = (data[start + 42] & 0x7F) + 1
        if depth > 8 and (components > 1 or depth != 16):
            raise InputError(f"JPEG 2000 with {depth} bits per channel is not supported; convert it to 16-bit TIFF")
        is_reversible = data[data.find(b"\xff\x52", start) + 13] == 1
        lossy = {"irreversible": True, "quality_mode": "dB", "quality_layers": [50]}
        return ({"irreversible": False} if is_reversible else lossy) | {"no_jp2": start == 0}


def _codestream_span(data: bytes) -> tuple[int, int]:
    """Return the offsets of the first codestream in a file.

    Raises:
        ValueError: there is none.
    """
    if data.startswith(_CODESTREAM):
        return 0, len(data)
    codestreams = [box for box in picture_boxes(data) if box.type == b"jp2c"]
    if not codestreams:
        raise ValueError("truncated: no codestream")
    return codestreams[0].payload, codestreams[0].stop


def _header_boxes(data: bytes) -> tuple[Box | None, list[Box]]:
    """Return the header box of a file and the boxes in it. A bare codestream has none."""
    if data.startswith(_CODESTREAM):
        return None, []
    header = next((box for box in picture_boxes(data) if box.type == b"jp2h"), None)
    return header, list(picture_boxes(data, header.payload, header.stop)) if header else []
