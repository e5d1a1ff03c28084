"""A network that is not released yet, as an entry of the manifest: it is measured as it would be shipped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from blurguard.detection.interpreter import Network
from blurguard.detection.model_zoo import NetworkSpec, PassSpec, Plan
from blurguard.detection.multiscale import FusedDetector
from blurguard.settings import Mode
from calibration import CalibrationError, flatbuffer, read_network

__all__ = [
    "BLAZEFACE", "CENTERFACE", "OFFSET_UNIT", "SIZE_UNIT", "UNITS", "Family", "alone", "candidate", "family_of",
    "one_pass", "read_in_units",
]  # fmt: skip

# Of the boxes in released files, px: offsets and logarithms of sizes then both lie within about -2.5 and 2.5, and
# 8 bits serve both. Faces of 6 to 340 px (crops.Plan) have offsets of up to 55 px.
OFFSET_UNIT, SIZE_UNIT = 24.0, 45.0
UNITS = f"boxes in units of {OFFSET_UNIT:g} and {SIZE_UNIT:g} px"  # ends the description of every file that has them
INPUT_SCALE = 1 / 127.5  # of the pixels, for every network


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of network.

    Attributes:
        input_offset: a float network takes pixels * `INPUT_SCALE` + this.
        zero_point: an INT8 one takes (pixels - this) * `INPUT_SCALE`.
        int8_description: of its INT8 files.
        bytes_per_px: memory of an interpreter per px of its input, by the type of most layers (measured).
    """

    input_offset: float
    zero_point: int
    int8_description: str
    bytes_per_px: dict[str, int]


# It was trained with p / 127.5 - 1, but no integer is the middle of 0 to 255: INT8 gets (p - 128) / 127.5. That is half
# a step darker, which moves its logits by 0.002 and its boxes by 0.02 px (measured).
BLAZEFACE = Family(-1.0, 128, (  # stands in every released file, whose bytes the checkpoint must give again
    "BlazeFace full-range (MediaPipe, Google, Apache-2.0), changed by blurguard: retrained, quantised to INT8, "
    f"uint8 pixels in, float32 maps out, any input size that is a multiple of 32 px, {UNITS}"
), {"int8": 98, "float32": 140})  # fmt: skip
# It pads with zeros, which are black pixels to it, so black has to stay zero.
CENTERFACE = Family(0.0, 0, (
    "CenterFace (MIT), converted by blurguard, quantized to INT8, uint8 pixels in, float32 maps out, "
    f"any input size that is a multiple of 32 px, {UNITS}"
), {"int8": 71, "float32": 180})  # fmt: skip


def family_of(data: bytes) -> Family:
    """Return the family of a .tflite file, by its description."""
    return CENTERFACE if flatbuffer.description(data).startswith("CenterFace") else BLAZEFACE


def read_in_units(path: Path) -> bytes:
    """Return a .tflite file with boxes in these units; others would be read as boxes that cover half the picture.

    Raises:
        CalibrationError: it cannot be read, or is another network.
    """
    data = read_network(path)
    if not flatbuffer.description(data).endswith(UNITS):
        raise CalibrationError(f"{path} has no {UNITS}: give units.tflite of a run, or what was made from it")
    return data


def candidate(data: bytes, name: str = "candidate", file: str = "", **known: str) -> NetworkSpec:
    """Return the entry of the manifest for a .tflite file with boxes in these units.

    ``known`` are further fields of `NetworkSpec`: source, license, training_data.
    """
    family, layers = family_of(data), flatbuffer.layer_types(data)
    return NetworkSpec(
        name=name,
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        layers=layers,
        stride=4,
        input="image",
        boxes="boxes",
        scores="scores",
        input_scale=INPUT_SCALE,
        input_offset=family.input_offset,
        size_multiple=32,
        bytes_per_px=family.bytes_per_px[max(layers, key=lambda kind: layers[kind])],
        size_constants=tuple(flatbuffer.size_constants(data)),
        offset_unit=OFFSET_UNIT,
        size_unit=SIZE_UNIT,
        log_sizes=True,
        **dict.fromkeys(("source", "license", "training_data"), "") | known,  # type: ignore[arg-type]  # all are text
    )


AS_IT_IS = (0.0, 1.0, 0.0, 0.0, 0.0)  # coefficients that leave a score unchanged
THRESHOLD = 0.4  # about where the networks of this project find most faces for one or two false boxes an image


def alone(spec: NetworkSpec, data: bytes, mode: Mode) -> FusedDetector:
    """Return a detector that runs one network over the image pyramid of a mode, with the network's own scores."""
    return one_pass(spec, data, "fast" if mode is Mode.FAST else "pyramid")


def one_pass(spec: NetworkSpec, data: bytes, rule: str) -> FusedDetector:
    """Return a detector that runs one network at the scales of a rule, with the network's own scores."""
    each = PassSpec(network=spec.name, scales=rule, probability=AS_IT_IS)
    plan = Plan(passes=(each,), threshold=THRESHOLD, crowd_ap=0.0)
    return FusedDetector(f"{spec.name}@{spec.sha256}", plan, {spec.name: Network(spec, data)})
