"""The state of a training run in few bytes, to keep in the repository: eight bytes per parameter instead of sixteen.

Weights and their average are float16 differences from the published weights. The optimizer's moments are bfloat16, the
second one as its square root. Steps, rates and the recipe are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration import CalibrationError, whole_at
from calibration.network import Weights

__all__ = ["expanded", "save"]

WEIGHTS = ("weights", "average")


def save(path: Path, stored: Mapping[str, Any], published: Weights) -> None:
    """Write the content of ``state.pt`` in few bytes; the file is whole or absent at its name."""
    small = dict(stored)
    for name in WEIGHTS:
        small[name] = {key: (value - published[key]).detach().half() for key, value in stored[name].items()}
    small["optimizer"] = _mapped(
        stored["optimizer"], lambda value: value.bfloat16(), lambda value: value.sqrt().bfloat16()
    )
    with whole_at(path) as part:
        torch.save(small, part)


def expanded(small: Mapping[str, Any], published: Weights) -> dict[str, Any]:
    """Return the content of ``state.pt`` from a file of `save`.

    Raises:
        CalibrationError: it is in another form, or of another network.
    """
    differences = small.get("weights", {})
    if differences.keys() != published.keys() or {value.dtype for value in differences.values()} != {torch.float16}:
        raise CalibrationError("not the compact state of a run with this network")
    stored = dict(small)
    for name in WEIGHTS:
        stored[name] = {key: published[key] + value.float() for key, value in small[name].items()}
    stored["optimizer"] = _mapped(small["optimizer"], lambda value: value.float(), lambda value: value.float().square())
    return stored


def _mapped(
    optimizer: Mapping[str, Any], first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> dict[str, Any]:
    """Return an optimizer's state with both moments of every parameter changed."""
    state = {
        number: dict(values) | {"exp_avg": first(values["exp_avg"]), "exp_avg_sq": second(values["exp_avg_sq"])}
        for number, values in optimizer["state"].items()
    }
    return {**optimizer, "state": state}
