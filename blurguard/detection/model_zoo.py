"""Which weights there are, and that they are the ones that were measured.

``models/manifest.toml`` describes every model; adding one is data, not code. The installed package carries
the folder inside itself; a checkout has it beside the package.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, fields
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
        name: what ``--model`` takes.
        file: beside the manifest.
        sha256: of the file, hex.
        size: of the file, bytes.
        layers: how many convolutions have weights of which type: int8, float32.
        stride: px of the input per output cell.
        input: name of the one input tensor, (1, h, w, 3).
        boxes: name of the output (1, h / stride, w / stride, >= 4): x y of the centre from the cell's, width, height.
        scores: name of the output (1, h / stride, w / stride, 1): logits.
        input_scale: with ``input_offset``, maps uint8 RGB to what a float input expects: x * scale + offset.
        input_offset: see ``input_scale``.
        size_multiple: h and w are multiples of this, px.
        size_constants: (byte offset in the file, divisor): where two int32, h and w divided by it, stand.
        offset_unit: of raw x and y, input px.
        size_unit: of raw width and height, input px.
        log_sizes: whether raw width and height are natural logarithms (of sizes in that unit).
        box_scale: factors on raw width and height that make a tight face box.
        box_shift: added to the centre, as shares of the tight width and height.
        fine_logit_shift: added to the logits where the picture is looked at at nearly its own size or enlarged;
            there weights that were not trained for small faces see them in noise.
        thresholds: score from which a face is hidden, per mode.
        crowd_ap: AP, percent, per mode, of the faces of ``examples/photos/crowd.jpg``: tells whether a build runs as
            the released one did.
        evidence: where the thresholds and the corrections were measured.
        source: where the weights come from.
        licence: of the weights, SPDX.
        training_data: what they were trained on.
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
    licence: str
    training_data: str

    @property
    def identity(self) -> str:
        """Name and content of the weights, as reports and the journal tell them."""
        return f"{self.name}@{self.sha256}"


def models_dir() -> Path:
    """Return the folder of the manifest: in the installed package, else in the checkout.

    Raises:
        ModelError: when there is none.
    """
    for candidate in (_PACKAGE / "models", _PACKAGE.parent / "models"):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise ModelError(f"no {MANIFEST} in {_PACKAGE} or beside it: blurguard is not installed properly; reinstall it")


def all_specs(models: Path | None = None) -> list[ModelSpec]:
    """Return every model of the manifest, the default first.

    Raises:
        ModelError: when the manifest cannot be read.
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
        ModelError: when there is none of that name.
    """
    known = all_specs(models)
    for spec in known:
        if name in ("", spec.name):
            return spec
    raise ModelError(f"no model named {name!r}; there are: {', '.join(spec.name for spec in known)}")


def load_weights(spec: ModelSpec, models: Path | None = None) -> bytes:
    """Return the bytes of a model's file after checking their hash.

    Raises:
        ModelError: missing, or not the file that the manifest tells of.
    """
    path = (models or models_dir()) / spec.file
    with os_errors(path, "cannot read the model", ModelError, "reinstall blurguard"):
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise ModelError(f"{path}: the file is not the one that was released (SHA-256 differs); reinstall blurguard")
    return data


def _parse_spec(entry: dict[str, Any]) -> ModelSpec:
    values = dict(entry)
    if unknown := set(values) - {field.name for field in fields(ModelSpec)}:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    values["size_constants"] = tuple((int(offset), int(divisor)) for offset, divisor in values["size_constants"])
    for numbers in ("thresholds", "crowd_ap"):
        values[numbers] = {Mode(mode): float(number) for mode, number in values[numbers].items()}
    for pair in ("box_scale", "box_shift"):
        x, y = values[pair]
        values[pair] = (float(x), float(y))
    return ModelSpec(**values)
