"""A block that is repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from calibration import base
from calibration.__main__ import main
from tests.needs import has_training_packages, needs_training_packages

if has_training_packages():
    from calibration import channels, network, shape

pytestmark = needs_training_packages


@pytest.fixture(scope="module")
def start() -> bytes:
    return base.start()


def maps(data: bytes) -> list[NDArray[Any]]:
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    image = np.random.default_rng(3).uniform(-1, 1, (1, 192, 192, 3)).astype(np.float32)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def layers(data: bytes) -> int:
    return len(network.parse(data)[1]) // 2


def test_a_repeated_block_adds_nothing_until_it_is_trained(start: bytes) -> None:
    repeated = shape.repeat_last_block(start)
    for before, after in zip(maps(start), maps(repeated), strict=True):
        assert np.array_equal(before, after)
    assert layers(repeated) == layers(start) + 4
    # It is in the way of both heads: with other weights both outputs change.
    graph, weights = network.parse(repeated)
    last = graph.trunk()[-2].key
    weights[f"{last}.bias"] += 1
    changed = maps(network.write_back(repeated, weights))
    assert all((after != before).any() for before, after in zip(maps(start), changed, strict=True))


def test_the_twin_has_weights_of_its_own(start: bytes) -> None:
    graph, weights = network.parse(shape.repeat_last_block(start))
    before = [step.key for step in graph.trunk() if step.key][-8:-4]
    for key in before:
        weights[f"{key}.weight"] = weights[f"{key}.weight"] * 2
    _, again = network.parse(network.write_back(shape.repeat_last_block(start), weights))
    own = network.parse(shape.repeat_last_block(start))[1]
    changed = {key for key in own if (again[key] != own[key]).any()}
    assert changed == {f"{key}.weight" for key in before}


def test_a_repeated_block_can_go_again(start: bytes) -> None:
    repeated = shape.repeat_last_block(start)
    known = list(channels.blocks(network.parse(start)[0]))
    twin = list(channels.blocks(network.parse(repeated)[0]))[-1]
    assert twin not in known
    there_and_back = channels.without_blocks(repeated, [twin])
    assert layers(there_and_back) == layers(start)
    for before, after in zip(maps(start), maps(there_and_back), strict=True):
        assert np.array_equal(before, after)


def test_the_step_puts_weights_in_and_writes_one_file(start: bytes, tmp_path: Path) -> None:
    graph, weights = network.parse(start)
    network.save_npz(tmp_path / "w.npz", network.with_log_sizes(graph, weights))
    (tmp_path / "a.tflite").write_bytes(start)
    arguments = ["shape", tmp_path / "a.tflite", tmp_path / "b.tflite", "--weights", tmp_path / "w.npz"]
    assert main([*map(str, arguments), "--repeat-last"]) == 0
    written = (tmp_path / "b.tflite").read_bytes()
    assert layers(written) == layers(start) + 4
    assert maps(written)[0].shape == (1, 48, 48, 4)


@pytest.mark.parametrize(("content", "told"), [(None, "cannot read the network"), (b"no such file", "no .tflite file")])
def test_what_is_no_network_is_told(
    content: bytes | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content:
        (tmp_path / "a.tflite").write_bytes(content)
    assert main(["shape", str(tmp_path / "a.tflite"), str(tmp_path / "b.tflite"), "--repeat-last"]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "b.tflite").exists()
