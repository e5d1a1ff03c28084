"""Makes it INT8: ``python -m calibration quantize FLOAT.tflite --set FOLDER --out INT8.tflite``.

Weights (one scale a channel) and activations become 8-bit integers, by ranges measured on the crops of the
calibration set. The layers named by ``--float`` stay float32: by default the heads, which costs 2 % of the time;
a set of small faces cannot cut off large boxes then.
The new file takes pixels as they are, uint8 (1, h, w, 3) RGB, gives float32 maps as the float one does, and runs
at any size too. The same input gives the same bytes.

A layer is a convolution and what follows it up to the next one, named by its position in the file as in
`calibration.network`: ``017``. ``--report DATA`` prints what all of it, and each layer alone, loses.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ai_edge_quantizer import quantizer, recipe
from numpy.typing import NDArray

from calibration import CalibrationError, equalize, flatbuffer, network, sensitivity, write_whole
from calibration.candidate import INPUT_SCALE, Family, family_of, read_in_units
from calibration.equalize import Scales
from calibration.evaluate import chosen_pictures
from calibration.flatbuffer import packed, unpacked
from calibration.rewrite import CONVOLUTIONS, operator_name
from calibration.sample import load_set
from calibration.score import Labeled

__all__ = [
    "Measured",
    "Prepared",
    "add_parser",
    "chosen_layers",
    "load_measured",
    "measured",
    "prepared",
    "quantized",
    "run",
]

OUTPUTS = ("boxes", "scores")
LAYER_CROPS = 16  # on which the noise of each layer is measured

Pixels = NDArray[np.uint8]
Ranges = dict[str, tuple[float, float]]


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("quantize", help="make it INT8", description=__doc__, formatter_class=raw)
    parser.add_argument("graph", type=Path, metavar="FLOAT", help="float .tflite of this project")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--set", type=Path, help="folder that `sample` wrote")
    given.add_argument("--measured", type=Path, metavar="JSON", help="what --ranges wrote, for weights trained with it")
    parser.add_argument("--out", type=Path, required=True, help="INT8 .tflite to write")
    parser.add_argument("--ranges", type=Path, help=".json for what was measured on the set: all that is needed of it")
    parser.add_argument("--float", default="heads", help="layers: heads, boxes, scores, 017, or '' (default: heads)")
    report = parser.add_argument_group("report")
    report.add_argument(
        "--report", type=Path, dest="data", metavar="DATA", help="compare on this folder with faces.jsonl"
    )
    report.add_argument("--mode", default="accurate", choices=("fast", "accurate"), help="(default: accurate)")
    report.add_argument("--held", type=int, default=100, help="as in training: only pictures kept back (default: 100)")
    report.add_argument("--limit", type=int, default=0, help="a random sample of so many pictures")
    report.add_argument("--worst", type=int, default=10, help="layers that AP is measured of (default: 10)")
    report.add_argument("--seed", type=int, default=0, help="of that sample (default: 0)")
    parser.set_defaults(run=run, kept_out=False)


def run(arguments: argparse.Namespace) -> int:
    """Write the INT8 network; with ``--report``, print the tables.

    Raises:
        CalibrationError: a file cannot be read or is no network of this project, or no such layer.
    """
    data = read_in_units(arguments.graph)
    if arguments.measured and arguments.data:
        raise CalibrationError("--report needs --set: the noise of layers is that on its crops")
    crops = load_set(arguments.set) if arguments.set else np.zeros((0, 0, 0, 3), np.uint8)
    told = load_measured(arguments.measured) if arguments.measured else measured(data, crops)
    source = prepared(data, told)
    result = quantized(source, chosen_layers(source, arguments.float))
    write_whole(arguments.out, result)
    if arguments.ranges:
        write_whole(arguments.ranges, told.as_json().encode())
    print(f"{arguments.out}: {len(result)} bytes, {len(result) / len(data):.3f} of {arguments.graph}")
    print(f"size_constants = {[list(pair) for pair in flatbuffer.size_constants(result)]}")
    if arguments.data:
        cv2.setNumThreads(1)
        truth = chosen_pictures(arguments)
        print(f"\n{len(truth)} pictures, {arguments.mode} mode\n")
        networks = {"float": data, "INT8": result}
        if arguments.float:
            networks[f"INT8 but {arguments.float}"] = networks.pop("INT8")
            networks["INT8, all of it"] = quantized(source, ())
        plain = prepared(data, measured(data, crops, alike=False))
        networks["INT8, channels as they are"] = quantized(plain, chosen_layers(plain, arguments.float))
        print(sensitivity.comparison(networks, truth, arguments.mode), "", sep="\n")
        print(_layers(data, source, crops[:: max(len(crops) // LAYER_CROPS, 1)], truth, arguments))
    return 0


def _layers(data: bytes, source: Prepared, crops: Pixels, truth: list[Labeled], arguments: argparse.Namespace) -> str:
    """Return the table of what each layer loses alone, with AP for the worst ones."""

    def alone(layer: str) -> bytes:
        return quantized(source, set(source.layers) - {layer})

    noises = sensitivity.noises_by_layer(data, list(source.layers), alone, crops)
    losses = {}
    if arguments.worst:
        whole = sensitivity.quality_of(data, truth, arguments.mode)
        for layer in list(noises)[: arguments.worst]:
            losses[layer] = whole.minus(sensitivity.quality_of(alone(layer), truth, arguments.mode))
    return sensitivity.layer_table(noises, source.layers, losses)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a calibration set tells of a network."""

    scales: Scales  # what its channels are multiplied with first
    ranges: Ranges  # then of each tensor, by its name

    def as_json(self) -> str:
        """Return it as text, a line for each layer and each tensor."""
        tables = []
        for name in ("scales", "ranges"):
            rows = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in getattr(self, name).items())
            tables.append(f' "{name}": {{\n' + ",\n".join(rows) + "\n }")
        return "{\n" + ",\n".join(tables) + "\n}\n"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A float network ready to be quantized: ``data`` has SAME padding, like channels and tensors named by layer."""

    data: bytes
    layers: dict[str, str]  # what each one is, by its name, in order
    heads: dict[str, frozenset[str]]  # the layers that serve one output only, by its name
    ranges: Ranges  # of each tensor, by its name
    family: Family


def prepared(data: bytes, told: Measured) -> Prepared:
    """Return a float .tflite network with what `measured` found for it.

    Raises:
        CalibrationError: the network is not a float one of this project, or that was found for another one.
    """
    graph, _ = network.parse(data)
    heads = {name: frozenset(step.key for step in graph.head(getattr(graph, name))) for name in OUTPUTS}
    named, layers = _named(equalize.equalized(data, told.scales))
    tensors = {"image", *_written(unpacked(named)).values()}
    if told.ranges.keys() != tensors:
        raise CalibrationError("the ranges are of another network: not the same tensors")
    return Prepared(named, layers, heads, told.ranges, family_of(data))


def measured(data: bytes, crops: Pixels, *, alike: bool = True) -> Measured:
    """Return how to make the channels of a network alike, and the lowest and highest value of each tensor then.

    On crops, uint8 (N, h, w, 3) RGB, without leaving any extreme out: other pictures have what few crops have (the
    report tells how near the maps are then). The ranges of the input are those of all pixels, so that a step is a
    step of the pixels. Without ``alike`` channels stay as they are.

    Raises:
        CalibrationError: no crops, or the network is not a float one.
    """
    if not len(crops):
        raise CalibrationError("the calibration set is empty: make it again with `sample`")
    if flatbuffer.operator_names(data).keys() & {"QUANTIZE", "DEQUANTIZE"}:
        raise CalibrationError("the network is quantized already: give the float one")
    scales = equalize.scales_for(data, _as_fed(crops, family_of(data))) if alike else {}
    return Measured(scales, _ranges(equalize.equalized(data, scales), crops))


def _ranges(data: bytes, crops: Pixels) -> Ranges:
    family = family_of(data)
    model = unpacked(_named(data)[0])
    names = _written(model)
    model.subgraphs[0].outputs = [*names]  # so that each of them outlives the run
    interpreter = flatbuffer.interpreter_at(packed(model), *crops.shape[1:3])
    ranges = dict.fromkeys(names.values(), (math.inf, -math.inf))
    for crop in crops:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], _as_fed(crop[None], family))
        interpreter.invoke()
        for tensor, name in names.items():
            values, (low, high) = interpreter.get_tensor(tensor), ranges[name]
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
    lowest, highest = _as_fed(np.array([0, 255], np.uint8), family)
    return {"image": (float(lowest), float(highest))} | ranges


def load_measured(path: Path) -> Measured:
    """Return what ``--ranges`` wrote.

    Raises:
        CalibrationError: the file cannot be read, or holds something else.
    """
    try:
        told = json.loads(path.read_text("utf-8"))
        return Measured(
            {str(layer): [float(scale) for scale in scales] for layer, scales in told["scales"].items()},
            {str(name): (float(low), float(high)) for name, (low, high) in told["ranges"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CalibrationError(f"cannot read what was measured in {path}: {error}; make it by quantize") from error


def chosen_layers(source: Prepared, chosen: str) -> set[str]:
    """Return the layers that a list like ``heads,017`` names; "" names none.

    Raises:
        CalibrationError: no such layer.
    """
    names = source.heads | {"heads": frozenset.union(*source.heads.values())}
    names |= {layer: frozenset([layer]) for layer in source.layers}
    layers: set[str] = set()
    for name in filter(None, chosen.split(",")):
        if name not in names:
            raise CalibrationError(f"no layer {name}: give heads, boxes, scores or 000 to {max(source.layers)}")
        layers |= names[name]
    return layers


def quantized(source: Prepared, kept_float: Collection[str]) -> bytes:
    """Return the .tflite file with all layers INT8 but these; the input is uint8, the outputs are float32."""
    scopes = [*(f"{layer}[.]" for layer in sorted(kept_float)), "image;", *(f"{name};" for name in OUTPUTS)]
    left_out = {"regex": f"^({'|'.join(scopes)})", "operation": "*", "algorithm_key": "no_quantize"}
    values = {
        name: {"min": np.full((1, 1, 1, 1), low, "<f4"), "max": np.full((1, 1, 1, 1), high, "<f4")}
        for name, (low, high) in source.ranges.items()
    }
    made = quantizer.Quantizer(source.data, [*recipe.static_wi8_ai8(), left_out])
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()):  # progress, memory
        result = made.quantize(values, enable_progress_bar=False, enable_progress_report=False)
    return _finished(bytes(result.quantized_model), source.family)


def _named(data: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the network as it is quantized, its tensors named ``LAYER.NUMBER``, and what each layer is."""
    model = unpacked(flatbuffer.with_same_padding(data))
    (graph,) = model.subgraphs
    for number, tensor in enumerate(graph.tensors):
        if number not in graph.inputs and number not in graph.outputs:
            tensor.name = f"constant.{number}".encode()  # the quantizer wants names that no other one has
    layers: dict[str, str] = {}
    for number, op in enumerate(graph.operators):
        kind = operator_name(model, op)
        if kind in CONVOLUTIONS:
            out, high, wide, read = (int(side) for side in graph.tensors[op.inputs[1]].shape)
            channels = f"{read} → {out}" if kind == "CONV_2D" else f"{read}"
            side = int(graph.tensors[op.outputs[0]].shape[1])
            scale = int(graph.tensors[graph.inputs[0]].shape[1]) // side
            layers[f"{len(layers):03d}"] = f"{kind} {high} × {wide}, {channels}, at 1/{scale}"
        written = int(op.outputs[0])
        if written not in graph.outputs:
            graph.tensors[written].name = f"{max(layers, default='000')}.{number}".encode()
    return packed(model), layers


def _written(model: Any) -> dict[int, str]:
    """Return the tensors that operators write, and their names."""
    (graph,) = model.subgraphs
    return {int(op.outputs[0]): graph.tensors[op.outputs[0]].name.decode() for op in graph.operators}


def _as_fed(pixels: Pixels, family: Family) -> NDArray[np.float32]:
    return (pixels.astype(np.float32) - np.float32(family.zero_point)) * np.float32(INPUT_SCALE)


def _finished(data: bytes, family: Family) -> bytes:
    """Return the network with uint8 pixels as its input, and nothing in it that is not needed to run it."""
    model = unpacked(flatbuffer.with_uint8_input(data, INPUT_SCALE, family.zero_point))
    (graph,) = model.subgraphs
    outside = {*map(int, graph.inputs), *map(int, graph.outputs)}
    for number, tensor in enumerate(graph.tensors):
        tensor.name = tensor.name if number in outside else None
    flatbuffer.drop_unused(model)
    model.description = family.int8_description
    return packed(model)
