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
from blurguard.settings import Settings
from blurguard.types import Detections
from calibration.evaluate import crowd_aps, pixels_of
from calibration.flatbuffer import operator_name
from calibration.score import SUBSETS, average_precision, hidden_at, load_truth

LARGEST = 900_000  # bytes of the default model
HEAD_LAYERS = 4


def layers(data: bytes) -> Counter[tuple[int, int]]:
    """Return how many convolutions have which types of weights and results."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    (graph,) = model.subgraphs
    found = [op for op in graph.operators if operator_name(model, op) in ("CONV_2D", "DEPTHWISE_CONV_2D")]
    return Counter((graph.tensors[op.inputs[1]].type, graph.tensors[op.outputs[0]].type) for op in found)


def test_the_default_model_is_int8_but_for_its_heads() -> None:
    spec = model_zoo.get_spec()
    data = model_zoo.load_weights(spec)  # checks the hash
    assert spec.name == "far"
    assert len(data) <= LARGEST
    int8, float32 = schema.TensorType.INT8, schema.TensorType.FLOAT32
    found = layers(data)
    assert set(found) == {(int8, int8), (float32, float32)}
    assert found[float32, float32] == HEAD_LAYERS
    assert found[int8, int8] > 80
    twin = model_zoo.load_weights(model_zoo.get_spec("far-float"))
    assert layers(twin) == {(float32, float32): sum(found.values())}
    assert len(data) < 0.31 * len(twin)


@pytest.mark.parametrize("name", [spec.name for spec in model_zoo.all_specs()])
def test_the_manifest_tells_what_a_file_is(name: str) -> None:
    spec = model_zoo.get_spec(name)
    data = model_zoo.load_weights(spec)  # checks the hash
    types: Counter[str] = Counter()
    for (weights, results), count in layers(data).items():
        assert weights == results, "weights and activations are of one type"
        types[{schema.TensorType.INT8: "int8", schema.TensorType.FLOAT32: "float32"}[weights]] += count
    assert (spec.size, spec.layers) == (len(data), dict(types))


@pytest.mark.parametrize("name", [spec.name for spec in model_zoo.all_specs()])
def test_a_model_finds_in_the_crowd_what_it_found_when_it_was_released(name: str) -> None:
    spec = model_zoo.get_spec(name)
    for mode, ap in crowd_aps(spec, model_zoo.load_weights(spec)).items():
        assert ap == pytest.approx(spec.crowd_ap[mode], abs=1.0), mode  # INT8 kernels differ between processors
        assert ap > 40


def test_the_command_finds_what_the_published_figures_are_of(labeled_crowd: Path) -> None:
    for mode, ap in model_zoo.get_spec().crowd_ap.items():
        told = blurguard("detect", labeled_crowd / "crowd.jpg", "--mode", mode, "--min-score", 0.02, "--json", "-")
        (line,) = map(json.loads, told.stdout.splitlines())
        rows = np.array([[*face["box"], face["score"]] for face in line["faces"]], np.float32)
        found, truth = [Detections(rows[:, :4], rows[:, 4])], load_truth(labeled_crowd)
        assert 100 * average_precision(truth, found, SUBSETS["hard"]) == pytest.approx(ap, abs=1.0)
        detector = load_detector(Settings(mode=mode))
        same = [detector.detect(pixels_of(truth[0]), 0.02)]
        for margin in (Settings().margin, None):
            mine, its = (hidden_at(truth, seen, detector.threshold, margin) for seen in (found, same))
            assert (mine.from_10_px, mine.false_per_picture) == (its.from_10_px, its.false_per_picture)
            assert mine.masked_outside == pytest.approx(its.masked_outside, abs=0.02)
