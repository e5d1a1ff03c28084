"""A network that is not released yet, as the detector of a mode: what is measured is what would be shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from blurguard.detection import model_zoo
from blurguard.detection.model_zoo import ModelSpec
from blurguard.settings import Mode
from calibration import CalibrationError, flatbuffer, read_network

__all__ = ["OFFSET_UNIT", "SIZE_UNIT", "UNITS", "candidate", "read_in_units"]

# Of the boxes in released files, px: offsets and logarithms of sizes then both lie within about -2.5 and 2.5, and
# 8 bits serve both. Faces of 6 to 340 px (crops.Plan) have offsets of up to 55 px.
OFFSET_UNIT, SIZE_UNIT = 24.0, 45.0
UNITS = f"boxes in units of {OFFSET_UNIT:g} and {SIZE_UNIT:g} px"  # ends the description of every file that has them


def read_in_units(path: Path) -> bytes:
    """Return a .tflite file with boxes in these units; others would be read as boxes that cover half the picture.

    Raises:
        CalibrationError: it cannot be read, or is another network.
    """
    data = read_network(path)
    if not flatbuffer.description(data).endswith(UNITS):
        raise CalibrationError(f"{path} has no {UNITS}: give units.tflite of a run, or what was made from it")
    return data


def candidate(data: bytes, file: str = "", name: str = "candidate", **known: str | Mapping[Mode, float]) -> ModelSpec:
    """Return what the manifest would say of a .tflite file with boxes in these units.

    ``known`` are further fields of `ModelSpec`: thresholds (else those of the default model, since the closer looks
    and the turned passes go by them too), evidence, source, license, training_data.
    """
    told: dict[str, object] = dict.fromkeys(("evidence", "source", "license", "training_data"), "")
    told |= {"thresholds": model_zoo.get_spec().thresholds, "crowd_ap": {}, **known}
    return ModelSpec(
        name=name,
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        layers=flatbuffer.layer_types(data),
        stride=4,
        input="image",
        boxes="boxes",
        scores="scores",
        input_scale=1 / 127.5,
        input_offset=-1.0,
        size_multiple=32,
        size_constants=tuple(flatbuffer.size_constants(data)),
        offset_unit=OFFSET_UNIT,
        size_unit=SIZE_UNIT,
        log_sizes=True,
        box_scale=(1.0, 1.0),
        box_shift=(0.0, 0.0),
        fine_logit_shift=0.0,
        **told,  # type: ignore[arg-type]  # by name, and checked by the tests
    )
