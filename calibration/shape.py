"""Changes which blocks the network has: ``python -m calibration shape IN.tflite OUT.tflite ...``.

A block is what an ADD joins to its own input: depthwise and pointwise layers beside a shortcut. Leaving one out
makes the network faster; repeating the last one, just before the heads, gives it more to tell faces from what
looks like them. A repeated block starts as one that adds nothing, so the network computes what it did before.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from calibration import CalibrationError, network
from calibration.flatbuffer import FILE_IDENTIFIER, drop_unused, operator_name

__all__ = ["add_parser", "repeat_last_block", "run", "without_block"]


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("shape", help="leave out or repeat blocks", description=__doc__, formatter_class=raw)
    parser.add_argument("graph", type=Path, help="float .tflite")
    parser.add_argument("out", type=Path, help="float .tflite to write")
    parser.add_argument("--weights", type=Path, help=".npz to put into it first")
    parser.add_argument(
        "--without", type=int, action="append", default=[], help="number of a block, from 0 (repeatable)"
    )
    parser.add_argument("--repeat-last", action="store_true", help="the last block twice")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the changed network."""
    data = arguments.graph.read_bytes()
    if arguments.weights:
        data = network.write_back(data, network.load_npz(arguments.weights))
    for number in sorted(arguments.without, reverse=True):
        data = without_block(data, number)
    if arguments.repeat_last:
        data = repeat_last_block(data)
    arguments.out.write_bytes(data)
    return 0


def without_block(data: bytes, number: int) -> bytes:
    """Return the network without its block of that number: what came in goes on.

    Raises:
        CalibrationError: there is no such block.
    """
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    (graph,) = model.subgraphs
    blocks = _blocks(model)
    if not 0 <= number < len(blocks):
        raise CalibrationError(f"no block {number}: the network has {len(blocks)}")
    add, inside = blocks[number]
    shortcut, gone = int(add.inputs[0]), {id(op) for op in inside}
    graph.operators = [op for op in graph.operators if id(op) not in gone]
    _redirect(graph.operators, int(add.outputs[0]), shortcut)
    return _packed(model, len(data))


def repeat_last_block(data: bytes) -> bytes:
    """Return the network with its last block twice, the second with a last layer of zeros."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    (graph,) = model.subgraphs
    add, inside = _blocks(model)[-1]
    before, after = int(add.inputs[0]), int(add.outputs[0])
    readers = [op for op in graph.operators if after in op.inputs]
    renamed = {before: after}
    again = []
    for op in inside:
        twin = copy.deepcopy(op)
        twin.inputs = [renamed.get(int(t), int(t)) for t in op.inputs]
        if len(twin.inputs) == 3:  # a layer: weights and bias of its own
            twin.inputs[1:] = [_copied(model, tensor) for tensor in twin.inputs[1:]]
        renamed[int(op.outputs[0])] = _copied(model, int(op.outputs[0]))
        twin.outputs = [renamed[int(op.outputs[0])]]
        again.append(twin)
    last = next(op for op in again if op.outputs[0] == again[-1].inputs[1])
    for tensor in last.inputs[1:]:
        buffer = model.buffers[graph.tensors[tensor].buffer]
        buffer.data = np.zeros_like(np.asarray(buffer.data))
    _redirect(readers, after, renamed[after])
    position = max(index for index, op in enumerate(graph.operators) if op is add) + 1
    graph.operators[position:position] = again
    return _packed(model, len(data))


def _blocks(model: Any) -> list[tuple[Any, list[Any]]]:
    """Return each ADD that joins layers to their own input, with the operators inside, itself the last."""
    (graph,) = model.subgraphs
    writer = {int(op.outputs[0]): op for op in graph.operators}
    found = []
    for op in graph.operators:
        if operator_name(model, op) != "ADD":
            continue
        shortcut, tensor = (int(t) for t in op.inputs)
        inside = [op]
        while tensor != shortcut and tensor in writer and operator_name(model, writer[tensor]) in _INSIDE:
            inside.append(writer[tensor])
            tensor = int(writer[tensor].inputs[0])
        if tensor == shortcut:
            found.append((op, inside[::-1]))
    return found


_INSIDE = ("CONV_2D", "DEPTHWISE_CONV_2D", "PAD")


def _copied(model: Any, tensor: int) -> int:
    """Return the number of a new tensor like this one, with its own copy of the constant if it is one."""
    (graph,) = model.subgraphs
    twin = copy.deepcopy(graph.tensors[tensor])
    if model.buffers[twin.buffer].data is not None:
        model.buffers.append(copy.deepcopy(model.buffers[twin.buffer]))
        twin.buffer = len(model.buffers) - 1
    graph.tensors.append(twin)
    return len(graph.tensors) - 1


def _redirect(operators: list[Any], old: int, new: int) -> None:
    for op in operators:
        op.inputs = [new if int(tensor) == old else int(tensor) for tensor in op.inputs]


def _packed(model: Any, size: int) -> bytes:
    drop_unused(model)
    builder = flatbuffers.Builder(size)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())
