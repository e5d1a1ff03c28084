"""CenterFace as a .tflite file gives the maps of the PyTorch module, at any size, and nearly so as INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from blurguard.detection import model_zoo
from blurguard.detection.interpreter import Network
from calibration import CalibrationError, base, flatbuffer
from calibration.__main__ import main
from calibration.candidate import BLAZEFACE, CENTERFACE, OFFSET_UNIT, SIZE_UNIT, UNITS, candidate, family_of
from tests.conftest import Crowd
from tests.needs import has_training_packages, needs_training_packages

if has_training_packages():
    import torch
    from torch import nn

    from calibration import convert_centerface, network, quantize, sensitivity
    from calibration.centerface import CenterFace, from_onnx, maps_of
    from tests.test_calibration_centerface import published

pytestmark = needs_training_packages

Pixels = NDArray[np.uint8]
FLOAT = "centerface-float"


@pytest.fixture(scope="module")
def module() -> CenterFace:
    """Return the network with random weights that keep the signal alive through all layers."""
    generator = torch.Generator().manual_seed(3)
    made = CenterFace()
    for layer in made.layers():
        inputs = layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.weight.shape[0]
        layer.weight.data.normal_(0, (1.5 / inputs) ** 0.5, generator=generator)
        assert layer.bias is not None
        layer.bias.data.normal_(0, 0.2, generator=generator)
    made.stem.weight.data /= 64  # pixels reach 255
    for head in (made.score, made.size, made.offset):
        head.weight.data /= 10
    return made.eval()


@pytest.fixture(scope="module")
def data(module: CenterFace) -> bytes:
    return convert_centerface.exported(module)


@pytest.fixture(scope="module")
def shipped() -> bytes:
    return model_zoo.load_weights(model_zoo.load_manifest().networks[FLOAT])


@pytest.fixture(scope="module")
def crops(crowd: Crowd) -> Pixels:
    """Return uint8 (4, 192, 192, 3) of the crowd."""
    return np.stack([crowd[0][y : y + 192, x : x + 192] for y in (500, 700) for x in (200, 420)])


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def maps(data: bytes, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return boxes (h/4, w/4, 4), as offsets and logs of sizes in px, and logits (h/4, w/4)."""
    boxes, logits = Network(candidate(data), data).run(pixels)
    return np.concatenate([boxes[..., :2] * OFFSET_UNIT, boxes[..., 2:] + np.log(SIZE_UNIT)], axis=2), logits


def expected(module: CenterFace, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        boxes, logits = maps_of(module, dict(module.named_parameters()), image)
    return boxes[0].permute(1, 2, 0).numpy(), logits[0, 0].numpy()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32), (96, 224), (256, 192)])
def test_the_file_gives_the_maps_of_the_module_at_any_size(
    module: CenterFace, data: bytes, height: int, width: int
) -> None:
    pixels = noise(height, width, seed=height)
    for got, wanted in zip(maps(data, pixels), expected(module, pixels), strict=True):
        assert got.shape == wanted.shape
        assert wanted.std() > 0.01, "a signal that can be wrong"
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_each_channel_of_the_boxes_is_where_it_belongs(module: CenterFace) -> None:
    rows_columns = {"offset": (3.0, -2.0), "size": (1.0, 0.5)}
    heads = {name: getattr(module, name) for name in rows_columns}
    kept = {name: (head.weight.data.clone(), head.bias.data.clone()) for name, head in heads.items()}
    try:
        for name, values in rows_columns.items():
            heads[name].weight.data.zero_()
            heads[name].bias.data = torch.tensor(values)
        boxes, _ = maps(convert_centerface.exported(module), noise(32, 32))
    finally:
        for name, (weight, bias) in kept.items():
            heads[name].weight.data, heads[name].bias.data = weight, bias
    x, y, width, height = boxes[2, 3].tolist()
    assert (x, y) == pytest.approx((-8, 12), abs=1e-4)  # cells of 4 px
    assert (np.exp(width), np.exp(height)) == pytest.approx((4 * np.exp(0.5), 4 * np.exp(1.0)), rel=1e-4)


def test_the_file_says_which_network_it_is(data: bytes) -> None:
    description = flatbuffer.description(data)
    assert description.startswith("CenterFace (MIT)")
    assert description.endswith(UNITS)
    assert family_of(data) is CENTERFACE
    assert family_of((base.MODELS / "blazeface_far.tflite").read_bytes()) is BLAZEFACE
    spec = candidate(data)
    assert (spec.input_offset, spec.size_constants, spec.log_sizes) == (0.0, (), True)


def test_the_same_weights_give_the_same_bytes(module: CenterFace, data: bytes) -> None:
    assert convert_centerface.exported(module) == data


def test_the_released_file_is_the_conversion_of_the_published_one(shipped: bytes, tmp_path: Path) -> None:
    onnx, out, weights = published(), tmp_path / "out.tflite", tmp_path / "weights.npz"
    assert main(["convert-centerface", "--onnx", str(onnx), "--out", str(out)]) == 0
    assert out.read_bytes() == shipped
    changed = {key: value.detach() for key, value in from_onnx(onnx).named_parameters()}
    changed["score.bias"] = changed["score.bias"] + 1
    network.save_npz(weights, changed)
    assert main(["convert-centerface", "--onnx", str(onnx), "--weights", str(weights), "--out", str(out)]) == 0
    pixels = noise(64, 64)
    (_, more), (_, logits) = maps(out.read_bytes(), pixels), maps(shipped, pixels)
    np.testing.assert_allclose(more, logits + 1, rtol=0, atol=1e-4)


def test_another_onnx_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.onnx").write_bytes(b"another network")
    given = ["--onnx", str(tmp_path / "other.onnx"), "--out", str(tmp_path / "out.tflite")]
    assert main(["convert-centerface", *given]) == 1
    assert "is not the centerface.onnx" in capsys.readouterr().err
    assert not (tmp_path / "out.tflite").exists()


@pytest.fixture(scope="module")
def int8(shipped: bytes, crops: Pixels) -> bytes:
    source = quantize.prepared(shipped, quantize.measured(shipped, crops))
    return quantize.quantized(source, quantize.chosen_layers(source, "heads"))


def test_int8_stays_near_float(shipped: bytes, int8: bytes, crops: Pixels, crowd: Crowd) -> None:
    unseen = crowd[0][560:720, 200:392]
    released = model_zoo.load_weights(model_zoo.load_manifest().networks["centerface"])
    for data, pixels in ((int8, crops[:2]), (int8, unseen[None]), (released, unseen[None])):
        found = sensitivity.noise_of(shipped, data, pixels)
        assert found.boxes > 20 and found.scores > 15, found


def test_int8_is_of_the_same_family_and_takes_pixels(int8: bytes) -> None:
    assert family_of(int8) is CENTERFACE
    assert flatbuffer.description(int8).endswith(UNITS)
    layers = flatbuffer.layer_types(int8)
    assert (layers["int8"], layers["float32"]) == (59, 2)
    boxes, logits = Network(candidate(int8), int8).run(noise(96, 64))
    assert boxes.dtype == logits.dtype == np.float32
    assert (boxes.shape, logits.shape) == ((24, 16, 4), (24, 16))


def test_ranges_of_another_network_are_refused(shipped: bytes, crops: Pixels) -> None:
    other = base.rewrite(base.START.read_bytes())
    with pytest.raises(CalibrationError, match="another network"):
        quantize.prepared(shipped, quantize.measured(other, crops[:1], alike=False))
