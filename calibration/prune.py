"""Leaves out channels that do little: ``python -m calibration prune GRAPH.tflite DATA --out FOLDER ...``.

Channels that go through the same tensors are a group, and compete with each other: the stream of a residual stage
is one group, the narrow middle of each of its blocks another. A group is named by the first layer that writes it
(``000``), a stage by the scale of its finest map (``1/2``).

What a convolution read from a channel that goes is laid upon those that stay: the linear combination of them
that comes nearest to it on labeled pictures, faces and all else counting half each. The rest is learned again:
``python -m calibration train DATA --out RUN --graph FOLDER/0.25/graph.tflite --init FOLDER/0.25/ema.npz --steps N``.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit
from numpy.typing import NDArray

from blurguard.settings import Mode
from calibration import CalibrationError, flatbuffer, network, read_network, train, write_whole
from calibration.base import OUTPUTS
from calibration.channels import (
    Activity,
    Group,
    Linked,
    blocks,
    groups_of,
    left_out,
    linked_channels,
    parameters,
    scales_of,
    without_blocks,
)
from calibration.cost import quickest
from calibration.crops import Crop, Picture, Plan, crop_of, decode, load_pictures, split
from calibration.evaluate import chosen_pictures
from calibration.network import Graph, Weights
from calibration.score import Labeled
from calibration.sensitivity import quality_of
from calibration.tables import row, table_head

__all__ = ["RANKS", "add_parser", "measure", "ranking", "run"]

RANKS = ("attention", "l1", "both")
STREAM_SHARES = (0.25, 0.5)  # of the finest stream alone, in the table
DECODED = 8  # pictures in memory at a time
ROUNDS = 40  # runs of which the quickest counts


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
    parser.add_argument("--held", type=int, default=100, help="pictures kept back for loss and AP (default: 100)")
    parser.add_argument("--limit", type=int, default=24, help="of these, how many for the AP (default: 24)")
    parser.add_argument("--crop", type=int, default=384, help="px of the crops they are seen in (default: 384)")
    parser.add_argument("--side", type=int, default=768, help="px at which time and MACs are told (default: 768)")
    parser.add_argument("--table", action="store_true", help="measure each stage and each block alone, too")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and crops")
    parser.set_defaults(run=run, kept_out=False)


def run(arguments: argparse.Namespace) -> int:
    """Write a smaller network for each share, and print what each saves and loses.

    Raises:
        CalibrationError: a file cannot be read, or there is no such stage, group or block.
    """
    if not all(0 <= share < 1 for share in arguments.share) or arguments.multiple < 1:
        raise CalibrationError("--share must be at least 0 and less than 1, --multiple must be 1 or more")
    if arguments.held < 1:
        raise CalibrationError("--held must be 1 or more: loss and AP are those of pictures kept back")
    data = read_network(arguments.graph)
    if arguments.weights:
        data = network.write_back(data, network.load_npz(arguments.weights))
    graph, weights = network.parse(data)
    truth = chosen_pictures(arguments)
    pictures = split(load_pictures(arguments.data), arguments.held)[0]
    activity = measure(graph, weights, _crops(pictures, arguments))
    variants, others = _variants(data, activity, arguments)
    print(_head(graph, weights, arguments.side))
    print(_row(arguments, truth, "nothing", data, data), flush=True)
    for share, variant in variants.items():
        smaller = without_blocks(left_out(data, variant.removed, activity), variant.dropped)
        _write(arguments.out / f"{share:g}", smaller)
        print(_row(arguments, truth, variant.told, smaller, data), flush=True)
    for variant in others:
        smaller = without_blocks(left_out(data, variant.removed, activity), variant.dropped)
        print(_row(arguments, truth, variant.told, smaller, data), flush=True)
    return 0


def measure(graph: Graph, weights: Weights, crops: Iterable[Crop], plan: Plan | None = None) -> Activity:
    """Return what convolutions read, on crops with faces; each face counts alike, however large it is.

    Raises:
        CalibrationError: no crop has a face.
    """
    scales = scales_of(graph)
    read = {step.inputs[0] for step in graph.steps if step.kind == "CONV_2D"} - {graph.image}
    size: dict[int, Any] = dict.fromkeys(read, 0.0)
    moments: dict[int, Any] = dict.fromkeys(read, 0.0)
    for crop in crops:
        masks = _masks(crop, plan or Plan())
        values = {graph.image: torch.from_numpy(crop.pixels).permute(2, 0, 1)[None].float().div(127.5).sub(1)}
        with torch.no_grad():
            for step in graph.steps:
                values[step.output] = network.run_step(step, values, weights)
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
    first, *others = (f"at {stage}" for stage in _widths(graph, weights))
    work = f"MMAC at {side} px", f"CPU ms at {side} px", "of before", "held loss"
    heads = ["left out", f"channels {first}", *others, "parameters", *work, "AP easy / medium / hard, fast mode"]
    return table_head(heads)


def _row(arguments: argparse.Namespace, truth: list[Labeled], told: str, data: bytes, whole: bytes) -> str:
    graph, weights = network.parse(data)
    if network.box_channels(graph, weights) == network.STOCK_CHANNELS:
        weights = network.with_log_sizes(graph, weights)
    resizable = flatbuffer.resizable(data, OUTPUTS, train.DESCRIPTION)
    aps = quality_of(train.exported(resizable, weights), truth, Mode.FAST).aps
    interpreters = [flatbuffer.interpreter_at(content, arguments.side, arguments.side) for content in (whole, data)]
    before, after = quickest([interpreter.invoke for interpreter in interpreters], ROUNDS)
    work = f"{flatbuffer.macs(data, arguments.side) / 1e6:.0f}", f"{after:.1f}", f"{after / before:.0%}"
    quality = f"{_loss(graph, weights, arguments):.3f}", " / ".join(f"{ap:.1f}" for ap in aps)
    return row([told, *_widths(graph, weights).values(), f"{parameters(weights):,}", *work, *quality])


def _loss(graph: Graph, weights: Weights, arguments: argparse.Namespace) -> float:
    """Return the loss on the pictures kept back, as `train` logs it."""
    recipe = train.Recipe(steps=0, side=arguments.crop, held=arguments.held, seed=arguments.seed)
    optimizer = torch.optim.AdamW(weights.values())  # no step is taken
    state = train.State(weights, weights, optimizer, step=0, last_step=0)
    return train.Trainer(graph, recipe, state, arguments.data, arguments.out).validate()["held_loss"]
