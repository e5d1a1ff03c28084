"""The detector as PyTorch sees it: the operators of a float .tflite file, walked in their order.

There is no second description of the network: strides, padding, activations and weights are read from the
file, and trained weights are written back into that file. A network is an immutable `Graph` and a dictionary
of weights, so that a moving average of the weights or an older checkpoint is just another dictionary.

Weights are keyed by the position of their layer among the convolutions, in the order of execution
(``017.weight``, ``017.bias``), and shaped as PyTorch wants them: (out, in / groups, kh, kw) and (out,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray
from torch import Tensor

from calibration import CalibrationError, whole_at
from calibration.flatbuffer import packed, unpacked
from calibration.rewrite import CONVOLUTIONS, operator_name, replace_constant, set_channels, values_of

__all__ = [
    "BOX_CHANNELS",
    "STOCK_CHANNELS",
    "Graph",
    "Step",
    "Weights",
    "ancestors",
    "box_channels",
    "in_units",
    "load_npz",
    "parse",
    "run_step",
    "save_npz",
    "with_log_sizes",
    "write_back",
]

Weights = dict[str, Tensor]
Written = Callable[[int, Tensor], Tensor]

STOCK_CHANNELS = 16  # x, y, width, height and six keypoints, all in px of the input
BOX_CHANNELS = 4  # what is kept: center x, y from the cell's center in px, log of width and height in px
START_PX = 40.0  # sizes start around this one: the middle, in logarithms, of 6 to 260 px
START_SLOPE = 1 / 100  # of log size by old linear size; nearly right at 220 px, and in order everywhere

RELU = schema.ActivationFunctionType.RELU
VALID = schema.Padding.VALID
KNOWN = {*CONVOLUTIONS, "PAD", "ADD", "MAX_POOL_2D", "RESIZE_BILINEAR", "DEPTH_TO_SPACE"}


@dataclass(frozen=True, slots=True)
class Step:
    """One operator; tensors are named by their number in the file."""

    kind: str
    inputs: tuple[int, ...]  # without weights and constants
    output: int
    key: str = ""  # of the weights
    stride: int = 1
    window: int = 1  # px, of kernels and pools
    same: bool = False  # TensorFlow's SAME padding, else none
    relu: bool = False
    pads: tuple[int, ...] = ()  # channels before, after, then top, bottom, left, right


@dataclass(frozen=True, slots=True)
class Graph:
    """A network without its weights: maps of (b, 3, h, w) in [-1, 1] RGB to boxes and scores."""

    steps: tuple[Step, ...]
    image: int
    boxes: int
    scores: int

    def __call__(
        self, weights: Mapping[str, Tensor], image: Tensor, written: Written = lambda _tensor, value: value
    ) -> tuple[Tensor, Tensor]:
        """Return boxes (b, 16 or 4, h/4, w/4) and logits (b, 1, h/4, w/4); h and w are multiples of 32.

        What the steps before the heads write goes through ``written``. Under autocast the heads, where 8 bits of
        mantissa would cost px, still run in float32.
        """
        values = {self.image: image}
        trunk = self.trunk()
        for step in trunk:
            values[step.output] = written(step.output, run_step(step, values, weights))
        heads = self.steps[len(trunk) :]
        read = {self.boxes, self.scores}.union(*(step.inputs for step in heads))
        with torch.autocast(image.device.type, enabled=False):
            values = {tensor: value.float() for tensor, value in values.items() if tensor in read}
            for step in heads:
                values[step.output] = run_step(step, values, weights)
        return values[self.boxes], values[self.scores]

    def trunk(self) -> tuple[Step, ...]:
        """Return the steps up to the last one that serves both outputs."""
        both = ancestors(self.steps, self.boxes) & ancestors(self.steps, self.scores)
        return self.steps[: max(index for index, step in enumerate(self.steps) if step.output in both) + 1]

    def head(self, output: int) -> list[Step]:
        """Return the steps with weights that serve only this output, in their order."""
        shared = {step.output for step in self.trunk()}
        mine = ancestors(self.steps, output) - shared
        return [step for step in self.steps if step.output in mine and step.key]

    def parts(self, output: int) -> int:
        """Return how many cells of an output the last layer of its head computes at one place, as channels."""
        mine = ancestors(self.steps, output)
        return int(4 ** sum(step.kind == "DEPTH_TO_SPACE" and step.output in mine for step in self.steps))


def parse(data: bytes) -> tuple[Graph, Weights]:
    """Return the network and the float32 weights of a .tflite file.

    RESHAPEs that end the graph are left out, so the outputs are maps. Which one holds the scores is told by
    its single channel.

    Raises:
        CalibrationError: an operator, or a use of one, that this does not know.
    """
    model = unpacked(data)
    (graph,) = model.subgraphs
    outputs = {int(tensor): int(tensor) for tensor in graph.outputs}
    steps: list[Step] = []
    weights: Weights = {}
    for op in graph.operators:
        kind = operator_name(model, op)
        if kind == "RESHAPE" and int(op.outputs[0]) in outputs:
            outputs[int(op.outputs[0])] = int(op.inputs[0])
        elif kind in KNOWN:
            step = _step(model, op, kind, f"{len(weights) // 2:03d}" if kind in CONVOLUTIONS else "")
            if step.key:
                weights |= _weights(model, op, step)
            steps.append(step)
        else:
            raise CalibrationError(f"do not know how to train through {kind}")
    maps = sorted(outputs.values(), key=lambda tensor: int(graph.tensors[tensor].shape[-1]))
    if len(maps) != 2 or graph.tensors[maps[0]].shape[-1] != 1:
        raise CalibrationError("expected two outputs, one of them with a single channel")
    return Graph(_with_merged_pads(steps), int(graph.inputs[0]), boxes=maps[1], scores=maps[0]), weights


def with_log_sizes(graph: Graph, weights: Mapping[str, Tensor]) -> Weights:
    """Return weights whose box head has four channels instead of 16: the keypoints go, sizes are logarithms.

    Centers come out as before. Sizes start as log 40 + (old size - 40) / 100, which has the order of the old
    ones; a few hundred steps of training make it right.
    """
    changed = dict(weights)
    head = graph.head(graph.boxes)
    for number, step in enumerate(head):
        weight, bias = weights[f"{step.key}.weight"], weights[f"{step.key}.bias"]
        if len(bias) != STOCK_CHANNELS * graph.parts(graph.boxes):
            raise CalibrationError(f"layer {step.key} of the box head has {len(bias)} channels, expected 16 a cell")
        channel = torch.arange(len(bias)) % STOCK_CHANNELS  # several cells in turn before a DEPTH_TO_SPACE
        kept, sizes = channel < BOX_CHANNELS, (channel >= 2)[channel < BOX_CHANNELS]
        weight, bias = weight[kept].clone(), bias[kept].clone()
        if weight.shape[1] not in (1, weights[f"{head[0].key}.weight"].shape[1]):
            raise CalibrationError(f"layer {step.key} of the box head mixes its channels")
        if number == 0:  # scaled before a last depthwise layer, whose weights keep a size that trains well
            weight[sizes] *= START_SLOPE
            bias[sizes] *= START_SLOPE
        if number == len(head) - 1:
            bias[sizes] *= START_SLOPE if number else 1.0
            bias[sizes] += math.log(START_PX) - START_PX * START_SLOPE
        changed[f"{step.key}.weight"], changed[f"{step.key}.bias"] = weight, bias
    return changed


def in_units(graph: Graph, weights: Mapping[str, Tensor], offset_px: float, size_px: float) -> Weights:
    """Return weights whose boxes come out in units: centers / offset_px, log (sizes / size_px).

    So their four channels have like ranges, and 8 bits serve all of them.
    """
    key = graph.head(graph.boxes)[-1].key
    weight, bias = weights[f"{key}.weight"].clone(), weights[f"{key}.bias"].clone()
    channel = torch.arange(len(bias)) % BOX_CHANNELS
    weight[channel < 2] /= offset_px
    bias[channel < 2] /= offset_px
    bias[channel >= 2] -= math.log(size_px)
    return dict(weights) | {f"{key}.weight": weight, f"{key}.bias": bias}


def box_channels(graph: Graph, weights: Mapping[str, Tensor]) -> int:
    """Return how many channels the boxes have: 16 in the published network, 4 after `with_log_sizes`."""
    return len(weights[f"{graph.head(graph.boxes)[-1].key}.bias"]) // graph.parts(graph.boxes)


def save_npz(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write the weights, float32; the file is whole or absent at its name."""
    values = {key: value.detach().cpu().float().numpy() for key, value in weights.items()}
    with whole_at(path) as file:
        np.savez(file, allow_pickle=False, **values)


