"""The models that are shipped are what the manifest says of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from bench.faults.commands import blurguard
from blurguard.detection import model_zoo
from blurguard.detection.registry import load_detector
from blurguard.settings import Mode, Settings
from blurguard.types import Detections
from calibration.evaluate import crowd_ap, detect_all
from calibration.flatbuffer import operator_name
from calibration.rewrite import CONVOLUTIONS
from calibration.score import SUBSETS, average_precision, hidden_at, load_truth

MANIFEST = model_zoo.load_manifest()
NETWORKS = MANIFEST.networks
LARGEST = {"far": 900_000, "centerface": 2_300_000}  # bytes of the networks of the default model
HEAD_LAYERS = {"far": 4, "centerface": 2}


def layers(data: bytes) -> Counter[tuple[int, int]]:
    """Return how many convolutions have which types of weights and results."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    (graph,) = model.subgraphs
    found = [op for op in graph.operators if operator_name(model, op) in CONVOLUTIONS]
    return Counter((graph.tensors[op.inputs[1]].type, graph.tensors[op.outputs[0]].type) for op in found)


def test_the_networks_of_the_default_model_are_int8_but_for_their_heads() -> None:
    int8, float32 = schema.TensorType.INT8, schema.TensorType.FLOAT32
    assert MANIFEST.models[0].name == "far"
    assert MANIFEST.models[0].networks == [*LARGEST]
    for name, largest in LARGEST.items():
        data = model_zoo.load_weights(NETWORKS[name])  # checks the hash
        assert len(data) <= largest
        found = layers(data)
        assert set(found) == {(int8, int8), (float32, float32)}
        assert found[float32, float32] == HEAD_LAYERS[name]
        assert found[int8, int8] > 50
        twin = model_zoo.load_weights(NETWORKS[f"{name}-float"])
        assert layers(twin) == {(float32, float32): sum(found.values())}
        assert len(data) < 0.31 * len(twin)


def test_the_float_model_is_the_default_one_with_other_networks() -> None:
    default, other = (MANIFEST.model(name) for name in ("far", "far-float"))
    for mode in Mode:
        passes, others = (model.plans[mode].every_pass for model in (default, other))
        assert [f"{each.network}-float" for each in passes] == [each.network for each in others]
        assert [each.scales for each in passes] == [each.scales for each in others]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_manifest_tells_what_a_file_is(name: str) -> None:
    data = model_zoo.load_weights(NETWORKS[name])  # checks the hash
    types: Counter[str] = Counter()
    for (weights, results), count in layers(data).items():
        assert weights == results, "weights and activations are of one type"
        types[{schema.TensorType.INT8: "int8", schema.TensorType.FLOAT32: "float32"}[weights]] += count
    assert (NETWORKS[name].size, NETWORKS[name].layers) == (len(data), dict(types))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("name", [model.name for model in MANIFEST.models])
def test_a_model_finds_in_the_crowd_what_it_found_when_it_was_released(name: str, mode: Mode) -> None:
    ap = crowd_ap(load_detector(Settings(model=name, mode=mode)))
    assert ap == pytest.approx(MANIFEST.model(name).plans[mode].crowd_ap, abs=1.0)  # INT8 kernels differ by processor
    assert ap > 40


@pytest.mark.parametrize("mode", Mode)
def test_the_command_finds_what_the_published_figures_are_of(labeled_crowd: Path, mode: Mode) -> None:
    told = blurguard("detect", labeled_crowd / "crowd.jpg", "--mode", mode, "--min-score", 0.02, "--json", "-")
    (line,) = map(json.loads, told.stdout.splitlines())
    rows = np.array([[*face["box"], face["score"]] for face in line["faces"]], np.float32)
    found, truth = [Detections(rows[:, :4], rows[:, 4])], load_truth(labeled_crowd)
    ap = MANIFEST.model().plans[mode].crowd_ap
    assert 100 * average_precision(truth, found, SUBSETS["hard"]) == pytest.approx(ap, abs=1.0)
    detector = load_detector(Settings(mode=mode))
    same, _ = detect_all(detector, truth)  # as `calibration evaluate` does
    for margin in (Settings().margin, None):
        mine, its = (hidden_at(truth, seen, detector.threshold, margin) for seen in (found, same))
        assert (mine.from_10_px, mine.false_per_picture) == (its.from_10_px, its.false_per_picture)
        assert mine.masked_outside == pytest.approx(its.masked_outside, abs=0.02)
