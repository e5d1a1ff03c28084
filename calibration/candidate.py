"""A network that is not released yet, as the detector of a mode: what is measured is what would be shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from blurguard.config import Mode
from blurguard.models import ModelSpec
from calibration import flatbuffer

__all__ = ["OFFSET_UNIT", "SIZE_UNIT", "candidate"]

# Of the boxes in released files, px: offsets and logarithms of sizes then both lie within about -2.5 and 2.5, and
# 8 bits serve both. Faces of 6 to 340 px (crops.Plan) have offsets of up to 55 px.
OFFSET_UNIT, SIZE_UNIT = 24.0, 45.0
UNSET = 0.5  # thresholds of a network for which none were chosen


def candidate(data: bytes, file: str = "", name: str = "candidate", **known: str | Mapping[Mode, float]) -> ModelSpec:
    """Return what the manifest would say of a .tflite file with boxes in these units.

    ``known`` are further fields of `ModelSpec`: thresholds, evidence, source, licence, training_data.
    """
    told: dict[str, object] = {"thresholds": dict.fromkeys(Mode, UNSET), "evidence": "", "source": "", "licence": ""}
    told |= {"crowd_ap": {}}
    told |= {"training_data": "", **known}
    return ModelSpec(
        name=name,
        file=file,
        sha256=hashlib.sha256(data).hexdigest(),
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
