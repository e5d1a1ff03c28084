"""Rewrites a .tflite network so that it runs at any input size, and finds what to patch for that.

A fully convolutional network derives every shape from its input, with one exception: RESIZE_BILINEAR
takes its target size from a constant of two int32 (height, width). Each of these constants is the input's
size divided by a whole number, so a reader that knows where they lie can set another size with eight
bytes per constant and needs no flatbuffer library: that is what `size_constants` finds and `at_size`
does.
"""

import math
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # ships no types
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from calibration import FILE_IDENTIFIER, CalibrationError, rewrite
from calibration.rewrite import CONVOLUTIONS, name_of, operator_name

__all__ = [
    "at_size",
    "description",
    "drop_unused",
    "interpreter_at",
    "layer_types",
    "macs",
    "operator_name",
    "operator_names",
    "packed",
    "resizable",
    "size_constants",
    "unpacked",
    "with_same_padding",
    "with_uint8_input",
]

SizeConstants = Sequence[tuple[int, int]]
"""(byte offset in the file, what to divide the input's height and width by), one pair per constant."""

TYPE_NAMES = {schema.TensorType.INT8: "int8", schema.TensorType.FLOAT32: "float32"}
SIZE = struct.Struct("<2i")  # height, width

# Operators that work at any size: the shapes of their outputs follow from those of their inputs.
SHAPE_FREE = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "PAD", "ADD", "RELU", "RESIZE_BILINEAR", "DEPTH_TO_SPACE"}
)


def size_constants(data: bytes) -> list[tuple[int, int]]:
    """Return where the target size of each RESIZE_BILINEAR lies in a .tflite file, by rising offset.

    Works on the file alone, whatever its types (float, or quantized later), as long as it has one
    subgraph and one input of (1, h, w, c). At each byte offset lie two little-endian int32: h // divisor
    and w // divisor.

    Raises:
        CalibrationError: a size is not a constant, does not divide the input's, or is shared with another
            operator.
    """
    model = schema.Model.GetRootAs(data, 0)
    if model.SubgraphsLength() != 1 or model.Subgraphs(0).InputsLength() != 1:
        raise CalibrationError("expected one subgraph with one input")
    graph = model.Subgraphs(0)
    input_hw = _ints(graph.Tensors(graph.Inputs(0)).ShapeAsNumpy())[1:3]
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    resizes = [op for op in operators if name_of(model.OperatorCodes(op.OpcodeIndex())) == "RESIZE_BILINEAR"]
    buffers = {graph.Tensors(op.Inputs(1)).Buffer() for op in resizes}
    _refuse_other_users(graph, operators, resizes, buffers)
    return sorted(_locate(data, model.Buffers(buffer), input_hw) for buffer in buffers)


def at_size(data: bytes, constants: SizeConstants, height: int, width: int) -> bytes:
    """Return the file with its size constants set for inputs of height x width px, multiples of each divisor.

    The interpreter made from it still needs `resize_tensor_input(input, [1, height, width, 3])`.
    """
    patched = bytearray(data)
    for offset, divisor in constants:
        SIZE.pack_into(patched, offset, height // divisor, width // divisor)
    return bytes(patched)


def interpreter_at(data: bytes, height: int, width: int, **options: Any) -> Any:
    """Return a LiteRT interpreter of one thread, ready for inputs of (1, height, width, 3)."""
    sized = at_size(data, size_constants(data), height, width)
    interpreter = Interpreter(model_content=sized, num_threads=1, **options)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [1, height, width, 3])
    interpreter.allocate_tensors()
    return interpreter


def macs(data: bytes, side: int) -> int:
    """Return the multiplications of all convolutions of a .tflite for an input of side x side px."""
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # with XNNPACK, shapes inside stay those of the file
    told = interpreter_at(data, side, side, experimental_op_resolver_type=plain).get_tensor_details()
    shapes = {int(tensor["index"]): [int(length) for length in tensor["shape"]] for tensor in told}
    model = unpacked(data)
    layers = [op for op in model.subgraphs[0].operators if operator_name(model, op) in CONVOLUTIONS]
    return sum(math.prod(shapes[op.outputs[0]][1:3]) * math.prod(shapes[op.inputs[1]]) for op in layers)


def layer_types(data: bytes) -> dict[str, int]:
    """Return how many convolutions have weights of which type: int8, float32."""
    model = unpacked(data)
    (graph,) = model.subgraphs
    layers = [op for op in graph.operators if operator_name(model, op) in CONVOLUTIONS]
    return dict(Counter(TYPE_NAMES[graph.tensors[op.inputs[1]].type] for op in layers))


