"""Leaves out channels that do little: ``python -m calibration prune GRAPH.tflite DATA --out FOLDER ...``.

A channel that flows through additions, depthwise layers, pools, resizing and padding is one and the same: it
goes everywhere or nowhere. Channels that go through the same tensors are a group, and compete with each other:
the stream of a residual stage is one group, the narrow middle of each of its blocks another. A group is named
by the first layer that writes it (``000``), a stage by the scale of its finest map (``1/2``).

What a convolution read from a channel that goes is laid upon those that stay: the linear combination of them
that comes nearest to it on labelled pictures, faces and all else counting half each. The rest is learned again:
``python -m calibration train DATA --out RUN --graph FOLDER/0.25/graph.tflite --init FOLDER/0.25/ema.npz --steps N``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from calibration import CalibrationError, flatbuffer, network, train, write_whole
from calibration.crops import Crop, Picture, Plan, crop_of, decode, load_pictures, split
from calibration.network import Graph, Weights

__all__ = [
    "RANKS",
    "Activity",
    "Group",
    "add_parser",
    "blocks",
    "groups_of",
    "left_out",
    "linked_channels",
    "macs",
    "measure",
    "parameters",
    "ranking",
    "run",
    "without_blocks",
]

RANKS = ("attention", "l1", "both")
RIDGE = 1e-4  # of the mean square: keeps combinations of channels that are nearly the same small
STREAM_SHARES = (0.25, 0.5)  # of the finest stream alone, in the table
DECODED = 8  # pictures in memory at a time
ROUNDS = 40  # runs of which the quickest counts

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


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the table."""

    told: str
    removed: frozenset[int] = frozenset()
    dropped: tuple[str, ...] = ()


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser(
        "prune", help="leave out channels that do little", description=__doc__, formatter_class=raw
    )
    parser.add_argument("graph", type=Path, help="float .tflite")
    parser.add_argument("data", type=Path, help="folder with faces.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="gets SHARE/graph.tflite and SHARE/ema.npz")
    parser.add_argument("--weights", type=Path, help=".npz of weights instead of the graph's own")
    parser.add_argument("--share", type=float, nargs="+", default=[0.1, 0.2, 0.3], help="of each group; 0 for none")
    parser.add_argument("--rank", choices=RANKS, default="both", help="what tells the channels that do little")
    parser.add_argument("--stage", nargs="+", default=[], help="only these stages or groups, as 1/2 or 000")
    parser.add_argument("--drop", nargs="+", default=[], help="blocks to leave out wholly, by their first layer")
    parser.add_argument("--multiple", type=int, default=4, help="what stays of a group is a multiple (default: 4)")
    parser.add_argument("--pictures", type=int, default=64, help="that activations are taken from (default: 64)")
    parser.add_argument("--held", type=int, default=100, help="pictures kept back for the loss (default: 100)")
    parser.add_argument("--crop", type=int, default=384, help="px of the crops they are seen in (default: 384)")
    parser.add_argument("--side", type=int, default=768, help="px at which time and MACs are told (default: 768)")
    parser.add_argument("--table", action="store_true", help="measure each stage and each block alone, too")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and crops")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write a smaller network for each share, and print what each saves and loses.

    Raises:
        CalibrationError: a file cannot be read, or there is no such stage, group or block.
    """
    if not all(0 <= share < 1 for share in arguments.share) or arguments.multiple < 1:
        raise CalibrationError("--share must be at least 0 and less than 1, --multiple must be 1 or more")
    data = _read(arguments.graph)
    if arguments.weights:
        data = network.write_back(data, network.load_npz(arguments.weights))
    graph, weights = network.parse(data)
    pictures = split(load_pictures(arguments.data), arguments.held)[0]
    activity = measure(graph, weights, _crops(pictures, arguments))
    variants, others = _variants(data, activity, arguments)
    print(_head(graph, weights, arguments.side))
    print(_row(arguments, "nothing", data, data), flush=True)
    for share, variant in variants.items():
        smaller = without_blocks(left_out(data, variant.removed, activity), variant.dropped)
        _write(arguments.out / f"{share:g}", smaller)
        print(_row(arguments, variant.told, smaller, data), flush=True)
    for variant in others:
        smaller = without_blocks(left_out(data, variant.removed, activity), variant.dropped)
        print(_row(arguments, variant.told, smaller, data), flush=True)
    return 0


def macs(graph: Graph, weights: Mapping[str, torch.Tensor], side: int) -> int:
    """Return the multiplications of all convolutions for an input of side x side px, a multiple of 32."""
    scales = _scales(graph)
    return sum(
        round(side / scales[step.output]) ** 2 * weights[f"{step.key}.weight"].numel()
        for step in graph.steps
        if step.key
    )


def parameters(weights: Mapping[str, torch.Tensor]) -> int:
    """Return how many numbers the weights and biases are."""
    return sum(value.numel() for value in weights.values())


def linked_channels(graph: Graph, weights: Mapping[str, torch.Tensor]) -> Linked:
    """Return which channels of which tensors are one and the same, over all tensors of the graph."""
    links = _Links()
    found: Linked = {graph.image: links.new(3)}
    for step in graph.steps:
        first = found[step.inputs[0]]
        if step.kind == "CONV_2D":
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
    scales = _scales(graph)
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


def measure(graph: Graph, weights: Weights, crops: Iterable[Crop], plan: Plan | None = None) -> Activity:
    """Return what convolutions read, on crops with faces; each face counts alike, however large it is.

    Raises:
        CalibrationError: no crop has a face.
    """
    scales = _scales(graph)
    read = {step.inputs[0] for step in graph.steps if step.kind == "CONV_2D"} - {graph.image}
    size: dict[int, Any] = dict.fromkeys(read, 0.0)
    moments: dict[int, Any] = dict.fromkeys(read, 0.0)
    for crop in crops:
        masks = _masks(crop, plan or Plan())
        values = {graph.image: torch.from_numpy(crop.pixels).permute(2, 0, 1)[None].float().div(127.5).sub(1)}
        with torch.no_grad():
            for step in graph.steps:
                values[step.output] = network._run(step, values, weights)
            for tensor in read:
                cells = torch.cat([values[tensor][0].flatten(1), torch.ones(1, values[tensor][0, 0].numel())])
                at = F.avg_pool2d(masks, int(scales[tensor])).flatten(1)  # (2, cells)
                size[tensor] += (at @ cells[:-1].abs().T).double().numpy()
                moments[tensor] += ((at[:, None] * cells) @ cells.T).double().numpy()
    if not read or not all(moments[tensor][0, -1, -1] for tensor in read):
        raise CalibrationError("no face in the pictures that activations are taken from: give --pictures more")
    total = {tensor: values[:, -1, -1, None] for tensor, values in moments.items()}
    return Activity(
        {tensor: size[tensor] / total[tensor] for tensor in read},
        {tensor: moments[tensor] / total[tensor][..., None] for tensor in read},
    )


def ranking(graph: Graph, weights: Weights, linked: Linked, activity: Activity, rank: str) -> NDArray[np.float64]:
    """Return by number how much each channel does, 1 on average over each tensor that it is in.

    ``l1``: absolute weights of the layers that write and read it. ``attention``: its mean absolute activation in
    faces, plus by how much that differs from elsewhere. ``both``: their product (as in arXiv 2306.11695).
    """
    count = 1 + max(int(numbers.max()) for numbers in linked.values())
    found = np.ones(count)
    if rank != "attention":
        found *= _averaged(_norms(graph, weights, linked), count)
    if rank != "l1":
        seen = ((linked[t], faces + abs(faces - elsewhere)) for t, (faces, elsewhere) in activity.size.items())
        found *= _averaged(seen, count)
    return found


def left_out(data: bytes, removed: Collection[int], activity: Activity | None = None) -> bytes:
    """Return the .tflite file without these channels, numbered as by `linked_channels` of it.

    With ``activity``, what was read from them is laid upon the channels that stay.
    """
    graph, weights = network.parse(data)
    linked = linked_channels(graph, weights)
    kept = {tensor: ~np.isin(numbers, list(removed)) for tensor, numbers in linked.items()}
    if any(not mask.any() for mask in kept.values()):
        raise CalibrationError("no channel of a layer would stay: leave out less")
    if activity:
        data = network.write_back(data, _laid_upon_others(graph, weights, kept, activity))
    return _cut(data, kept)


def blocks(graph: Graph) -> dict[str, tuple[int, int]]:
    """Return the blocks that add to what they read and can be left out: first layer -> (sum, what stands for it)."""
    relu = {step.output: step.relu for step in graph.steps}
    found = {}
    for step in graph.steps:
        for source, added in (step.inputs, step.inputs[::-1]) if step.kind == "ADD" else ():
            inner = network._ancestors(graph.steps, added) - network._ancestors(graph.steps, source)
            if source in network._ancestors(graph.steps, added) and (relu.get(source, False) or not step.relu):
                found[min(s.key for s in graph.steps if s.output in inner and s.key)] = (step.output, source)
    return found


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
    needed = {int(tensor) for tensor in graph.outputs}
    operators: list[Any] = []
    for op in reversed(graph.operators):
        if int(op.outputs[0]) in needed:
            needed.update(int(tensor) for tensor in op.inputs)
            operators.insert(0, op)
    graph.operators = operators
    return _packed(model)


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


def _variants(
    data: bytes, activity: Activity, arguments: argparse.Namespace
) -> tuple[dict[float, Variant], list[Variant]]:
    """Return what is asked for, by share, and what else the table tells of."""
    graph, weights = network.parse(data)
    linked = linked_channels(graph, weights)
    groups, ranks = groups_of(graph, linked), ranking(graph, weights, linked, activity, arguments.rank)

    def variant(share: float, names: Sequence[str], dropped: Sequence[str] = ()) -> Variant:
        mine = [group for group in groups if not names or {group.name, group.stage} & {*names}]
        told = [f"{share:.0%} of {', '.join(names) or 'all'}"] * (share > 0) + [f"block {name}" for name in dropped]
        return Variant(", ".join(told) or "nothing", _least(mine, ranks, share, arguments.multiple), tuple(dropped))

    stages = list(dict.fromkeys(group.stage for group in groups))
    if unknown := {*arguments.stage} - {*stages, *(group.name for group in groups)}:
        known = ", ".join([*stages, *(group.name for group in groups)])
        raise CalibrationError(f"no stage or group {', '.join(sorted(unknown))}; there are {known}")
    asked = {share: variant(share, arguments.stage, arguments.drop) for share in arguments.share}
    if not arguments.table:
        return asked, []
    stream = max(groups, key=lambda group: (-group.scale, len(group.channels)))
    others = [variant(share, [stage]) for stage in stages for share in arguments.share]
    others += [variant(share, [stream.name]) for share in STREAM_SHARES]
    return asked, [*others, *(variant(0, [], [name]) for name in blocks(graph))]


def _least(groups: list[Group], ranks: NDArray[np.float64], share: float, multiple: int) -> frozenset[int]:
    """Return the share of each group that does least; what stays is the nearest multiple, but not nothing."""
    removed: list[int] = []
    for group in groups:
        count = len(group.channels)
        stay = min(count, multiple * max(1, round(count * (1 - share) / multiple)))
        removed += sorted(group.channels, key=lambda number: (ranks[number], number))[: count - stay]
    return frozenset(removed)


def _scales(graph: Graph) -> dict[int, int]:
    """Return how many px of the input, along a side, a cell of each tensor stands for."""
    scales = {graph.image: 1}
    for step in graph.steps:
        scales[step.output] = scales[step.inputs[0]] * step.stride
        if step.kind in ("RESIZE_BILINEAR", "DEPTH_TO_SPACE"):
            scales[step.output] //= 2
    return scales


def _crops(pictures: Sequence[Picture], arguments: argparse.Namespace) -> Iterator[Crop]:
    """Yield a random crop of each of so many pictures."""
    random, plan = np.random.default_rng(arguments.seed), Plan(side=arguments.crop)
    chosen = random.permutation(len(pictures))[: arguments.pictures]
    for first in range(0, len(chosen), DECODED):
        decoded = [decode(pictures[index]) for index in chosen[first : first + DECODED]]
        for index in range(len(decoded)):
            yield crop_of(decoded, index, plan, random)


def _masks(crop: Crop, plan: Plan) -> torch.Tensor:
    """Return (2, h, w): what px count in faces, 1 in sum for each, and elsewhere; in ignored faces none does."""
    inside, outside = np.zeros((2, *crop.pixels.shape[:2]), np.float32)
    outside += 1
    longer = (crop.faces[:, 2:] - crop.faces[:, :2]).max(axis=1, initial=0)
    for (x0, y0, x1, y1), ignored in zip(crop.faces, crop.ignored | (longer < plan.shortest), strict=True):
        face = slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1)))
        outside[face] = 0
        if not ignored:
            inside[face] = np.maximum(inside[face], 1 / max(inside[face].size, 1))
    return torch.from_numpy(np.stack([inside, outside]))


def _norms(graph: Graph, weights: Weights, linked: Linked) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    for step in graph.steps:
        if step.key:
            size = weights[f"{step.key}.weight"].abs().double()
            yield linked[step.output], size.sum(dim=(1, 2, 3)).numpy()
            if step.kind == "CONV_2D":
                yield linked[step.inputs[0]], size.sum(dim=(0, 2, 3)).numpy()


def _averaged(seen: Iterable[tuple[NDArray[np.int64], NDArray[np.float64]]], count: int) -> NDArray[np.float64]:
    """Return by number the mean of values (C,) of channels (C,), each taken in units of its tensor's mean."""
    total, times = np.zeros(count), np.zeros(count)
    for numbers, values in seen:
        np.add.at(total, numbers, values / max(values.mean(), 1e-12))
        np.add.at(times, numbers, 1)
    return total / np.maximum(times, 1)


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
        output, kind = graph.tensors[op.outputs[0]], flatbuffer.operator_name(model, op)
        output.shape = [*output.shape[:-1], int(mine.sum())]
        if kind in network.WEIGHTED:
            values = network._values(model, op.inputs[1], np.float32).reshape(graph.tensors[op.inputs[1]].shape)
            values = (values[mine] if kind == "CONV_2D" else values)[..., source]
            bias = network._values(model, op.inputs[2], np.float32)[mine]
            op.inputs = [op.inputs[0], _own(model, op.inputs[1], values), _own(model, op.inputs[2], bias)]
        elif kind == "PAD":
            around = network._values(model, op.inputs[1], np.int32).reshape(4, 2).copy()
            before, after = around[3]
            around[3] = mine[:before].sum(), mine[len(mine) - after :].sum()
            op.inputs = [op.inputs[0], _own(model, op.inputs[1], around)]
    return _packed(model)


def _own(model: Any, tensor: int, values: NDArray[Any]) -> int:
    """Return a new constant tensor, of the name and type of another."""
    tensors = model.subgraphs[0].tensors
    entry = schema.TensorT()
    entry.name, entry.shape = tensors[tensor].name, list(values.shape)
    flatbuffer._constant(model, entry, values, tensors[tensor].type)
    tensors.append(entry)
    return len(tensors) - 1


def _packed(model: Any) -> bytes:
    """Return the file without what nothing refers to any more; its signatures name the same tensors as before."""
    tensors = model.subgraphs[0].tensors
    signed = [(e, tensors[e.tensorIndex]) for s in model.signatureDefs or () for e in (*s.inputs, *s.outputs)]
    flatbuffer.drop_unused(model)
    place = {id(tensor): index for index, tensor in enumerate(model.subgraphs[0].tensors)}
    for entry, tensor in signed:
        entry.tensorIndex = place[id(tensor)]
    return flatbuffer.packed(model)


def _followed(instead: Mapping[int, int], tensor: int) -> int:
    while tensor in instead:
        tensor = instead[tensor]
    return tensor


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"cannot read the network {path}: {error}") from error


