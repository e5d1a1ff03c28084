"""Training as INT8 computes: it is what the INT8 file does, gradients pass, and runs take it up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import CalibrationError, flatbuffer
from tests import test_calibration_quantize as quantizing
from tests import test_calibration_train as training
from tests.needs import has_training_packages, needs_training_packages

if has_training_packages():
    import torch

    from calibration import network, quantize, sensitivity, train
    from calibration.rounding import Rounded

data, tiny, one_thread, crops = training.data, training.tiny, training.one_thread, quantizing.crops
CPU = "cpu"


@pytest.fixture(scope="module")
def file() -> bytes:
    """Return a small network with boxes of four channels."""
    data = flatbuffer.resizable(training.Tiny().data(), quantize.OUTPUTS, "tiny")
    graph, weights = network.parse(data)
    return network.write_back(data, network.with_log_sizes(graph, weights))


def fed(crops: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1


def maps(found: tuple[torch.Tensor, torch.Tensor]) -> sensitivity.Maps:
    return found[0].detach().permute(0, 2, 3, 1).numpy(), found[1].detach()[:, 0].numpy()


@needs_training_packages
@pytest.mark.parametrize("alike", [False, True])
def test_it_computes_what_the_int8_file_does(file: bytes, crops: NDArray[np.uint8], alike: bool) -> None:
    told = quantize.measured(file, crops, alike=alike)
    source = quantize.prepared(file, told)
    made = quantize.quantized(source, quantize.chosen_layers(source, "heads"))
    graph, weights = network.parse(file)
    rounded = maps(Rounded(file, told, torch.device(CPU))(weights, fed(crops)))
    near, plain = (
        sensitivity._noise(sensitivity._maps(made, crops), other)
        for other in (rounded, maps(graph(weights, fed(crops))))
    )
    assert near.boxes > plain.boxes + 6 and near.scores > plain.scores + 6, (near, plain)


@needs_training_packages
def test_gradients_pass_as_if_nothing_were_rounded(file: bytes, crops: NDArray[np.uint8]) -> None:
    graph, weights = network.parse(file)
    rounded = Rounded(file, quantize.measured(file, crops), torch.device(CPU))
    gradients = []
    for computed in (graph, rounded):
        leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
        boxes, logits = computed(leaves, fed(crops))
        torch.autograd.backward(boxes.square().mean() + logits.square().mean())
        gradients.append({key: value.grad for key, value in leaves.items()})
    for key, plain in gradients[0].items():
        other = gradients[1][key]
        assert plain is not None and other is not None
        assert torch.cosine_similarity(plain.flatten(), other.flatten(), dim=0) > 0.98, key
        assert 0.9 < other.norm() / plain.norm() < 1.1, key


@needs_training_packages
def test_a_run_rounds_and_is_taken_up_again(
    data: Path, tmp_path: Path, tiny: Path, crops: NDArray[np.uint8], one_thread: None
) -> None:
    first, out, ranges = tmp_path / "first", tmp_path / "run", tmp_path / "ranges.json"
    training.started(data, "--out", first, *training.NEW, tiny, "--steps", "3")
    weights = network.load_npz(first / "ema.npz")
    given = train.exported((first / "graph.tflite").read_bytes(), weights)
    ranges.write_text(quantize.measured(given, crops).as_json())
    training.started(data, "--out", out, *training.NEW, first / "model.tflite", "--ranges", ranges, "--steps", "2")
    ranges.unlink()  # a run keeps its own
    plain = tmp_path / "plain"
    training.started(data, "--out", plain, *training.NEW, first / "model.tflite", "--steps", "2")
    for folder in (out, plain):
        training.started(data, "--out", folder, "--resume", "--watched", "0", "--workers", "0", "--steps", "4")
    state = torch.load(out / "state.pt", weights_only=True)
    assert (state["step"], state["recipe"]["ranges"]) == (4, str(ranges))
    assert training.log_of(plain)[-1]["held_loss"] != training.log_of(out)[-1]["held_loss"]


@needs_training_packages
def test_a_run_that_rounds_computes_in_float32(
    data: Path, tmp_path: Path, file: bytes, crops: NDArray[np.uint8]
) -> None:
    (tmp_path / "graph.tflite").write_bytes(file)
    (tmp_path / train.RANGES).write_text(quantize.measured(file, crops).as_json())
    graph, weights = network.parse(file)
    recipe = train.Recipe(steps=1, batch=4, side=64, held=4, ranges="given")
    state = train._state(graph, weights, recipe, {}, torch.device(CPU))
    trainer = train.Trainer(graph, recipe, state, data, tmp_path)
    assert isinstance(trainer.computed, Rounded)
    assert not trainer.half_precision


@needs_training_packages
def test_ranges_that_do_not_fit_are_refused_before_the_first_step(data: Path, tmp_path: Path, tiny: Path) -> None:
    for name, text in (("missing", None), ("other", '{"scales": {}, "ranges": {"image": [0, 1]}}')):
        path = tmp_path / name
        if text:
            path.write_text(text)
        with pytest.raises(CalibrationError, match=str(path) if text is None else "of another network"):
            training.started(data, "--out", tmp_path / "run", *training.NEW, tiny, "--steps", "2", "--ranges", path)
        assert not (tmp_path / "run" / "state.pt").exists()