def description(data: bytes) -> str:
    """Return what a .tflite file says of itself.

    Raises:
        CalibrationError: it is damaged.
    """
    return (unpacked(data).description or b"").decode(errors="replace")


def operator_names(data: bytes) -> Counter[str]:
    """Return how often each operator occurs in a .tflite file."""
    model = unpacked(data)
    return Counter(operator_name(model, op) for op in model.subgraphs[0].operators)


def resizable(data: bytes, outputs: Sequence[str], description: str) -> bytes:
    """Return a float32 network of the same weights that runs at any size its strides allow.

    Sparse constants become dense and float16 ones float32 (exactly), a RESHAPE at the very end is dropped so
    that the outputs are the 4-D maps, a RELU is written as the activation of the operator before it, each
    RESIZE_BILINEAR gets its own size constant, and what nothing refers to is left out. The tensors are named
    `image` and as in `outputs` (the file's own order), and so are those of the one signature, `serving_default`. The
    same input gives the same bytes.

    Raises:
        CalibrationError: the network has an operator that this does not know how to make independent of
            the size.
    """
    model = unpacked(data)
    (graph,) = model.subgraphs

    rewrite.fold_sparse(model, data)
    rewrite.fold_float16(model)
    rewrite.drop_final_reshapes(model)
    unknown = {operator_name(model, op) for op in graph.operators} - SHAPE_FREE
    if unknown:
        raise CalibrationError(f"do not know how to free these operators of their size: {sorted(unknown)}")
    rewrite.fuse_relus(model)
    rewrite.separate_sizes(model)
    drop_unused(model)
    rewrite.sign(model, outputs)
    model.description = description
    return packed(model, share=False)


def with_same_padding(data: bytes) -> bytes:
    """Return the network without the PADs that a convolution can do itself, at any size.

    An even PAD of half an odd kernel is TensorFlow's SAME padding where the stride is 1; with stride 2 SAME
    adds nothing before the first row, so there the PAD stays. The results are the same to the last bit. XNNPACK
    is as quick either way; plain kernels take 15 to 18 % less time (192 px, measured).
    """
    model = unpacked(data)
    (graph,) = model.subgraphs
    pads = {int(op.outputs[0]): op for op in graph.operators if operator_name(model, op) == "PAD"}
    for op in graph.operators:
        pad = pads.get(int(op.inputs[0]))
        if pad is not None and operator_name(model, op) in CONVOLUTIONS and _pads_same(model, pad, op):
            op.inputs = [pad.inputs[0], *op.inputs[1:]]
            op.builtinOptions.padding = schema.Padding.SAME
    graph.operators = rewrite.operators_between(graph.operators, (), graph.outputs)
    drop_unused(model)
    rewrite.sign(model, [graph.tensors[tensor].name.decode() for tensor in graph.outputs])
    return packed(model)


def with_uint8_input(data: bytes, scale: float, zero_point: int) -> bytes:
    """Return a network of float32 input with one of uint8 instead: (value - zero_point) * scale goes on.

    It does so by a DEQUANTIZE. Before a QUANTIZE to int8 that costs nothing: XNNPACK takes both along with the
    rest. A QUANTIZE from uint8 to int8 it leaves to slower kernels: 0.6 to 1.5 ms of 37 at 768 px (measured).
    """
    model = unpacked(data)
    (graph,) = model.subgraphs
    (image,) = _ints(graph.inputs)
    inner, outer = graph.tensors[image], schema.TensorT()
    outer.shape, outer.type, outer.quantization = inner.shape, schema.TensorType.UINT8, schema.QuantizationParametersT()
    outer.quantization.scale, outer.quantization.zeroPoint = np.array([scale], "<f4"), np.array([zero_point], "<i8")
    inner.name = b"normalised"
    graph.tensors.append(outer)
    graph.inputs = [len(graph.tensors) - 1]
    code, op = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(code)
    op.opcodeIndex, op.inputs, op.outputs = len(model.operatorCodes) - 1, graph.inputs, [image]
    graph.operators = [op, *graph.operators]
    rewrite.sign(model, [graph.tensors[tensor].name.decode() for tensor in graph.outputs])
    return packed(model)


def unpacked(data: bytes) -> Any:
    """Return a .tflite file in the object form of the schema, all its constants inside.

    Raises:
        CalibrationError: it is damaged.
    """
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
    except (struct.error, ValueError, IndexError, TypeError, OverflowError) as error:
        raise CalibrationError(f"the .tflite file is damaged: {error!r}") from error
    for buffer in model.buffers:
        if buffer.offset > 1:  # behind the flatbuffer's end, where the quantizer puts large ones; 1 is an empty one
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    return model


