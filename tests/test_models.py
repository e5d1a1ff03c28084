"""The weights are the ones that were measured, and they run at any size, quietly."""

import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from blurguard.detection import model_zoo
from blurguard.detection.interpreter import CACHE_BYTES, Network, interpreter_class
from blurguard.errors import ModelError
from blurguard.settings import Mode
from tests.children import look_for_runtime, run_network
from tests.conftest import ROOT, Starter


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a copy of the folder of models."""
    return Path(shutil.copytree(ROOT / "models", tmp_path / "models"))


@pytest.fixture(scope="module")
def network() -> Network:
    return fresh_network()


def fresh_network(name: str = "far") -> Network:
    spec = model_zoo.load_manifest().networks[name]
    return Network(spec, model_zoo.load_weights(spec))


def edit_manifest(folder: Path, old: str, new: str) -> None:
    path = folder / model_zoo.MANIFEST
    text, count = re.subn(old, new, path.read_text("utf-8"), count=1, flags=re.MULTILINE)
    assert count == 1
    path.write_text(text, "utf-8")


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_manifest_and_files_agree() -> None:
    manifest = model_zoo.load_manifest()
    assert model_zoo.models_dir() == ROOT / "models"
    assert len({model.name for model in manifest.models}) == len(manifest.models) >= 1
    for model in manifest.models:
        assert set(model.plans) == set(Mode) and model.evidence
        assert all(0 < plan.threshold < 1 for plan in model.plans.values())
        assert {each.network for plan in model.plans.values() for each in plan.every_pass} == set(model.networks)
    assert {name for model in manifest.models for name in model.networks} == manifest.networks.keys()
    for name, spec in manifest.networks.items():
        assert spec.name == name
        assert hashlib.sha256((ROOT / "models" / spec.file).read_bytes()).hexdigest() == spec.sha256
        assert spec.license and spec.source and spec.training_data


def test_the_first_model_is_the_default() -> None:
    manifest = model_zoo.load_manifest()
    assert manifest.model() == manifest.models[0] == manifest.model(manifest.models[0].name)


def test_an_unknown_model_is_an_error_that_tells_the_known_ones() -> None:
    manifest = model_zoo.load_manifest()
    with pytest.raises(ModelError, match=rf"no model named 'better'; there are: {manifest.models[0].name}, "):
        manifest.model("better")


def test_a_flipped_bit_is_refused(copied: Path) -> None:
    for spec in model_zoo.load_manifest(copied).networks.values():
        data = bytearray(model_zoo.load_weights(spec, copied))
        data[len(data) // 2] ^= 1
        (copied / spec.file).write_bytes(data)
        with pytest.raises(ModelError, match=rf"{spec.file}: .*SHA-256 differs"):
            model_zoo.load_weights(spec, copied)


def test_a_missing_network_is_an_error(copied: Path) -> None:
    spec = model_zoo.load_manifest(copied).networks["far"]
    (copied / spec.file).unlink()
    with pytest.raises(ModelError, match=f"{spec.file}: cannot read the model"):
        model_zoo.load_weights(spec, copied)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("^stride", "stryde = 4\nstride", "stryde"),
        ("^stride.*", "", "stride"),
        (r"^\[model.fast\]", "[model.quick]", "fast"),
        ("^threshold.*", "", "threshold"),
        ('network = "[a-z-]*"', 'network = "absent"', "absent"),
        ('scales = "[a-z]*"', 'scales = "absent"', "absent"),
        (r"probability = \[", "probability = [1.0, ", "probability"),
        ("^threshold = .*", "threshold = 1.5", "threshold"),
        ("^threshold = .*", 'threshold = "high"', "not a valid manifest"),
        ("^bytes_per_px = .*", "bytes_per_px = 0", "bytes_per_px"),
        ('^(rotated = .*)"rotated"', r'\1"coarse"', "one scale"),
        ("^box_scale.*", "box_scale = [1.1]", "not a valid manifest"),
        ("^stride.*", "stride = ", "not a valid manifest"),
        (r"\[\[original\]\]", "[[origin]]", "unknown tables"),
        (r"\[\[network\]\]", "[[networks]]", "networks"),
    ],
)
def test_a_manifest_that_is_not_exactly_right_is_refused(copied: Path, old: str, new: str, told: str) -> None:
    edit_manifest(copied, old, new)
    with pytest.raises(ModelError, match=told):
        model_zoo.load_manifest(copied)


def test_adding_a_model_is_data(copied: Path) -> None:
    path = copied / model_zoo.MANIFEST
    text = path.read_text("utf-8")
    ours = text[text.index("[[model]]") : text.index("[[model]]", text.index("[[model]]") + 1)]
    entry = re.sub("^name = .*", 'name = "other"', ours, count=1, flags=re.MULTILINE)
    path.write_text(f"{text}\n{entry}", "utf-8")
    manifest = model_zoo.load_manifest(copied)
    assert manifest.model("other").plans == manifest.model().plans


@pytest.mark.parametrize("name", model_zoo.load_manifest().networks)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (192, 192), (64, 320), (480, 96)])
def test_every_network_runs_at_any_size(name: str, height: int, width: int) -> None:
    boxes, logits = fresh_network(name).run(picture(height, width))
    assert boxes.shape == (height // 4, width // 4, 4) and logits.shape == (height // 4, width // 4)
    assert boxes.dtype == logits.dtype == np.float32
    assert np.isfinite(boxes).all() and np.isfinite(logits).all()


def test_results_are_those_of_a_fresh_network_whatever_ran_before(network: Network) -> None:
    fresh = fresh_network().run(picture(96, 128))
    kept = network.run(picture(96, 128))
    network.run(picture(128, 96, seed=1))
    network.run(picture(96, 128, seed=2))
    again = network.run(picture(96, 128))
    for one, two, three in zip(fresh, kept, again, strict=True):
        assert np.array_equal(one, two) and np.array_equal(one, three)


def test_a_size_the_network_cannot_run_at_is_an_error(network: Network) -> None:
    with pytest.raises(ModelError, match=f"network {network.spec.name}: the runtime failed at 45x33 px"):
        network.run(picture(33, 45))


def test_bytes_that_are_no_model_are_an_error(network: Network) -> None:
    with pytest.raises(ModelError, match="the runtime failed"):
        Network(network.spec, b"TFL3" * 2000).run(picture(32, 32))


def test_kept_interpreters_stay_within_their_bound() -> None:
    network = fresh_network()
    for side in (*range(32, 1000, 128), 32, 1120, 64):
        network.run(np.zeros((side, side, 3), np.uint8))
        held = network.spec.bytes_per_px * sum(height * width for height, width in network._interpreters)
        assert held <= max(CACHE_BYTES, network.spec.bytes_per_px * side * side)
        assert (side, side) in network._interpreters


def test_the_interpreter_used_last_is_dropped_last() -> None:
    network = fresh_network()
    for side in (736, 608, 736, 608, 736):  # both fit
        network.run(np.zeros((side, side, 3), np.uint8))
    kept = network._interpreters[736, 736]
    network.run(np.zeros((544, 544, 3), np.uint8))
    assert network._interpreters.get((736, 736)) is kept
    assert (608, 608) not in network._interpreters


def test_the_runtime_says_nothing_and_stderr_works_afterwards(start_python: Starter) -> None:
    process = start_python(run_network)
    told, wrong = process.communicate()
    assert (process.returncode, told, wrong) == (0, "", "heard\n")


def test_which_runtime_works_is_told() -> None:
    _, name = interpreter_class()
    assert name.split()[0] in ("ai-edge-litert", "tflite-runtime") and name.split()[1][0].isdigit()


def test_without_a_runtime_the_error_tells_what_to_install(start_python: Starter) -> None:
    told, wrong = start_python(look_for_runtime).communicate()
    assert "pip install ai-edge-litert" in told, wrong
