"""Repeats the last block of the network: ``python -m calibration shape IN.tflite OUT.tflite --repeat-last``.

A block is what an ADD joins to its own input: depthwise and pointwise layers beside a shortcut. Repeating the last
one, just before the heads, gives the network more to tell faces from what looks like them. A repeated block starts
as one that adds nothing, so the network computes what it did before. `prune` leaves blocks out.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np

from calibration import channels, flatbuffer, network, read_network, write_whole
from calibration.rewrite import operators_between

__all__ = ["add_parser", "repeat_last_block", "run"]


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("shape", help="repeat the last block", description=__doc__, formatter_class=raw)
    parser.add_argument("graph", type=Path, help="float .tflite")
    parser.add_argument("out", type=Path, help="float .tflite to write")
    parser.add_argument("--weights", type=Path, help=".npz to put into it first")
    parser.add_argument("--repeat-last", action="store_true", required=True, help="the last block twice")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the changed network.

    Raises:
        CalibrationError: a file cannot be read, or the weights are of another network.
    """
    data = read_network(arguments.graph)
    if arguments.weights:
        data = network.write_back(data, network.load_npz(arguments.weights))
    write_whole(arguments.out, repeat_last_block(data))
    return 0


def repeat_last_block(data: bytes) -> bytes:
    """Return the network with its last block twice, the second with a last layer of zeros."""
    after, before = [*channels.all_blocks(network.parse(data)[0]).values()][-1]
    model = flatbuffer.unpacked(data)
    (graph,) = model.subgraphs
    inside = operators_between(graph.operators, (before,), (after,))
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
    last = next(op for op in again if op.outputs[0] in again[-1].inputs)
    for tensor in last.inputs[1:]:
        buffer = model.buffers[graph.tensors[tensor].buffer]
        buffer.data = np.zeros_like(np.asarray(buffer.data))
    for op in readers:
        op.inputs = [renamed[after] if int(tensor) == after else int(tensor) for tensor in op.inputs]
    position = next(index for index, op in enumerate(graph.operators) if op is inside[-1]) + 1
    graph.operators[position:position] = again
    flatbuffer.drop_unused(model)
    return flatbuffer.packed(model)


def _copied(model: Any, tensor: int) -> int:
    """Return the number of a new tensor like this one, with its own copy of the constant if it is one."""
    (graph,) = model.subgraphs
    twin = copy.deepcopy(graph.tensors[tensor])
    if model.buffers[twin.buffer].data is not None:
        model.buffers.append(copy.deepcopy(model.buffers[twin.buffer]))
        twin.buffer = len(model.buffers) - 1
    graph.tensors.append(twin)
    return len(graph.tensors) - 1