def packed(model: Any, *, share: bool = True) -> bytes:
    """Return the .tflite file of a model in the object form of the schema; equal vectors are stored once, or not."""
    builder = _SharingBuilder(0) if share else flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def drop_unused(model: Any) -> None:
    """Leave out the tensors, buffers, operator codes and metadata that nothing refers to.

    A signature's tensors must be the graph's inputs and outputs.
    """
    (graph,) = model.subgraphs
    operators = graph.operators
    touched = {*graph.inputs, *graph.outputs}.union(*([*op.inputs, *op.outputs] for op in operators))
    used = sorted(touched - {-1})  # -1: an optional input left out
    tensor_at = {-1: -1} | {old: new for new, old in enumerate(used)}
    graph.tensors = [graph.tensors[old] for old in used]
    graph.inputs = [tensor_at[tensor] for tensor in graph.inputs]
    graph.outputs = [tensor_at[tensor] for tensor in graph.outputs]
    for op in operators:
        op.inputs = [tensor_at[tensor] for tensor in op.inputs]
        op.outputs = [tensor_at[tensor] for tensor in op.outputs]
    for signature in model.signatureDefs or []:
        for entry in (*signature.inputs, *signature.outputs):
            entry.tensorIndex = tensor_at[entry.tensorIndex]

    buffers = sorted({0} | {tensor.buffer for tensor in graph.tensors})  # 0: the schema's "no data"
    for tensor in graph.tensors:
        tensor.buffer = buffers.index(tensor.buffer)
    model.buffers = [model.buffers[old] for old in buffers]

    codes = sorted({op.opcodeIndex for op in operators})
    for op in operators:
        op.opcodeIndex = codes.index(op.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[old] for old in codes]
    model.metadata = model.metadataBuffer = None


class _SharingBuilder(flatbuffers.Builder):  # type: ignore[misc]  # ships no types
    """Stores equal vectors once: most are zero points, and the scales of a layer's weights.

    Those of 8 bytes may be size constants, and stay apart.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray[Any, Any]) -> int:  # noqa: N802 - flatbuffers' name
        if x.nbytes == SIZE.size:
            return int(super().CreateNumpyVector(x))
        key = x.dtype.str, x.tobytes()
        if key not in self._vectors:
            self._vectors[key] = int(super().CreateNumpyVector(x))
        return self._vectors[key]


def _pads_same(model: Any, pad: Any, op: Any) -> bool:
    """Tell whether SAME padding of a convolution does what its PAD does."""
    tensors, options = model.subgraphs[0].tensors, op.builtinOptions
    amounts, height_width = tensors[pad.inputs[1]], _ints(tensors[op.inputs[1]].shape[1:3])
    stored = model.buffers[amounts.buffer].data
    steps = {options.strideH, options.strideW, options.dilationHFactor, options.dilationWFactor}
    if stored is None or amounts.type != schema.TensorType.INT32 or options.padding != schema.Padding.VALID:
        return False
    halves = [half for side in height_width for half in (side // 2, side // 2)]
    odd = all(side % 2 for side in height_width)
    return steps == {1} and odd and np.asarray(stored, np.uint8).view("<i4").tolist() == [0, 0, *halves, 0, 0]


def _ints(values: Iterable[Any]) -> list[int]:
    return [int(value) for value in values]


def _refuse_other_users(graph: Any, operators: list[Any], resizes: list[Any], buffers: set[int]) -> None:
    """Raise if setting a size would change a constant that anything but a RESIZE_BILINEAR reads."""
    for op in operators:
        first = 2 if op in resizes else 0
        for position in range(first, op.InputsLength()):
            tensor = op.Inputs(position)
            if tensor >= 0 and graph.Tensors(tensor).Buffer() in buffers:  # -1: an optional input left out
                raise CalibrationError("a size constant is shared with another operator")


def _locate(data: bytes, buffer: Any, input_hw: list[int]) -> tuple[int, int]:
    """Return (byte offset, divisor) of one size constant."""
    if buffer.DataLength() != SIZE.size:
        raise CalibrationError("the target size of a RESIZE_BILINEAR is not a constant inside the file")
    # The accessor's view shares memory with the file's bytes, so their distance is the offset.
    offset = int(buffer.DataAsNumpy().ctypes.data - np.frombuffer(data, np.uint8).ctypes.data)
    target_hw = SIZE.unpack_from(data, offset)
    divisor = input_hw[0] // target_hw[0] if target_hw[0] > 0 else 0
    if divisor < 1 or input_hw != [divisor * side for side in target_hw]:
        raise CalibrationError(f"target size {target_hw} does not divide the input's size {input_hw}")
    return offset, divisor
