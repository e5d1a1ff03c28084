"""The released models: their manifest, and the check that the weights are the measured ones.

``models/manifest.toml`` describes every model, so adding one is data, not code. The installed package contains that
folder. A checkout has it beside the package.
"""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blurguard.errors import ModelError
from blurguard.files.errors import os_errors
from blurguard.settings import Mode

MANIFEST = "manifest.toml"
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One entry of the manifest.

    Attributes:
        name: value of ``--model``.
        file: beside the manifest.
        sha256: of the file, hex.
        size: of the file, bytes.
        layers: number of convolutions by the type of their weights: int8, float32.
        stride: px of the input per output cell.
        input: name of the only input tensor, (1, h, w, 3).
        boxes: name of the output (1, h / stride, w / stride, >= 4): offset x y of the
            box center from the cell center, then width and height.
        scores: name of the output (1, h / stride, w / stride, 1): logits.
        input_scale: of uint8 RGB for a float input: x * scale + offset.
        input_offset: see ``input_scale``.
        size_multiple: h and w are multiples of this, px.
        size_constants: (byte offset, divisor) of two int32 in the file that are set to h // divisor and w // divisor.
        offset_unit: input px per unit of the raw offset x y.
        size_unit: input px per unit of the raw width and height.
        log_sizes: whether raw width and height are natural logarithms (of sizes in that unit).
        box_scale: factors on raw width and height that make a tight face box.
        box_shift: added to the center, as shares of the tight width and height.
        fine_logit_shift: added to the logits when the image is detected at about full size or enlarged. Weights that
            were not trained for small faces report noise there.
        thresholds: default score threshold, per mode.
        crowd_ap: AP on ``examples/photos/crowd.jpg``, percent, per mode. Shows whether a build runs as released.
        evidence: source of the thresholds and the corrections.
        source: origin of the weights.
        license: of the weights, SPDX.
        training_data: of the weights.
    """

    name: str
    file: str
    sha256: str
    size: int
    layers: dict[str, int]
    stride: int
    input: str
    boxes: str
    scores: str
    input_scale: float
    input_offset: float
    size_multiple: int
    size_constants: tuple[tuple[int, int], ...]
    offset_unit: float = 1.0
    size_unit: float = 1.0
    log_sizes: bool = False
    box_scale: tuple[float, float]
    box_shift: tuple[float, float]
    fine_logit_shift: float
    thresholds: dict[Mode, float]
    crowd_ap: dict[Mode, float]
    evidence: str
    source: str
    license: str
    training_data: str

    @property
    def identity(self) -> str:
        """Name and SHA-256 of the weights, for reports and the journal."""
        return f"{self.name}@{self.sha256}"


def models_dir() -> Path:
    """Return the folder of the manifest, in the installed package or in the checkout.

    Raises:
        ModelError: neither has one.
    """
    for candidate in (_PACKAGE / "models", _PACKAGE.parent / "models"):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise ModelError(f"no {MANIFEST} in {_PACKAGE} or beside it: blurguard is not installed properly; reinstall it")


def all_specs(models: Path | None = None) -> list[ModelSpec]:
    """Return every model of the manifest, the default first.

    Raises:
        ModelError: the manifest is missing or invalid.
    """
    path = (models or models_dir()) / MANIFEST
    try:
        manifest = tomllib.loads(path.read_text("utf-8"))
        if unknown := set(manifest) - {"model", "original"}:
            raise ValueError(f"unknown tables {sorted(unknown)}")
        return [_parse_spec(entry) for entry in manifest["model"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a valid manifest: {error!r}; reinstall blurguard") from error


def get_spec(name: str = "", models: Path | None = None) -> ModelSpec:
    """Return the model of that name, or the default one for ``""``.

    Raises:
        ModelError: unknown name.
    """
    specs = all_specs(models)
    for spec in specs:
        if name in ("", spec.name):
            return spec
    raise ModelError(f"no model named {name!r}; there are: {', '.join(spec.name for spec in specs)}")


def load_weights(spec: ModelSpec, models: Path | None = None) -> bytes:
    """Return the bytes of a model file after checking their hash.

    Raises:
        ModelError: the file is missing, or not the one in the manifest.
    """
    path = (models or models_dir()) / spec.file
    with os_errors(path, "cannot read the model", ModelError, "reinstall blurguard"):
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise ModelError(f"{path}: the file is not the one that was released (SHA-256 differs); reinstall blurguard")
    return data


def _parse_spec(entry: dict[str, Any]) -> ModelSpec:
    values = dict(entry)
    values["size_constants"] = tuple((int(offset), int(divisor)) for offset, divisor in values["size_constants"])
    for numbers in ("thresholds", "crowd_ap"):
        values[numbers] = {Mode(mode): float(number) for mode, number in values[numbers].items()}
    for pair in ("box_scale", "box_shift"):
        x, y = values[pair]
        values[pair] = (float(x), float(y))
    return ModelSpec(**values)  # refuses unknown keys
