"""Self-check of the runtime, the models, the codecs and folders."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from blurguard.detection import model_zoo
from blurguard.detection.interpreter import Network, interpreter_class
from blurguard.errors import BlurguardError, ModelError, OutputError
from blurguard.files.atomic import remove_stale, scratch_in
from blurguard.files.filetypes import FileType
from blurguard.images.formats import Page, blank_image_file, open_image
from blurguard.types import Image, Layout
from blurguard.video.encoders import ENCODERS, missing_encoders


class CheckResult(NamedTuple):
    """Result of one check. ``exit_code`` is that of its failure, 0 if it passed."""

    name: str
    detail: str
    exit_code: int = 0


def run_checks(folders: list[Path]) -> Iterator[CheckResult]:
    """Run all checks and yield their results. ``folders`` must be writable."""
    yield _check("runtime", lambda: interpreter_class()[1])
    try:
        specs = list(model_zoo.load_manifest().networks.values())
    except ModelError as error:
        specs = []
        yield CheckResult("models", str(error), error.exit_code)
    for spec in specs:
        yield _check(f"network {spec.name}", _runs, spec)
    for kind in FileType:
        if kind.is_still:
            yield _check(f"codec {kind}", _round_trip, kind)
    yield _check("video", _video)
    for folder in folders:
        yield _check(f"folder {folder}", _writable, folder)


def _check(name: str, check: Callable[..., str], *arguments: object) -> CheckResult:
    try:
        return CheckResult(name, check(*arguments))
    except BlurguardError as error:
        return CheckResult(name, str(error), error.exit_code)


def _runs(spec: model_zoo.NetworkSpec) -> str:
    side = spec.size_multiple * 2
    Network(spec, model_zoo.load_weights(spec)).run(np.zeros((side, side, 3), np.uint8))
    return f"SHA-256 {spec.sha256[:12]}… as released, runs"


def _round_trip(kind: FileType) -> str:
    """Encode and decode a small picture."""
    pixels = np.full((16, 16, 3), 128, np.uint8)
    data = blank_image_file(kind).encode([Page(Image(pixels, Layout.RGB))])
    (page,) = open_image(data, kind, "test picture", 256).pages()
    return f"reads and writes, {page.image.width} x {page.image.height} px"


def _video() -> str:
    """Return the names of the encoders. One that FFmpeg lacks is a failure."""
    if missing := missing_encoders():
        raise OutputError(f"this FFmpeg cannot write {', '.join(missing)}; install PyAV's own wheel (pip install av)")
    return f"reads and writes {', '.join(ENCODERS)}"


def _writable(folder: Path) -> str:
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder")
    remove_stale(folder)
    with scratch_in(folder):
        return "writable"
