"""Channels and blocks of a network: which of them belong together, and the network without some.

A channel that flows through additions, depthwise layers, pools, resizing and padding is one and the same: it
goes everywhere or nowhere. Channels that go through the same tensors are a group: the stream of a residual stage
is one group, the narrow middle of each of its blocks another. A group is named by the first layer that writes it
(``000``), a stage by the scale of its finest map (``1/2``), a block by its first layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from calibration import CalibrationError, flatbuffer, network
from calibration.network import Graph, Weights, ancestors
from calibration.rewrite import CONVOLUTIONS, add_constant, operator_name, operators_between, values_of

__all__ = [
    "Activity",
    "Group",
    "Linked",
    "all_blocks",
    "blocks",
    "groups_of",
    "left_out",
    "linked_channels",
    "parameters",
    "scales_of",
    "without_blocks",
]

RIDGE = 1e-4  # of the mean square: keeps combinations of channels that are nearly the same small

Linked = dict[int, NDArray[np.int64]]
"""Tensor -> (C,) numbers of its channels; channels of one number are one and the same."""


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that go through the same tensors; ``scale`` is the px of the input per cell of the finest one."""

    name: str
    scale: int
    channels: tuple[int, ...]  # numbers of `linked_channels`

    @property
    def stage(self) -> str:
        """Name of the stage that the group belongs to."""
        return f"1/{self.scale}"


@dataclass(frozen=True, slots=True)
class Activity:
    """What the tensors that convolutions read hold: index 0 in faces, 1 elsewhere.

    ``size`` tensor -> (2, C) mean absolute values; ``moments`` tensor -> (2, C + 1, C + 1) mean products of the
    channels and a last one that is 1 everywhere.
    """

    size: Mapping[int, NDArray[np.float64]]
    moments: Mapping[int, NDArray[np.float64]]


def parameters(weights: Mapping[str, torch.Tensor]) -> int:
    """Return how many numbers the weights and biases are."""
    return sum(value.numel() for value in weights.values())


def scales_of(graph: Graph) -> dict[int, int]:
    """Return how many px of the input, along a side, a cell of each tensor stands for."""
    scales = {graph.image: 1}
    for step in graph.steps:
        scales[step.output] = scales[step.inputs[0]] * step.stride
        if step.kind in ("RESIZE_BILINEAR", "DEPTH_TO_SPACE"):
            scales[step.output] //= 2
    return scales


def linked_channels(graph: Graph, weights: Mapping[str, torch.Tensor], *, through_depthwise: bool = True) -> Linked:
    """Return which channels of which tensors are one and the same, over all tensors of the graph.

    With ``through_depthwise`` False those that a depthwise layer writes are new ones.
    """
    links = _Links()
    found: Linked = {graph.image: links.new(3)}
    for step in graph.steps:
        first = found[step.inputs[0]]
        if step.kind == "CONV_2D" or (step.key and not through_depthwise):
            first = links.new(len(weights[f"{step.key}.bias"]))
        elif step.kind == "ADD":
            links.join(first, found[step.inputs[1]])
        elif step.kind == "PAD":
            first = np.concatenate([links.new(step.pads[0]), first, links.new(step.pads[1])])
        elif step.kind == "DEPTH_TO_SPACE":
            parts = first.reshape(4, -1)
            for part in parts[1:]:
                links.join(parts[0], part)
            first = parts[0]
        found[step.output] = first  # the others leave channels as they are
    return {tensor: links.roots(numbers) for tensor, numbers in found.items()}


def groups_of(graph: Graph, linked: Linked) -> list[Group]:
    """Return the groups, in the order of their first layers; what the input and the outputs need is in none."""
    scales = scales_of(graph)
    tensors: dict[int, list[int]] = defaultdict(list)
    for tensor, numbers in linked.items():
        for number in np.unique(numbers).tolist():
            tensors[number].append(tensor)
    fixed = {graph.image, graph.boxes, graph.scores}
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, through in sorted(tensors.items()):
        if not fixed.intersection(through):
            members[tuple(through)].append(number)
    writers = {step.output: step.key for step in graph.steps if step.kind == "CONV_2D"}
    return [
        Group(min(writers[t] for t in through if t in writers), int(min(scales[t] for t in through)), tuple(channels))
        for through, channels in members.items()
    ]


def left_out(data: bytes, removed: Collection[int], activity: Activity | None = None) -> bytes:
    """Return the .tflite file without these channels, numbered as by `linked_channels` of it.

    With ``activity``, what was read from them is laid upon the channels that stay.

    Raises:
        CalibrationError: a layer would have no channel left.
    """
    graph, weights = network.parse(data)
    linked = linked_channels(graph, weights)
    kept = {tensor: ~np.isin(numbers, list(removed)) for tensor, numbers in linked.items()}
    if any(not mask.any() for mask in kept.values()):
        raise CalibrationError("no channel of a layer would stay: leave out less")
    if activity:
        data = network.write_back(data, _laid_upon_others(graph, weights, kept, activity))
    return _cut(data, kept)


