"""Changes a network in place, in the object form of the schema.

`calibration.flatbuffer` reads and writes that form, and makes files out of files by what is here.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from calibration import CalibrationError

__all__ = [
    "CONVOLUTIONS",
    "add_constant",
    "drop_final_reshapes",
    "fold_float16",
    "fold_sparse",
    "fuse_relus",
    "name_of",
    "operator_name",
    "operators_between",
    "replace_constant",
    "separate_sizes",
    "set_channels",
    "sign",
    "values_of",
]

OPERATOR_NAMES: dict[int, str] = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}
CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
FUSABLE = CONVOLUTIONS | {"ADD"}  # operators that can carry a RELU
NONE = schema.ActivationFunctionType.NONE


def operator_name(model: Any, op: Any) -> str:
    """Return the name of an operator of a model in the object form of the schema."""
    return name_of(model.operatorCodes[op.opcodeIndex])


def name_of(code: Any) -> str:
    """Return an operator's name from its entry, in the accessor or the object form of the schema."""
    if isinstance(code, schema.OperatorCode):
        numbers = code.BuiltinCode(), code.DeprecatedBuiltinCode()
    else:
        numbers = code.builtinCode, code.deprecatedBuiltinCode
    return OPERATOR_NAMES[max(numbers)]  # older files have only the second one, and 0 in the first


def operators_between(operators: Sequence[Any], before: Collection[int], after: Collection[int]) -> list[Any]:
    """Return the operators, in their order, that make the tensors ``after`` out of the tensors ``before``."""
    needed, found = {int(tensor) for tensor in after} - set(before), []
    for op in reversed(operators):
        if int(op.outputs[0]) in needed:
            needed |= {int(tensor) for tensor in op.inputs} - set(before)
            found.append(op)
    return found[::-1]


def values_of(model: Any, tensor: int, kind: type[np.generic]) -> NDArray[Any]:
    """Return the constant of a tensor, flat; ``kind`` is float32 or int32.

    Raises:
        CalibrationError: it is none, or of another type than expected (a quantized file, say).
    """
    entry = model.subgraphs[0].tensors[tensor]
    expected = schema.TensorType.FLOAT32 if kind is np.float32 else schema.TensorType.INT32
    stored = model.buffers[entry.buffer].data
    if stored is None or entry.type != expected:
        raise CalibrationError(f"tensor {tensor} is no constant of {np.dtype(kind)}; give the float model")
    return np.asarray(stored, np.uint8).view(kind)


def add_constant(model: Any, like: int, values: NDArray[Any]) -> int:
    """Return the number of a new constant tensor, of the name and type of another."""
    tensors = model.subgraphs[0].tensors
    entry = schema.TensorT()
    entry.name, entry.shape, entry.type = tensors[like].name, list(values.shape), tensors[like].type
    _store(model, entry, values)
    tensors.append(entry)
    return len(tensors) - 1


def replace_constant(model: Any, tensor: int, values: NDArray[Any]) -> None:
    """Give a constant tensor other values and their shape, in a buffer that no other one uses."""
    tensors = model.subgraphs[0].tensors
    entry = tensors[tensor]
    if sum(other.buffer == entry.buffer for other in tensors) > 1:
        model.buffers.append(schema.BufferT())
        entry.buffer = len(model.buffers) - 1
    model.buffers[entry.buffer].data = np.frombuffer(values.tobytes(), np.uint8)
    entry.shape = list(values.shape)


def set_channels(model: Any) -> None:
    """Let the channels of every tensor follow from the weights."""
    (graph,) = model.subgraphs
    for op in graph.operators:
        kind = operator_name(model, op)
        if kind not in (*CONVOLUTIONS, "PAD", "DEPTH_TO_SPACE", "RESHAPE"):
            continue
        channels = int(graph.tensors[op.inputs[0]].shape[-1])
        if kind in CONVOLUTIONS:
            channels = int(graph.tensors[op.inputs[2]].shape[0])
        elif kind == "PAD":
            channels += int(values_of(model, op.inputs[1], np.int32)[-2:].sum())
        elif kind == "DEPTH_TO_SPACE":
            channels //= 4
        shape = [*graph.tensors[op.outputs[0]].shape[:-1], channels]
        graph.tensors[op.outputs[0]].shape = shape
        if kind == "RESHAPE":
            replace_constant(model, op.inputs[1], np.array(shape, np.int32))
            graph.tensors[op.inputs[1]].shape = [len(shape)]


