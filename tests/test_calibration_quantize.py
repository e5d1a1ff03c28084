"""INT8: convolutions that pad themselves, uint8 pixels, what stays float, and what a layer loses alone."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from calibration import CalibrationError, base, flatbuffer, rewrite
from calibration.__main__ import main
from calibration.candidate import UNITS
from tests.conftest import Crowd
from tests.needs import has_training_packages, needs_training_packages
from tests.test_calibration_train import Tiny

if has_training_packages():
    from calibration import channels, equalize, network, quantize, sensitivity

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
BASE = base.rewrite(base.START.read_bytes())
SIZES = ((192, 192), (96, 224))
STRAIGHT = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": schema.Padding.VALID}


@pytest.fixture(scope="module")
def crops(crowd: Crowd) -> Pixels:
    """Return uint8 (6, 192, 192, 3) of the crowd."""
    return np.stack([crowd[0][y : y + 192, x : x + 192] for y in (500, 620, 740) for x in (200, 420)])


@pytest.fixture(scope="module")
def source(crops: Pixels) -> quantize.Prepared:
    return quantize.prepared(BASE, quantize.measured(BASE, crops))


@pytest.fixture(scope="module")
def tiny() -> bytes:
    return flatbuffer.resizable(Tiny().data(), quantize.OUTPUTS, f"tiny, {UNITS}")


def interpreter(data: bytes, height: int, width: int) -> Any:
    made = Interpreter(
        model_content=flatbuffer.at_size(data, flatbuffer.size_constants(data), height, width), num_threads=1
    )
    made.resize_tensor_input(made.get_input_details()[0]["index"], [1, height, width, 3])
    made.allocate_tensors()
    return made


def outputs(data: bytes, image: NDArray[Any]) -> dict[str, Floats]:
    """Return the maps by their names, for (h, w, 3)."""
    made = interpreter(data, *image.shape[:2])
    made.set_tensor(made.get_input_details()[0]["index"], image[None])
    made.invoke()
    return {detail["name"]: made.get_tensor(detail["index"])[0] for detail in made.get_output_details()}


def normalized(pixels: Pixels) -> Floats:
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def weight_types(data: bytes) -> Counter[int]:
    """Return how many layers have weights of each type."""
    model = flatbuffer.unpacked(data)
    tensors = model.subgraphs[0].tensors
    layers = [op for op in model.subgraphs[0].operators if rewrite.operator_name(model, op) in rewrite.CONVOLUTIONS]
    return Counter(int(tensors[op.inputs[1]].type) for op in layers)


@pytest.mark.parametrize("size", SIZES)
def test_convolutions_that_pad_themselves_give_the_same_bits(crowd: Crowd, size: tuple[int, int]) -> None:
    image = normalized(crowd[0][600 : 600 + size[0], 200 : 200 + size[1]])
    before, after = outputs(BASE, image), outputs(flatbuffer.with_same_padding(BASE), image)
    assert before.keys() == after.keys() == {"boxes", "scores"}
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_the_pads_that_stay_are_those_before_a_stride_or_that_add_channels() -> None:
    model = flatbuffer.unpacked(flatbuffer.with_same_padding(BASE))
    (graph,) = model.subgraphs
    pads = {int(op.outputs[0]) for op in graph.operators if rewrite.operator_name(model, op) == "PAD"}
    strides = [
        op.builtinOptions.strideH
        for op in graph.operators
        if pads & {int(op.inputs[0])}
        if hasattr(op.builtinOptions, "strideH")
    ]
    assert strides and set(strides) == {2}
    assert flatbuffer.operator_names(BASE)["PAD"] > 2 * len(pads)


class Padded(Tiny):
    """One PAD and one 3 x 3 convolution of stride 1."""

    def __init__(self, *amounts: int) -> None:
        super().__init__()
        image = self.tensor(1, 64, 64, 3)
        around = self.tensor(4, 2, values=np.array(amounts, np.int32).reshape(4, 2))
        side = 64 + amounts[2] + amounts[3]
        x = self.add("PAD", [image, around], (1, side, side, 3))
        x = self.add("CONV_2D", [x, self.noise(4, 3, 3, 3), self.noise(4)], (1, side - 2, side - 2, 4), **STRAIGHT)
        self.graph.inputs, self.graph.outputs = [image], [x]

    def data(self) -> bytes:
        return flatbuffer.packed(self.model)


@pytest.mark.parametrize(("amounts", "merged"), [((1, 1, 1, 1), True), ((0, 2, 0, 2), False), ((2, 2, 2, 2), False)])
def test_only_an_even_pad_of_half_the_kernel_is_merged(amounts: tuple[int, ...], merged: bool) -> None:
    data = Padded(0, 0, *amounts, 0, 0).data()
    after = flatbuffer.with_same_padding(data)
    assert (flatbuffer.operator_names(after)["PAD"] == 0) == merged
    image = normalized(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    for expected, got in zip(outputs(data, image).values(), outputs(after, image).values(), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_uint8_pixels_are_what_the_float_input_would_get(crops: Pixels) -> None:
    taken = flatbuffer.with_uint8_input(BASE, 1 / 127.5, 128)
    expected, got = outputs(BASE, (crops[0].astype(np.float32) - 128) * np.float32(1 / 127.5)), outputs(taken, crops[0])
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


def test_packing_stores_equal_vectors_once_but_size_constants_apart() -> None:
    model = flatbuffer.unpacked(BASE)
    whole = flatbuffer.packed(model)
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) == flatbuffer.SIZE.size:
            buffer.data = np.frombuffer(flatbuffer.SIZE.pack(24, 24), np.uint8)
        elif buffer.data is not None and len(buffer.data) > 1000:
            buffer.data = np.zeros(len(buffer.data), np.uint8)
    alike = flatbuffer.packed(model)
    assert len(alike) < len(whole) / 2
    assert len({offset for offset, _ in flatbuffer.size_constants(alike)}) == 3


@needs_training_packages
def test_it_takes_pixels_and_gives_float_maps_at_any_size(source: quantize.Prepared, crowd: Crowd) -> None:
    data = quantize.quantized(source, quantize.chosen_layers(source, "heads"))
    for height, width in SIZES:
        pixels = crowd[0][600 : 600 + height, 200 : 200 + width]
        expected, got = outputs(BASE, normalized(pixels)), outputs(data, pixels)
        for name in quantize.OUTPUTS:
            assert got[name].dtype == np.float32 and got[name].shape == expected[name].shape
        noise = sensitivity.noise_of(BASE, data, pixels[None])
        assert noise.boxes > 15 and noise.scores > 12, (height, width)


@needs_training_packages
def test_the_file_is_small_of_one_piece_and_always_the_same(source: quantize.Prepared, crops: Pixels) -> None:
    data = quantize.quantized(source, quantize.chosen_layers(source, "heads"))
    assert len(data) <= 0.31 * len(BASE)
    assert data == quantize.quantized(
        quantize.prepared(BASE, quantize.measured(BASE, crops)), quantize.chosen_layers(source, "heads")
    )
    made = interpreter(data, 128, 128)
    kinds = Counter(op["op_name"] for op in made._get_ops_details())
    assert kinds["DELEGATE"] <= 1, "XNNPACK takes it in several pieces"
    names = {tensor.name for tensor in flatbuffer.unpacked(data).subgraphs[0].tensors}
    assert names == {None, b"image", b"boxes", b"scores"}


@needs_training_packages
def test_chosen_layers_stay_float(source: quantize.Prepared) -> None:
    kinds, total = schema.TensorType, len(source.layers)
    heads = quantize.chosen_layers(source, "heads")
    assert heads == quantize.chosen_layers(source, "boxes,scores") and len(heads) == 4
    for kept in (set(), heads, {"000", "017"}, set(source.layers)):
        types = weight_types(quantize.quantized(source, kept))
        assert (types[kinds.FLOAT32], types[kinds.INT8]) == (len(kept), total - len(kept))
    assert not quantize.chosen_layers(source, "")
    with pytest.raises(CalibrationError, match="no layer 999: give heads"):
        quantize.chosen_layers(source, "heads,999")


@needs_training_packages
def test_ranges_hold_what_a_single_crop_has(tiny: bytes, crops: Pixels) -> None:
    odd = np.random.default_rng(2).integers(0, 2, crops[:1].shape, np.uint8) * 255
    plain, mixed = (quantize.measured(tiny, some, alike=False) for some in (crops, np.concatenate([crops, odd])))
    assert not plain.scales
    wider = [name for name, (low, high) in plain.ranges.items() if mixed.ranges[name] != (low, high)]
    assert len(wider) > 3
    for name, (low, high) in plain.ranges.items():
        assert mixed.ranges[name][0] <= low and mixed.ranges[name][1] >= high, name
    assert plain.ranges["image"] == mixed.ranges["image"] == pytest.approx((-128 / 127.5, 127 / 127.5))


def uneven(data: bytes) -> bytes:
    """Return the network with channels of very unlike ranges, computing the same."""
    graph, weights = network.parse(data)
    linked = channels.linked_channels(graph, weights, through_depthwise=False)
    factors = np.exp(np.random.default_rng(3).uniform(-3, 3, 1 + max(int(n.max()) for n in linked.values())))
    factors[np.concatenate([linked[graph.boxes], linked[graph.scores]])] = 1
    scales = {step.key: factors[linked[step.output]].tolist() for step in graph.steps if step.key}
    return equalize.equalized(data, scales)


@needs_training_packages
def test_like_channels_change_no_map_and_mend_uneven_ones(crops: Pixels) -> None:
    data, noises = uneven(BASE), {}
    for alike in (False, True):
        source = quantize.prepared(data, quantize.measured(data, crops, alike=alike))
        assert min(dataclasses.astuple(sensitivity.noise_of(BASE, source.data, crops[:2]))) > 100
        made = quantize.quantized(source, quantize.chosen_layers(source, "heads"))
        noises[alike] = sensitivity.noise_of(BASE, made, crops)
    assert noises[True].boxes > noises[False].boxes + 6, noises
    assert noises[True].scores > noises[False].scores + 6, noises


@needs_training_packages
def test_outputs_keep_their_units(tiny: bytes, crops: Pixels) -> None:
    graph, _ = network.parse(tiny)
    scales = equalize.scales_for(tiny, normalized(crops))
    last = {graph.head(output)[-1].key for output in (graph.boxes, graph.scores)}
    assert {scale for key in last for scale in scales[key]} == {1.0}
    assert len({scale for values in scales.values() for scale in values}) > 5


@needs_training_packages
def test_noise_tells_which_layer_does_harm(source: quantize.Prepared, tiny: bytes, crops: Pixels) -> None:
    assert sensitivity.noise_of(BASE, BASE, crops[:2]) == sensitivity.Noise(math.inf, math.inf)

    def alone(layer: str) -> bytes:
        return quantize.quantized(source, set(source.layers) - {layer})

    noises = sensitivity.noises_by_layer(BASE, ["000", "045", "090"], alone, crops[:3])
    whole = sensitivity.noise_of(BASE, quantize.quantized(source, ()), crops[:3])
    assert min(noises["000"].scores, noises["045"].scores) > whole.scores > 15
    assert noises["090"].scores > noises["000"].scores, "the last layer of the boxes changes no score"
    lows = [min(noise.boxes, noise.scores) for noise in noises.values()]
    assert lows == sorted(lows)


def write_set(folder: Path, crops: Pixels) -> Path:
    folder.mkdir()
    np.savez(folder / "set.npz", crops=crops)
    return folder


@needs_training_packages
def test_the_step_writes_the_network_and_prints_tables(
    tmp_path: Path, tiny: bytes, crops: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2 = pytest.importorskip("cv2")
    (tmp_path / "tiny.tflite").write_bytes(tiny)
    data = tmp_path / "data"
    data.mkdir()
    cv2.imwrite(str(data / "a.png"), crops[0])
    (data / "faces.jsonl").write_text('{"image": "a.png", "width": 192, "height": 192, "faces": [[9, 9, 40, 50, 0]]}\n')
    folder, out = write_set(tmp_path / "set", crops), tmp_path / "int8.tflite"
    command = ["quantize", str(tmp_path / "tiny.tflite"), "--set", str(folder), "--out", str(out)]
    assert main([*command, "--report", str(data), "--held", "0", "--worst", "1", "--mode", "fast"]) == 0
    printed = capsys.readouterr().out.splitlines()
    tables = [[line for line in printed if line.startswith("|") and line.count("|") == count] for count in (17, 11)]
    assert [len(table) for table in tables] == [2 + 4, 2 + 6], printed
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.tflite", "int8.tflite", "set", "data"}
    first = out.read_bytes()
    assert main([*command, "--ranges", str(tmp_path / "ranges.json")]) == 0
    assert out.read_bytes() == first
    again = tmp_path / "again.tflite"
    measured = ["--measured", str(tmp_path / "ranges.json"), "--out", str(again)]
    assert main(["quantize", str(tmp_path / "tiny.tflite"), *measured]) == 0
    assert again.read_bytes() == first
    assert main(["quantize", str(tmp_path / "tiny.tflite"), *measured, "--report", str(data)]) == 1
    source = quantize.prepared(tiny, quantize.load_measured(tmp_path / "ranges.json"))
    assert quantize.quantized(source, quantize.chosen_layers(source, "heads")) == first


@needs_training_packages
def test_what_cannot_be_quantized_is_refused_and_leaves_no_file(
    tmp_path: Path, tiny: bytes, crops: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    source = quantize.prepared(tiny, quantize.measured(tiny, crops))
    files = {"text": b"nothing of the kind", "int8": quantize.quantized(source, ()), "tiny": tiny, "px": BASE}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    full, empty = write_set(tmp_path / "full", crops), write_set(tmp_path / "empty", crops[:0])
    cases = [
        ("none", full, "cannot read"),
        ("text", full, "no .tflite file"),
        ("int8", full, "give the float one"),
        ("px", full, "no boxes in units"),
        ("tiny", empty, "set is empty"),
        ("tiny", tmp_path / "nowhere", "calibration set"),
    ]
    for name, folder, message in cases:
        out = tmp_path / "out.tflite"
        assert main(["quantize", str(tmp_path / name), "--set", str(folder), "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
        assert not out.exists()


@needs_training_packages
def test_what_was_measured_of_another_network_is_refused(
    tmp_path: Path, tiny: bytes, crops: Pixels, source: quantize.Prepared
) -> None:
    with pytest.raises(CalibrationError, match="ranges are of another network"):
        quantize.prepared(tiny, dataclasses.replace(quantize.measured(tiny, crops), ranges=source.ranges))
    with pytest.raises(CalibrationError, match="scales are of another network"):
        quantize.prepared(tiny, quantize.measured(BASE, crops[:1]))
    for text in ("no json", "[1]", '{"ranges": {"image": 3}, "scales": {}}', '{"ranges": {}}'):
        (tmp_path / "ranges.json").write_text(text)
        with pytest.raises(CalibrationError, match="cannot read what was measured"):
            quantize.load_measured(tmp_path / "ranges.json")
