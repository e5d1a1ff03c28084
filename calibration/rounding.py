"""The network as INT8 will compute it, to be trained so (quantization-aware training, arXiv 1712.05877).

Weights and what every layer but the heads writes are rounded as `quantize` will round them, with what was measured for
it. Gradients pass through as if nothing had been rounded, but for values that a range cuts off.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from calibration import equalize, flatbuffer, network
from calibration.candidate import INPUT_SCALE
from calibration.network import Weights
from calibration.quantize import Measured, prepared

__all__ = ["Rounded"]

LOWEST, HIGHEST = -128, 127


class Rounded:
    """A `network.Graph` for one calibration set: the same maps from the same weights, but for the rounding."""

    def __init__(self, data: bytes, told: Measured, device: torch.device) -> None:
        """Take the float .tflite and what `quantize.measured` found for it.

        Raises:
            CalibrationError: that was found for another network.
        """
        source = prepared(data, told)
        self.graph, weights = network.parse(source.data)
        by = equalize.factors(self.graph, weights, told.scales)
        self._factors = {key: (weight.to(device), bias.to(device)) for key, (weight, bias) in by.items()}
        tensors = flatbuffer.unpacked(source.data).subgraphs[0].tensors
        names = {number: tensor.name.decode() for number, tensor in enumerate(tensors)}
        self._rounded = {self.graph.image: _scale_and_zero(*told.ranges["image"])}
        for step in self.graph.trunk():
            # These keep the scale of what they read: `ai-edge-quantizer` gives both the same.
            same = step.kind in ("PAD", "MAX_POOL_2D", "RESIZE_BILINEAR")
            self._rounded[step.output] = (
                self._rounded[step.inputs[0]] if same else _scale_and_zero(*told.ranges[names[step.output]])
            )
        self._layers = [step.key for step in self.graph.trunk() if step.key]

    def __call__(self, weights: Mapping[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes and logits as `network.Graph` does, from the weights as they are before `equalize`."""
        alike: Weights = equalize.multiplied(weights, self._factors)
        for key in self._layers:
            alike[f"{key}.weight"] = _rounded_weight(alike[f"{key}.weight"])
        return self.graph(alike, image - INPUT_SCALE / 2, self._written)  # pixels less 128 instead of 127.5

    def _written(self, tensor: int, value: Tensor) -> Tensor:
        scale, zero = self._rounded[tensor]
        return torch.fake_quantize_per_tensor_affine(value, scale, zero, LOWEST, HIGHEST)


def _scale_and_zero(low: float, high: float) -> tuple[float, int]:
    """Return the step and the integer that stands for 0, which every range holds."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (HIGHEST - LOWEST), 1e-9)
    return scale, max(LOWEST, min(HIGHEST, round(LOWEST - low / scale)))


def _rounded_weight(weight: Tensor) -> Tensor:
    """Return a weight (out, ...) as integers of up to 127 times a scale for each output."""
    scales = (weight.detach().abs().flatten(1).amax(dim=1) / HIGHEST).clamp(min=1e-9)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -HIGHEST, HIGHEST)