def fold_sparse(model: Any, data: bytes) -> None:
    """Replace each DENSIFY of a constant by what the runtime makes of it."""
    (graph,) = model.subgraphs
    folded = [op for op in graph.operators if operator_name(model, op) == "DENSIFY"]
    if not folded:
        return
    interpreter = Interpreter(
        model_content=data,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    interpreter.invoke()
    for op in folded:
        _store(model, graph.tensors[op.outputs[0]], interpreter.get_tensor(int(op.outputs[0])))
    graph.operators = [op for op in graph.operators if op not in folded]


def fold_float16(model: Any) -> None:
    """Replace each DEQUANTIZE of a float16 constant by the float32 constant it yields."""
    (graph,) = model.subgraphs
    folded = [op for op in graph.operators if operator_name(model, op) == "DEQUANTIZE"]
    for op in folded:
        source = graph.tensors[op.inputs[0]]
        stored = model.buffers[source.buffer].data
        if source.type != schema.TensorType.FLOAT16 or stored is None:
            raise CalibrationError("a DEQUANTIZE reads something other than a float16 constant")
        values = np.asarray(stored, np.uint8).view("<f2").astype("<f4")  # every float16 is a float32
        _store(model, graph.tensors[op.outputs[0]], values)
    graph.operators = [op for op in graph.operators if operator_name(model, op) != "DEQUANTIZE"]


def drop_final_reshapes(model: Any) -> None:
    """Make the inputs of the RESHAPEs that end the graph its outputs."""
    (graph,) = model.subgraphs
    before = {
        op.outputs[0]: op.inputs[0]
        for op in graph.operators
        if operator_name(model, op) == "RESHAPE" and op.outputs[0] in graph.outputs
    }
    graph.outputs = [before.get(tensor, tensor) for tensor in graph.outputs]
    graph.operators = [op for op in graph.operators if op.outputs[0] not in before]


def fuse_relus(model: Any) -> None:
    """Write each RELU as the activation of the operator before it, if nothing else reads that one's result.

    The float result and its speed stay the same. A network quantized from this one needs it: with RELUs of
    their own XNNPACK took it in 45 pieces instead of one, at a seventh of the speed (192 px, measured).
    """
    (graph,) = model.subgraphs
    readers = Counter([*graph.outputs, *(tensor for op in graph.operators for tensor in op.inputs)])
    writer = {op.outputs[0]: op for op in graph.operators}
    fused = []
    for op in graph.operators:
        before = writer.get(op.inputs[0])
        if operator_name(model, op) != "RELU" or before is None or readers[op.inputs[0]] != 1:
            continue
        options = before.builtinOptions
        if operator_name(model, before) in FUSABLE and options.fusedActivationFunction == NONE:
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU
            before.outputs = op.outputs
            fused.append(op)
    graph.operators = [op for op in graph.operators if op not in fused]


def separate_sizes(model: Any) -> None:
    """Give each RESIZE_BILINEAR a size tensor and buffer that nothing else uses."""
    (graph,) = model.subgraphs
    for op in graph.operators:
        if operator_name(model, op) == "RESIZE_BILINEAR":
            size = values_of(model, op.inputs[1], np.int32)
            op.inputs = [op.inputs[0], add_constant(model, op.inputs[1], size)]


def sign(model: Any, outputs: Sequence[str]) -> None:
    """Name the input and output tensors and write the one signature over them."""
    (graph,) = model.subgraphs

    def entries(tensors: Sequence[int], names: Sequence[str]) -> list[Any]:
        made = []
        for tensor, name in zip(tensors, names, strict=True):
            graph.tensors[tensor].name = name.encode()
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, tensor
            made.append(entry)
        return made

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = entries(graph.inputs, ["image"]), entries(graph.outputs, outputs)
    model.signatureDefs = [signature]


def _store(model: Any, tensor: Any, values: NDArray[Any]) -> None:
    """Give a tensor a buffer of its own that holds these values."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.buffer = len(model.buffers) - 1