def load_npz(path: Path) -> Weights:
    """Return the weights that `save_npz` wrote.

    Raises:
        CalibrationError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: torch.from_numpy(stored[key]) for key in stored.files}
    except (OSError, ValueError, BadZipFile) as error:
        raise CalibrationError(f"cannot read the weights {path}: {error}") from error


def write_back(data: bytes, weights: Mapping[str, Tensor]) -> bytes:
    """Return the .tflite file with these weights in place of its own; a narrowed box head is narrowed there too.

    Raises:
        CalibrationError: the weights are not of this network.
    """
    graph, own = parse(data)
    if weights.keys() != own.keys():
        raise CalibrationError("the weights are of another network: not the same layers")
    model = unpacked(data)
    (subgraph,) = model.subgraphs
    operators = {int(op.outputs[0]): op for op in subgraph.operators}
    for step in graph.steps:
        if not step.key:
            continue
        weight = weights[f"{step.key}.weight"].detach().cpu().float()
        bias = weights[f"{step.key}.bias"].detach().cpu().float()
        if weight.shape[1:] != own[f"{step.key}.weight"].shape[1:]:
            raise CalibrationError(f"the weights are of another network: layer {step.key} is {tuple(weight.shape)}")
        order = (0, 2, 3, 1) if step.kind == "CONV_2D" else (1, 2, 3, 0)
        op = operators[step.output]
        replace_constant(model, op.inputs[1], weight.permute(order).contiguous().numpy())
        replace_constant(model, op.inputs[2], bias.contiguous().numpy())
    set_channels(model)
    return packed(model, share=False)


def ancestors(steps: tuple[Step, ...], tensor: int) -> set[int]:
    """Return the tensors that a tensor is made from, itself included."""
    found = {tensor}
    for step in reversed(steps):
        if step.output in found:
            found.update(step.inputs)
    return found


def run_step(step: Step, values: Mapping[int, Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """Return the output of one step, (b, c, h, w)."""
    x = values[step.inputs[0]]
    if step.kind == "PAD":
        before, after, top, bottom, left, right = step.pads
        return F.pad(x, (left, right, top, bottom, before, after))
    if step.kind == "RESIZE_BILINEAR":
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    if step.kind == "DEPTH_TO_SPACE":  # the channels of a cell's four parts one after another, by rows
        b, c, h, w = x.shape
        return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)
    if step.kind == "ADD":
        y = x + values[step.inputs[1]]
    elif step.kind == "MAX_POOL_2D":
        y = F.max_pool2d(x, step.window, step.stride)
    else:
        y = _convolved(x, step, weights[f"{step.key}.weight"], weights[f"{step.key}.bias"])
    return F.relu(y) if step.relu else y


def _convolved(x: Tensor, step: Step, weight: Tensor, bias: Tensor) -> Tensor:
    x, padding = _padded(x, step)
    if step.kind == "CONV_2D":
        return F.conv2d(x, weight, bias, step.stride, padding)
    if step.stride == 1 or x.device.type != "cpu":
        return F.conv2d(x, weight, bias, step.stride, padding, groups=x.shape[1])
    # oneDNN has no fast bfloat16 gradient for these few: 68 ms instead of 19 per 4 crops of 384 px (measured).
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(x.float(), weight, bias, step.stride, padding, groups=x.shape[1]).to(x.dtype)


def _padded(x: Tensor, step: Step) -> tuple[Tensor, int]:
    """Return the input of a convolution and the padding left to it: its own, where both sides get the same."""
    if not step.same:
        return x, step.pads[0] if step.pads else 0
    sides = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // step.stride) - 1) * step.stride + step.window - size, 0)
        sides += [total // 2, total - total // 2]  # TensorFlow puts the odd one after
    return (x, sides[0]) if len(set(sides)) == 1 else (F.pad(x, sides), 0)


def _with_merged_pads(steps: list[Step]) -> tuple[Step, ...]:
    """Return the steps with each even PAD of rows and columns as the padding of the convolutions that read it."""
    pads = {step.output: step for step in steps if step.kind == "PAD"}
    merged = [step if step.key == "" or step.same else _merged(step, pads.get(step.inputs[0])) for step in steps]
    read = {tensor for step in merged for tensor in step.inputs}
    return tuple(step for step in merged if step.kind != "PAD" or step.output in read)


def _merged(step: Step, pad: Step | None) -> Step:
    if pad is None or pad.pads[:2] != (0, 0) or len(set(pad.pads[2:])) != 1:
        return step
    return replace(step, inputs=pad.inputs, pads=pad.pads[2:])


def _step(model: Any, op: Any, kind: str, key: str) -> Step:
    """Return an operator as a step.

    Raises:
        CalibrationError: it uses something that `run_step` does not do.
    """
    (graph,) = model.subgraphs
    options, inputs = op.builtinOptions, tuple(int(tensor) for tensor in op.inputs)
    relu = getattr(options, "fusedActivationFunction", 0) == RELU
    stride, window, same = 1, 1, False
    pads: tuple[int, ...] = ()
    unsupported = not relu and getattr(options, "fusedActivationFunction", 0) != 0
    if kind in CONVOLUTIONS:
        window = int(graph.tensors[inputs[1]].shape[1])
        stride, same = int(options.strideH), options.padding != VALID
        unsupported |= (options.dilationHFactor, options.strideW) != (1, stride) or len(inputs) != 3
        unsupported |= getattr(options, "depthMultiplier", 1) != 1
    elif kind == "MAX_POOL_2D":
        window, stride = int(options.filterHeight), int(options.strideH)
        unsupported |= relu or window != stride  # then SAME adds nothing to sizes that are multiples of 32
    elif kind == "PAD":
        pads = _pads(values_of(model, inputs[1], np.int32))
    elif kind == "RESIZE_BILINEAR":
        unsupported |= options.alignCorners or not options.halfPixelCenters
    elif kind == "DEPTH_TO_SPACE":
        unsupported |= options.blockSize != 2
    if unsupported:
        raise CalibrationError(f"do not know how to train through this form of {kind}")
    used = inputs if kind == "ADD" else inputs[:1]
    return Step(kind, used, int(op.outputs[0]), key, stride, window, same, relu, pads)


def _pads(values: NDArray[Any]) -> tuple[int, ...]:
    """Return what PAD adds to NHWC in the order of `Step.pads`."""
    batch, rows, columns, channels = values.reshape(4, 2).tolist()
    if batch != [0, 0]:
        raise CalibrationError("a PAD of the batch")
    return (*channels, *rows, *columns)


def _weights(model: Any, op: Any, step: Step) -> Weights:
    """Return the two constants of a convolution as PyTorch shapes them."""
    (graph,) = model.subgraphs
    shape = [int(side) for side in graph.tensors[op.inputs[1]].shape]
    stored = values_of(model, op.inputs[1], np.float32).reshape(shape)
    order = (0, 3, 1, 2) if step.kind == "CONV_2D" else (3, 0, 1, 2)
    return {
        f"{step.key}.weight": torch.from_numpy(stored.transpose(order).copy()),
        f"{step.key}.bias": torch.from_numpy(values_of(model, op.inputs[2], np.float32).copy()),
    }
