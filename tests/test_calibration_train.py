"""Retraining: the network as PyTorch sees it, crops and their targets, losses, and runs that are taken up again."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from calibration import CalibrationError, base, crops, flatbuffer
from tests.conftest import Crowd
from tests.needs import has_training_packages, needs_training_packages

if has_training_packages():
    import torch

    from calibration import losses, network, train

Array = NDArray[np.float32]
IGNORE = 8
BASE = base.MODELS / base.REWRITTEN_FILE


class Tiny:
    """Writes a float .tflite of 64 px with what the published sparse network has: PADs, cells as channels, RESHAPEs."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(5)
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.buffers = 3, [schema.BufferT()]
        self.model.subgraphs, self.model.operatorCodes = [self.graph], []
        self.graph.tensors, self.graph.operators = [], []

    def tensor(self, *shape: int, values: NDArray[Any] | None = None) -> int:
        entry = schema.TensorT()
        entry.name, entry.shape, entry.type = f"t{len(self.graph.tensors)}", list(shape), schema.TensorType.FLOAT32
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            entry.buffer = len(self.model.buffers) - 1
            if values.dtype == np.int32:
                entry.type = schema.TensorType.INT32
        self.graph.tensors.append(entry)
        return len(self.graph.tensors) - 1

    def noise(self, *shape: int) -> int:
        return self.tensor(*shape, values=self.random.normal(0, 0.3, shape).astype(np.float32))

    def add(self, kind: str, inputs: list[int], shape: tuple[int, ...], **options: Any) -> int:
        code, op = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        names = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D", "DEPTH_TO_SPACE": "DepthToSpace"}
        name = names.get(kind, kind.title()) + "Options"
        op.builtinOptionsType, op.builtinOptions = getattr(schema.BuiltinOptions, name), getattr(schema, name + "T")()
        for option, value in options.items():
            setattr(op.builtinOptions, option, value)
        op.opcodeIndex, op.inputs, op.outputs = len(self.model.operatorCodes), inputs, [self.tensor(*shape)]
        self.model.operatorCodes.append(code)
        self.graph.operators.append(op)
        return int(op.outputs[0])

    def pad(self, x: int, side: int, channels: int) -> int:
        around = self.tensor(4, 2, values=np.array([[0, 0], [1, 1], [1, 1], [0, 0]], np.int32))
        return self.add("PAD", [x, around], (1, side + 2, side + 2, channels))

    def head(self, x: int, channels: int) -> int:
        """16 x 16 x 8 -> (1, 256, channels), four cells at a time."""
        wide, valid = 4 * channels, schema.Padding.VALID
        strides = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
        x = self.add("CONV_2D", [x, self.noise(wide, 1, 1, 8), self.noise(wide)], (1, 16, 16, wide), **strides)
        weights = [self.noise(1, 3, 3, wide), self.noise(wide)]
        strides |= {"strideH": 2, "strideW": 2, "depthMultiplier": 1, "padding": valid}
        x = self.add("DEPTHWISE_CONV_2D", [self.pad(x, 16, wide), *weights], (1, 8, 8, wide), **strides)
        x = self.add("DEPTH_TO_SPACE", [x], (1, 16, 16, channels), blockSize=2)
        shape = np.array([1, 256, channels], np.int32)
        return self.add("RESHAPE", [x, self.tensor(3, values=shape)], (1, 256, channels))

    def data(self) -> bytes:
        image = x = self.tensor(1, 64, 64, 3)
        options = {"strideH": 2, "strideW": 2, "dilationHFactor": 1, "dilationWFactor": 1}
        options |= {"padding": schema.Padding.VALID, "fusedActivationFunction": schema.ActivationFunctionType.RELU}
        for side, channels in ((64, 3), (32, 8)):
            weights = [self.noise(8, 3, 3, channels), self.noise(8)]
            x = self.add("CONV_2D", [self.pad(x, side, channels), *weights], (1, side // 2, side // 2, 8), **options)
        self.graph.inputs, self.graph.outputs = [image], [self.head(x, 16), self.head(x, 1)]
        return flatbuffer.packed(self.model, share=False)


@pytest.fixture(scope="module", params=["base", "tiny"])
def file(request: pytest.FixtureRequest) -> bytes:
    return BASE.read_bytes() if request.param == "base" else Tiny().data()


@pytest.fixture(scope="module")
def image(crowd: Crowd) -> Array:
    """Return (1, 192, 192, 3) in [-1, 1] of the crowd."""
    return (crowd[0][600:792, 200:392].astype(np.float32) / 127.5 - 1)[None]


def lite(data: bytes, image: Array) -> list[Array]:
    """Return what LiteRT makes of it: boxes and scores, (cells, channels)."""
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    maps = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    return [values.reshape(-1, values.shape[-1]) for values in sorted(maps, key=lambda values: -values.shape[-1])]


def maps_of(graph: network.Graph, weights: network.Weights, image: Array) -> list[Array]:
    with torch.no_grad():
        maps = graph(weights, torch.from_numpy(image).permute(0, 3, 1, 2))
    return [values.permute(0, 2, 3, 1).reshape(-1, values.shape[1]).numpy() for values in maps]


def fitted(data: bytes, image: Array) -> Array:
    """Return the picture at the size that the file wants."""
    side = schema.ModelT.InitFromPackedBuf(data, 0).subgraphs[0].tensors
    wanted = 64 if len(side) < 60 else 192
    return image[:, :wanted, :wanted]


@needs_training_packages
def test_it_agrees_with_litert(file: bytes, image: Array) -> None:
    image = fitted(file, image)
    for got, expected in zip(maps_of(*network.parse(file), image), lite(file, image), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@needs_training_packages
def test_log_sizes_keep_centers_and_scores_and_the_order_of_sizes(file: bytes, image: Array) -> None:
    image = fitted(file, image)
    graph, weights = network.parse(file)
    changed = network.with_log_sizes(graph, weights)
    (old, old_scores), (new, scores) = maps_of(graph, weights, image), maps_of(graph, changed, image)
    np.testing.assert_allclose(new[:, :2], old[:, :2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(new[:, 2:], math.log(40) + (old[:, 2:4] - 40) / 100, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(scores, old_scores)
    assert (network.box_channels(graph, weights), network.box_channels(graph, changed)) == (16, 4)
    with pytest.raises(CalibrationError, match="expected 16"):
        network.with_log_sizes(graph, changed)


@needs_training_packages
def test_weights_written_back_are_what_litert_runs(file: bytes, image: Array) -> None:
    image = fitted(file, image)
    graph, weights = network.parse(file)
    for kept, same in zip(lite(file, image), lite(network.write_back(file, weights), image), strict=True):
        np.testing.assert_array_equal(kept, same)
    changed = network.with_log_sizes(graph, weights)
    written = network.write_back(file, changed)
    assert len(written) <= len(file)
    for got, expected in zip(lite(written, image), maps_of(graph, changed, image), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    again, read = network.parse(written)
    assert again.head(again.boxes) == graph.head(graph.boxes)
    assert all(torch.equal(read[key], changed[key]) for key in changed)


@needs_training_packages
def test_weights_of_another_network_are_refused(file: bytes) -> None:
    _, weights = network.parse(file)
    with pytest.raises(CalibrationError, match="another network"):
        network.write_back(file, {key: value for key, value in weights.items() if not key.startswith("000")})
    weights["000.weight"] = weights["000.weight"][:, :1]
    with pytest.raises(CalibrationError, match="another network: layer 000"):
        network.write_back(file, weights)


@needs_training_packages
def test_an_operator_that_it_does_not_know_is_refused() -> None:
    model = schema.ModelT.InitFromPackedBuf(BASE.read_bytes(), 0)
    pool = next(c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.MAX_POOL_2D)
    pool.builtinCode = pool.deprecatedBuiltinCode = schema.BuiltinOperator.AVERAGE_POOL_2D
    with pytest.raises(CalibrationError, match="AVERAGE_POOL_2D"):
        network.parse(flatbuffer.packed(model))


@needs_training_packages
def test_stored_weights_are_small_and_come_back(tmp_path: Path) -> None:
    _, weights = network.parse(BASE.read_bytes())
    network.save_npz(tmp_path / "w.npz", weights)
    assert (tmp_path / "w.npz").stat().st_size <= 2_200_000
    back = network.load_npz(tmp_path / "w.npz")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)
    (tmp_path / "w.npz").write_bytes(b"PK nothing")
    with pytest.raises(CalibrationError, match="cannot read the weights"):
        network.load_npz(tmp_path / "w.npz")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of pictures with one white face each, on gray noise, in two events of three scenes."""
    folder, random, lines = tmp_path / "data", np.random.default_rng(3), []
    folder.mkdir()
    for index in range(12):
        pixels = random.integers(60, 110, (240, 320, 3), np.uint8)
        x, y, width, height = (int(v) for v in (*random.integers(20, 150, 2), *random.integers(24, 80, 2)))
        pixels[y : y + height, x : x + width] = 255
        cv2.imwrite(str(folder / f"{index}.png"), pixels)
        where = {"event": f"e{index % 2}", "scene": f"s{index % 6}"}
        face = [x, y, width, height, 0]
        lines.append(json.dumps({"image": f"{index}.png", "width": 320, "height": 240, **where, "faces": [face]}))
    (folder / "faces.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


SMALL = crops.Plan(side=128, per_picture=2)


def faces_of(batch: crops.Batch, index: int) -> Array:
    """Return (N, 4) x0 y0 x1 y1 of the faces that a batch's targets tell, px of the crop."""
    rows, columns = np.nonzero(batch.share[index])
    x, y, width, height = batch.boxes[index][:, rows, columns]
    center = np.stack([(columns + 0.5) * 4 + x, (rows + 0.5) * 4 + y], axis=1)
    half = np.exp(np.stack([width, height], axis=1)) / 2
    every = np.concatenate([center - half, center + half], axis=1).astype(np.float32)
    faces: Array = np.unique(every.round(2), axis=0)  # a face's cells tell the same box
    return faces


def test_targets_lie_where_the_faces_are(data: Path) -> None:
    blocks = crops.Blocks(crops.load_pictures(data), SMALL, 12, 0)
    brighter = []
    for batch in blocks[0] + blocks[1]:
        for index in range(12):
            pixels = batch.pixels[index].mean(axis=2)
            outside = np.ones(pixels.shape, np.bool_)
            faces = [slice_of(box) for box in faces_of(batch, index)]
            for rows, columns in faces:
                outside[rows, columns] = False
            brighter += [np.median(pixels[face]) - np.median(pixels[outside]) for face in faces]
    assert len(brighter) > 48  # mosaics have several
    assert np.mean(np.array(brighter) > 20) > 0.95  # some lie on a bright border, or are drowned in noise


def test_faces_keep_their_pixels_in_a_mirrored_crop_too() -> None:
    """Labels count px, so the middle of a face from the first to the last of 20 and 40 is the one of 30."""
    rows, columns = np.mgrid[:240, :320]
    disc = (np.hypot(columns - 110, rows - 90) <= 14).astype(np.uint8) * 200
    faces = np.array([[90, 70, 40, 40]], np.float32)
    picture = crops.Picture(Path("disc.png"), "", "", faces, np.zeros(1, np.bool_))
    decoded = crops.Decoded(picture, {1: np.dstack([disc] * 3)})
    plan, random = crops.Plan(side=192, mosaics=(1.0, 0, 0), small=24, large=60, distant=30), np.random.default_rng(0)
    misses = []
    for _ in range(120):
        crop = crops.crop_of([decoded], 0, plan, random)
        if len(crop.faces) and not crop.ignored[0] and (crop.faces > 8).all() and (crop.faces < 184).all():
            levels = crop.pixels[slice_of(crop.faces[0])].mean(axis=2)
            ys, xs = np.nonzero(levels > (levels.min() + levels.max()) / 2)
            y, x = (part.start for part in slice_of(crop.faces[0]))
            middle = (crop.faces[0, :2] + crop.faces[0, 2:]) / 2
            misses.append([xs.mean() + x - middle[0], ys.mean() + y - middle[1]])
    assert len(misses) > 30
    assert np.median(np.abs(misses), axis=0).max() < 0.12


def slice_of(box: Array) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box.round().astype(int)
    return slice(max(y0, 0), max(y1, 1)), slice(max(x0, 0), max(x1, 1))


def test_crops_follow_from_seed_and_block(data: Path) -> None:
    pictures = crops.load_pictures(data)
    one, other = crops.Blocks(pictures, SMALL, 4, 7), crops.Blocks(pictures, SMALL, 4, 7)
    one[0]
    for expected, got in zip(one[5], other[5], strict=True):
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(expected, got, strict=True))
    assert not np.array_equal(one[4][0].pixels, one[5][0].pixels)
    assert not np.array_equal(one[5][0].pixels, crops.Blocks(pictures, SMALL, 4, 8)[5][0].pixels)
    assert not np.array_equal(one[5][0].pixels, one[5][1].pixels)


def test_batches_have_the_shapes_they_say(data: Path) -> None:
    batch = crops.Blocks(crops.load_pictures(data), SMALL, 4, 0)[0][0]
    assert [values.shape for values in batch] == [
        (4, 128, 128, 3),
        (4, 32, 32),
        (4, 32, 32),
        (4, 4, 32, 32),
        (4, 32, 32),
    ]
    assert [values.dtype for values in batch] == [np.uint8, *[np.float32] * 4]


def targets(*faces: tuple[float, float, float, float, bool], plan: crops.Plan = SMALL) -> tuple[Array, ...]:
    rows = np.array([face[:4] for face in faces], np.float32).reshape(-1, 4)
    ignored = np.array([face[4] for face in faces], np.bool_)
    return crops.targets_of(crops.Crop(np.zeros((128, 128, 3), np.uint8), rows, ignored), plan)


def test_nothing_is_known_where_faces_are_ignored_too_small_or_too_large() -> None:
    small, ignored = (8, 8, 13, 13, False), (40, 40, 60, 64, True)
    heat, counted, _, share = targets(small, ignored)
    assert not heat.any()
    assert not share.any()
    unknown = np.zeros((32, 32), np.bool_)
    unknown[2:4, 2:4] = unknown[10:16, 10:15] = True
    np.testing.assert_array_equal(counted == 0, unknown)
    assert not targets((0, 0, 100, 120, False), plan=crops.Plan(side=128, longest=110))[1][:30, :25].any()


def test_a_face_on_an_ignored_crowd_is_taught() -> None:
    heat, counted, boxes, share = targets((0, 0, 128, 128, True), (60, 60, 70, 72, False))
    row, column = 66 // 4, 65 // 4
    assert counted[row, column] == 1
    assert share[row, column] == share.sum() == pytest.approx(weight(10, 12))
    assert heat[row, column] == heat.max() == pytest.approx(math.exp(-((0.25 / crops.MIN_SIGMA) ** 2) / 2))
    x, y, width, height = boxes[:, row, column]
    assert ((column + 0.5) * 4 + x, (row + 0.5) * 4 + y) == pytest.approx((65, 66))
    assert (math.exp(width), math.exp(height)) == pytest.approx((10, 12))
    assert counted.mean() < 0.1


def weight(width: float, height: float) -> float:
    return float(crops.weights_of(np.array([[width, height]], np.float32))[0])


def test_a_face_counts_alike_wherever_it_is_in_its_cells_and_more_the_larger_it_is() -> None:
    for x in np.arange(40, 44, 0.5):
        _, _, _, share = targets((x - 3, 57, x + 3, 63, False))
        assert share[15, int(x // 4)] > 0
        assert share.sum() == pytest.approx(weight(6, 6))
    _, _, boxes, share = targets((14, 14, 94, 94, False), (100, 100, 108, 108, False))
    large = np.isclose(boxes[2], math.log(80))
    assert share[large].sum() == pytest.approx(weight(80, 80))
    assert (share > 0).sum() > 20
    assert share.sum() == pytest.approx(weight(80, 80) + weight(8, 8))
    assert weight(20, 20) == pytest.approx(1)
    assert weight(1, 1) < weight(8, 8) < 0.6
    assert 2.5 < weight(80, 80) < weight(1000, 1000) < 6


def test_of_two_faces_in_one_place_the_smaller_one_is_taught() -> None:
    _, _, boxes, _ = targets((50, 50, 58, 58, False), (14, 14, 94, 94, False))
    assert boxes[2, 13, 13] == pytest.approx(math.log(8))


def test_a_face_cut_in_half_ends_there_and_one_cut_to_a_tenth_teaches_nothing(tmp_path: Path) -> None:
    faces = np.array([(-20, 0, 20, 40), (-36, 50, 4, 90), (200, 0, 220, 20)], np.float32)
    cut = crops._cut(crops.Crop(np.zeros((100, 100, 3), np.uint8), faces, np.zeros(3, np.bool_)), SMALL)
    np.testing.assert_array_equal(cut.faces, [(-0.5, 0, 20, 40), (-0.5, 50, 4, 90)])
    assert cut.ignored.tolist() == [False, True]


def test_held_back_pictures_share_no_scene_and_come_from_every_event(data: Path) -> None:
    training, held = crops.split(crops.load_pictures(data), 4)
    assert len(training) + len(held) == 12
    assert {picture.event for picture in held} == {"e0", "e1"}
    assert not {p.scene for p in training} & {p.scene for p in held}
    assert [p.path for p in held] == [p.path for p in crops.split(crops.load_pictures(data), 4)[1]]
    assert crops.split(crops.load_pictures(data), 0)[1] == []
    assert len(crops.split(crops.load_pictures(data), 100)[1]) == 4, "of few pictures a third"


def test_a_folder_or_picture_that_cannot_be_read_is_told(tmp_path: Path, data: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot read the labels"):
        crops.load_pictures(tmp_path / "nowhere")
    picture = crops.load_pictures(data)[0]
    picture.path.write_bytes(b"not a picture")
    with pytest.raises(CalibrationError, match="cannot decode"):
        crops.decode(picture)
    with pytest.raises(CalibrationError, match="no picture"):
        crops.Blocks([], SMALL, 1, 0)


def perfect(maps: tuple[Array, ...]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return boxes, logits and targets of a network that knows the answer."""
    wanted = [torch.from_numpy(values)[None] for values in maps]
    return wanted[2].clone(), torch.where(wanted[3] > 0, 20.0, -20.0), wanted


TWO = ((20, 20, 40, 50, False), (80, 80, 92, 90, False))


@needs_training_packages
def test_the_right_answer_costs_nothing_and_each_fault_its_part() -> None:
    boxes, logits, wanted = perfect(targets(*TWO))
    right = losses.losses_of(boxes, logits, wanted)
    assert right.stacked().tolist() == pytest.approx([0, 0, 0, 0], abs=1e-5)
    missed = losses.losses_of(boxes, torch.full_like(logits, -20), wanted)
    assert (missed.heat.item(), missed.overlap.item()) == pytest.approx((20, 0), abs=1e-3)
    doubled = boxes + torch.tensor([0, 0, math.log(2), 0]).view(1, 4, 1, 1)
    wide = losses.losses_of(doubled, logits, wanted)
    assert (wide.heat.item(), wide.overlap.item(), wide.distance.item()) == pytest.approx(
        (0, 0.5, math.log(2)), abs=1e-4
    )
    assert wide.loss.item() == pytest.approx(2 * 0.5 + 0.5 * math.log(2), abs=1e-4)


@needs_training_packages
def test_a_score_beside_the_center_costs_less_the_hotter_its_cell() -> None:
    boxes, logits, wanted = perfect(targets((20, 20, 100, 100, False)))
    costs = []
    for column in (19, 21, 31):
        logits[0, 15, column] = 0.0
        costs.append(losses.losses_of(boxes, logits, wanted).heat.item())
        logits[0, 15, column] = -20.0
    near, middle, far = costs
    assert near < 0.2 * far
    assert near < middle < far
    assert far == pytest.approx(0.5**2 * math.log(2) / weight(80, 80), abs=1e-4)


@needs_training_packages
def test_generalised_iou_of_boxes_apart_is_negative() -> None:
    one, other = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[20.0, 0, 30, 10]])
    iou, generalised = losses.overlaps(one, other)
    assert (iou.item(), generalised.item()) == pytest.approx((0, -1 / 3))


@needs_training_packages
def test_the_score_of_a_poor_box_shall_be_its_iou() -> None:
    boxes, logits, wanted = perfect(targets(*TWO))
    half = boxes + torch.tensor([0, 0, math.log(2), 0]).view(1, 4, 1, 1)
    even = torch.where(wanted[3] > 0, 0.0, logits)  # a score of 0.5, which is the IoU
    assert losses.losses_of(half, even, wanted, quality=True).heat.item() == pytest.approx(0, abs=1e-5)
    assert losses.losses_of(half, logits, wanted, quality=True).heat.item() > 1


@needs_training_packages
def test_what_is_not_known_teaches_nothing() -> None:
    wanted = [torch.from_numpy(values)[None] for values in targets((0, 0, 64, 64, True))]
    logits = torch.zeros(1, 32, 32, requires_grad=True)
    torch.autograd.backward(losses.losses_of(torch.zeros(1, 4, 32, 32), logits, wanted).loss)
    assert logits.grad is not None
    assert not logits.grad[0, :16, :16].any()
    assert (logits.grad[0, 16:, 16:] > 0).all()


def started(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    train.add_parser(parser.add_subparsers())
    args = parser.parse_args(["train", *map(str, arguments)])
    return int(args.run(args))


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


NEW = ["--batch=4", "--side=64", "--held=4", "--watched=0", "--workers=0", "--warmup=2", "--decay=2", "--graph"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.tflite").write_bytes(Tiny().data())
    return tmp_path / "tiny.tflite"


@needs_training_packages
def test_the_loss_falls_and_the_run_is_logged(data: Path, tmp_path: Path, tiny: Path, one_thread: None) -> None:
    out = tmp_path / "run"
    assert started(data, "--out", out, *NEW, tiny, "--steps", "60", "--rate", "0.02", "--watched", "2") == 0
    first, *_, steps, held = log_of(out)
    assert (first["recipe"]["steps"], first["pictures"], first["held"]) == (60, 8, 4)
    assert (steps["step"], steps["rate"], held["step"]) == (60, 0, 60)
    assert 0 <= held["ap_large"] <= 100
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    graph, before = network.parse((out / "graph.tflite").read_bytes())
    recipe = train.Recipe(**first["recipe"])
    state = train._state(graph, before, recipe, {}, torch.device("cpu"))
    untrained = train.Trainer(graph, recipe, state, data, out).validate()
    assert held["held_loss"] < 0.8 * untrained["held_loss"]
    weights = network.load_npz(out / "ema.npz")
    assert network.box_channels(graph, weights) == 4
    network.write_back((out / "graph.tflite").read_bytes(), weights)


@needs_training_packages
def test_a_run_taken_up_again_ends_as_one_that_never_stopped(
    data: Path, tmp_path: Path, tiny: Path, one_thread: None
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    started(data, "--out", whole, *NEW, tiny, "--steps", "9")
    started(data, "--out", halves, *NEW, tiny, "--steps", "9", "--every", "0", "--workers", "1")
    recipe = torch.load(halves / "state.pt", weights_only=True)["recipe"]
    assert recipe["steps"] == 9
    # A kill after the fifth step: the file is the one of that moment.
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / "graph.tflite").write_bytes(tiny.read_bytes())
    graph, weights = network.parse(tiny.read_bytes())
    state = train._state(graph, weights, train.Recipe(**recipe), {}, torch.device("cpu"))
    run = train.Trainer(graph, train.Recipe(**recipe), state, data, killed)
    batches = run._batches(0)
    for _ in range(5):
        run._step(next(batches))
    run._checkpoint()
    started(data, "--out", killed, "--resume", "--watched", "0", "--workers", "0")
    for folder in (halves, killed):
        for name in ("ema.npz", "weights.npz"):
            expected, got = network.load_npz(whole / name), network.load_npz(folder / name)
            assert all(torch.equal(got[key], expected[key]) for key in expected), (folder.name, name)


@needs_training_packages
def test_a_run_told_to_finish_lowers_its_rate_and_ends(
    data: Path, tmp_path: Path, tiny: Path, one_thread: None
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "finish").touch()
    started(data, "--out", out, *NEW, tiny, "--steps", "500", "--every", "0")
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 3  # one step, then the decay
    started(data, "--out", out, "--resume", "--watched", "0", "--workers", "0")  # ended is ended
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 3
    (out / "finish").unlink()
    started(
        data, "--out", out, "--resume", "--watched", "0", "--workers", "0", "--steps", "5", "--rate", "0.5", "--quality"
    )
    state = torch.load(out / "state.pt", weights_only=True)
    assert (state["step"], state["recipe"]["rate"], state["recipe"]["quality"]) == (5, 0.5, True)
    assert (state["recipe"]["batch"], state["recipe"]["decay"]) == (4, 2)


@needs_training_packages
def test_a_new_run_does_not_replace_an_old_one(data: Path, tmp_path: Path, tiny: Path, one_thread: None) -> None:
    out = tmp_path / "run"
    with pytest.raises(CalibrationError, match="no run to resume"):
        started(data, "--out", out, "--resume")
    with pytest.raises(CalibrationError, match="--graph and --steps"):
        started(data, "--out", out)
    started(data, "--out", out, *NEW, tiny, "--steps", "1")
    with pytest.raises(CalibrationError, match="holds a run already"):
        started(data, "--out", out, *NEW, tiny, "--steps", "1")
    init = ("--init", out / "ema.npz")
    started(data, "--out", tmp_path / "next", *NEW, tiny, "--steps", "1", *init)


@needs_training_packages
def test_a_run_that_cannot_be_is_told_and_leaves_nothing(data: Path, tmp_path: Path, tiny: Path) -> None:
    damaged, out = tmp_path / "damaged.tflite", tmp_path / "run"
    damaged.write_bytes(BASE.read_bytes()[:1000])
    with pytest.raises(CalibrationError, match="damaged"):
        started(data, "--out", out, *NEW, damaged, "--steps", "1")
    for option, value in (("--side", "100"), ("--side", "0"), ("--batch", "0"), ("--steps", "-1")):
        with pytest.raises(CalibrationError, match="--side is a multiple of 32 px"):
            started(data, "--out", out, *NEW, tiny, "--steps", "1", option, value)
    assert not out.exists()


@needs_training_packages
def test_a_loss_that_is_no_number_ends_the_run(data: Path, tmp_path: Path, tiny: Path, one_thread: None) -> None:
    with pytest.raises(CalibrationError, match="no number"):
        started(data, "--out", tmp_path / "run", *NEW, tiny, "--steps", "6", "--rate", "1e30")
    assert not (tmp_path / "run" / "state.pt").exists()
