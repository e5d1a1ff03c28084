"""Gives the channels of each tensor like ranges, so that the one scale they share as INT8 serves all of them.

What a channel is multiplied with where it is written, it is divided by where it is read; RELU, additions, pools,
resizing, padding and DEPTH_TO_SPACE let the factor through (cross-layer equalization, arXiv 1906.04721). The network
computes what it did but for the rounding of float32: its maps keep more than 100 dB.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration import CalibrationError, network
from calibration.channels import linked_channels
from calibration.network import Graph, Weights, run_step

__all__ = ["Factors", "Scales", "equalized", "factors", "multiplied", "scales_for"]

Scales = dict[str, list[float]]
"""Layer -> what each of the channels that it writes is multiplied with."""

Factors = dict[str, tuple[Tensor, Tensor]]
"""Layer -> what its weight, (out, in or 1, 1, 1), and its bias, (out,), are multiplied with."""

# How far ranges are made alike, 1 wholly: a channel made larger has smaller weights in the convolutions that read it,
# which must not get lost beside the others there. Depthwise layers, with a scale for each channel, lose nothing.
SHARE = 0.7
MOST = 64.0  # times: the range of a channel that hardly ever holds anything is no smaller part of the largest one's


def scales_for(data: bytes, inputs: NDArray[np.float32]) -> Scales:
    """Return what the channels of a float .tflite are to be multiplied with, by crops (N, h, w, 3) as it takes them."""
    graph, weights = network.parse(data)
    linked = linked_channels(graph, weights, through_depthwise=False)
    count = 1 + max(int(numbers.max()) for numbers in linked.values())
    ranges, read = np.full(count, 1e-6), np.zeros(count)
    for tensor, largest in _ranges(graph, weights, inputs).items():
        np.maximum.at(ranges, linked[tensor], np.maximum(largest, largest.max() / MOST))
    for step in graph.steps:
        if step.kind == "CONV_2D":
            weight = weights[f"{step.key}.weight"].abs().amax(dim=(2, 3)).numpy()
            share = (weight / np.maximum(weight.max(axis=1, keepdims=True), 1e-12)).max(axis=0)
            np.maximum.at(read, linked[step.inputs[0]], np.maximum(share, 1 / MOST))
    scales = np.where(read > 0, ranges**-SHARE * read ** (1 - SHARE), 1 / ranges)
    for tensor in (graph.image, graph.boxes, graph.scores):
        scales[linked[tensor]] = 1
    return {
        step.key: [float(f"{scale:.3g}") for scale in scales[linked[step.output]]] for step in graph.steps if step.key
    }


def equalized(data: bytes, scales: Scales) -> bytes:
    """Return the float .tflite with its channels multiplied so; without any scales as it is.

    Raises:
        CalibrationError: the scales are of another network.
    """
    graph, weights = network.parse(data)
    return network.write_back(data, multiplied(weights, factors(graph, weights, scales))) if scales else data


def factors(graph: Graph, weights: Mapping[str, Tensor], scales: Scales) -> Factors:
    """Return what the weights of a network are multiplied with by its scales; all 1 where there are none.

    Raises:
        CalibrationError: the scales are of another network.
    """
    linked = linked_channels(graph, weights, through_depthwise=False)
    layers = {step.key: linked[step.output] for step in graph.steps if step.key}
    counts = {key: len(numbers) for key, numbers in layers.items()}
    if scales and {key: len(values) for key, values in scales.items()} != counts:
        raise CalibrationError("the scales are of another network: not the same channels")
    by_channel = np.ones(1 + max(int(numbers.max()) for numbers in linked.values()))
    for key, values in scales.items():
        by_channel[layers[key]] = values
    found = {}
    for step in graph.steps:
        if step.key:
            read, written = (torch.from_numpy(by_channel[linked[t]]) for t in (step.inputs[0], step.output))
            ratio = written[:, None] / read if step.kind == "CONV_2D" else (written / read)[:, None]
            found[step.key] = ratio[:, :, None, None].float(), written.float()
    return found


def multiplied(weights: Mapping[str, Tensor], by: Factors) -> Weights:
    """Return the weights times `factors`; gradients go through."""
    both = {
        key: (weights[f"{key}.weight"] * weight, weights[f"{key}.bias"] * bias) for key, (weight, bias) in by.items()
    }
    return {f"{key}.{kind}": pair[n] for key, pair in both.items() for n, kind in enumerate(("weight", "bias"))}


def _ranges(graph: Graph, weights: Mapping[str, Tensor], inputs: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
    """Return the largest magnitude of each channel of each tensor, (C,)."""
    found: dict[int, NDArray[np.float32]] = {}
    with torch.no_grad():
        for crop in inputs:
            values = {graph.image: torch.from_numpy(crop.transpose(2, 0, 1)[None].copy())}
            for step in graph.steps:
                values[step.output] = run_step(step, values, weights)
            for tensor, value in values.items():
                largest = value.abs().amax(dim=(0, 2, 3)).numpy()
                found[tensor] = np.maximum(largest, found.get(tensor, 0))
    return found
