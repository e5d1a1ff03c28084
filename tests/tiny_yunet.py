"""Writes a network with the inputs and outputs of YuNet, which finds white squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

STRIDES = (8, 16, 32)
SEEING = 8  # the stride at which it sees, px
FACE_PX = 32  # side of its boxes, around a white cell of that stride
CHANNELS = {"cls": 1, "obj": 1, "bbox": 4, "kps": 10}
FLOAT, INT64 = 1, 7  # TensorProto.DataType
INTS = 7  # AttributeProto.AttributeType


def write_tiny_yunet(file: Path) -> None:
    """Write the ONNX file. The score of a cell rises from 0 at 90 % of white to 1 at white."""
    nodes, weights = [], []
    for stride in STRIDES:
        for name, channels in CHANNELS.items():
            key = f"{name}_{stride}"
            kernel, bias = np.zeros((channels, 3, stride, stride)), np.zeros(channels)
            if name in ("cls", "obj") and stride == SEEING:
                kernel[:], bias[:] = 10 / (255 * 3 * stride**2), -9
            elif name == "bbox":
                bias[:] = 0.5, 0.5, *[math.log(FACE_PX / stride)] * 2
            weights += [_tensor(f"{key}_w", kernel), _tensor(f"{key}_b", bias)]
            sides = _ints("kernel_shape", [stride] * 2) + _ints("strides", [stride] * 2)
            nodes.append(_node("Conv", ["input", f"{key}_w", f"{key}_b"], f"{key}_map", sides))
            nodes.append(_node("Transpose", [f"{key}_map"], f"{key}_last", _ints("perm", [0, 2, 3, 1])))
            weights.append(_tensor(f"{key}_shape", np.array([1, -1, channels])))
            nodes.append(_node("Reshape", [f"{key}_last", f"{key}_shape"], key))
    outputs = [_value(f"{name}_{stride}", [1, -1, n]) for stride in STRIDES for name, n in CHANNELS.items()]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"tiny")
    graph += b"".join(_field(5, weight) for weight in weights) + _field(11, _value("input", [1, 3, 640, 640]))
    graph += b"".join(_field(12, output) for output in outputs)
    file.write_bytes(_number(1, 7) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, 11)))


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    low = bytearray()
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _node(kind: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs)
    return names + _field(2, output.encode()) + _field(3, output.encode()) + _field(4, kind.encode()) + attributes


def _ints(name: str, values: Sequence[int]) -> bytes:
    numbers = b"".join(_number(8, value) for value in values)
    return _field(5, _field(1, name.encode()) + numbers + _number(20, INTS))


def _tensor(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    whole = values.dtype.kind == "i"
    sides = b"".join(_number(1, side) for side in values.shape)
    raw = values.astype("<i8" if whole else "<f4").tobytes()
    return sides + _number(2, INT64 if whole else FLOAT) + _field(8, name.encode()) + _field(9, raw)


def _value(name: str, sides: Sequence[int]) -> bytes:
    shape = b"".join(_field(1, _number(1, side) if side > 0 else _field(2, b"n")) for side in sides)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, FLOAT) + _field(2, shape)))