def all_blocks(graph: Graph) -> dict[str, tuple[int, int]]:
    """Return the blocks that add to what they read: first layer -> (sum, what they read)."""
    found = {}
    for step in graph.steps:
        for source, added in (step.inputs, step.inputs[::-1]) if step.kind == "ADD" else ():
            behind = ancestors(graph.steps, added)
            if source in behind:
                inner = behind - ancestors(graph.steps, source)
                found[min(s.key for s in graph.steps if s.output in inner and s.key)] = (step.output, source)
    return found


def blocks(graph: Graph) -> dict[str, tuple[int, int]]:
    """Return those of `all_blocks` that can be left out, because what they read can stand for the sum, RELU and all."""
    relu = {step.output: step.relu for step in graph.steps}
    return {
        first: (total, source)
        for first, (total, source) in all_blocks(graph).items()
        if relu.get(source, False) or not relu[total]
    }


def without_blocks(data: bytes, names: Collection[str]) -> bytes:
    """Return the .tflite file without the blocks of these first layers.

    Raises:
        CalibrationError: there is no such block.
    """
    known = blocks(network.parse(data)[0])
    if unknown := set(names) - known.keys():
        raise CalibrationError(
            f"no block to drop begins with {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    model = flatbuffer.unpacked(data)
    (graph,) = model.subgraphs
    instead = dict(known[name] for name in names)
    for op in graph.operators:
        op.inputs = [_followed(instead, int(tensor)) for tensor in op.inputs]
    graph.operators = operators_between(graph.operators, (), graph.outputs)
    flatbuffer.drop_unused(model)
    return flatbuffer.packed(model)


class _Links:
    """Numbers, some of which are the same."""

    def __init__(self) -> None:
        self.parents: list[int] = []

    def new(self, count: int) -> NDArray[np.int64]:
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        for a, b in zip(self.roots(one).tolist(), self.roots(other).tolist(), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self.parents[high] = low

    def roots(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self._root(number) for number in numbers.tolist()], np.int64)

    def _root(self, number: int) -> int:
        while self.parents[number] != number:
            number = self.parents[number]
        return number


def _laid_upon_others(graph: Graph, weights: Weights, kept: Mapping[int, NDArray[np.bool_]], seen: Activity) -> Weights:
    """Return weights that read from the channels that stay, by least squares, what was read from those that go."""
    changed = dict(weights)
    for step in graph.steps:
        source = step.inputs[0]
        if step.kind != "CONV_2D" or kept[source].all():
            continue
        moments = seen.moments[source].mean(axis=0)
        stay, go = np.append(kept[source], True), np.append(~kept[source], False)
        square = moments[np.ix_(stay, stay)]
        square += RIDGE * np.trace(square) / len(square) * np.eye(len(square))
        mixed = torch.from_numpy(np.linalg.solve(square, moments[np.ix_(stay, go)])).float()  # (stay, go)
        weight = weights[f"{step.key}.weight"].clone()
        gone = weight[:, go[:-1]]
        weight[:, stay[:-1]] += torch.einsum("ogkl,sg->oskl", gone, mixed[:-1])
        changed[f"{step.key}.weight"] = weight
        changed[f"{step.key}.bias"] = weights[f"{step.key}.bias"] + gone.sum(dim=(2, 3)) @ mixed[-1]
    return changed


def _cut(data: bytes, kept: Mapping[int, NDArray[np.bool_]]) -> bytes:
    """Return the file with only these channels of each tensor, (C,) of each one that `linked_channels` knows."""
    model = flatbuffer.unpacked(data)
    (graph,) = model.subgraphs
    masks = dict(kept)
    for op in graph.operators:
        source = masks[int(op.inputs[0])]
        mine = masks.setdefault(int(op.outputs[0]), source)  # a PAD that `parse` merged, a RESHAPE at the end
        output, kind = graph.tensors[op.outputs[0]], operator_name(model, op)
        output.shape = [*output.shape[:-1], int(mine.sum())]
        if kind in CONVOLUTIONS:
            values = values_of(model, op.inputs[1], np.float32).reshape(graph.tensors[op.inputs[1]].shape)
            values = (values[mine] if kind == "CONV_2D" else values)[..., source]
            bias = values_of(model, op.inputs[2], np.float32)[mine]
            constants = (op.inputs[1], values), (op.inputs[2], bias)
            op.inputs = [op.inputs[0], *(add_constant(model, like, own) for like, own in constants)]
        elif kind == "PAD":
            around = values_of(model, op.inputs[1], np.int32).reshape(4, 2).copy()
            before, after = around[3]
            around[3] = mine[:before].sum(), mine[len(mine) - after :].sum()
            op.inputs = [op.inputs[0], add_constant(model, op.inputs[1], around)]
    flatbuffer.drop_unused(model)
    return flatbuffer.packed(model)


def _followed(instead: Mapping[int, int], tensor: int) -> int:
    while tensor in instead:
        tensor = instead[tensor]
    return tensor