def _write(folder: Path, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "graph.tflite", data)
    network.save_npz(folder / "ema.npz", network.parse(data)[1])


def _widths(graph: Graph, weights: Weights) -> dict[str, int]:
    """Return how many channels the groups of each stage have together."""
    widths: dict[str, int] = defaultdict(int)
    for group in groups_of(graph, linked_channels(graph, weights)):
        widths[group.stage] += len(group.channels)
    return dict(sorted(widths.items(), key=lambda pair: int(pair[0][2:])))


def _head(graph: Graph, weights: Weights, side: int) -> str:
    stages = " | ".join(f"at {stage}" for stage in _widths(graph, weights))
    work = f"MMAC at {side} px | CPU ms at {side} px | of before"
    head = f"| left out | channels {stages} | parameters | {work} | held loss |"
    return f"{head}\n" + "|---" * head.strip("|").count("|") + "|---|"


def _row(arguments: argparse.Namespace, told: str, data: bytes, whole: bytes) -> str:
    graph, weights = network.parse(data)
    before, after = _quickest([whole, data], arguments.side)
    widths = " | ".join(map(str, _widths(graph, weights).values()))
    return (
        f"| {told} | {widths} | {parameters(weights):,} | {macs(graph, weights, arguments.side) / 1e6:.0f} | "
        f"{after:.1f} | {after / before:.0%} | {_loss(graph, weights, arguments):.3f} |"
    )


def _loss(graph: Graph, weights: Weights, arguments: argparse.Namespace) -> float:
    """Return the loss on the pictures kept back, as `train` logs it."""
    recipe = train.Recipe(steps=0, side=arguments.crop, held=arguments.held, seed=arguments.seed)
    state = train._state(graph, weights, recipe, {}, torch.device("cpu"))
    return train.Trainer(graph, recipe, state, arguments.data, arguments.out).validate()["held_loss"]


def _quickest(files: Sequence[bytes], side: int) -> list[float]:
    """Return the least CPU ms of each network for side x side px, run in turn, LiteRT, one thread."""
    interpreters = []
    for data in files:
        sized = flatbuffer.at_size(data, flatbuffer.size_constants(data), side, side)
        interpreter = Interpreter(model_content=sized, num_threads=1)
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [1, side, side, 3])
        interpreter.allocate_tensors()
        interpreters.append(interpreter)
    least = [float("inf")] * len(files)
    for _ in range(ROUNDS):
        for index, interpreter in enumerate(interpreters):
            began = process_time()
            interpreter.invoke()
            least[index] = min(least[index], 1000 * (process_time() - began))
    return least
