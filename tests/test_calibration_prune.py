"""Pruning: which channels are linked, which ones do little, and that a smaller network is what it should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from calibration import CalibrationError, base, crops, flatbuffer
from calibration.__main__ import main
from tests import test_calibration_train as training
from tests.conftest import Crowd
from tests.needs import has_training_packages, needs_training_packages

if has_training_packages():
    import torch

    from calibration import channels, network, prune, train

pytestmark = needs_training_packages

FILES = {
    "tiny": training.Tiny().data(),
    "sparse": base.start(),
    "padded": (base.MODELS / base.REWRITTEN_FILE).read_bytes(),  # shortcuts get channels of zeros
}
pictures = training.data  # a fixture


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> bytes:
    return FILES[request.param]


@pytest.fixture
def image(file: bytes, crowd: Crowd) -> NDArray[np.float32]:
    return training.fitted(file, (crowd[0][600:792, 200:392].astype(np.float32) / 127.5 - 1)[None])


def groups(data: bytes) -> dict[str, channels.Group]:
    graph, weights = network.parse(data)
    return {group.name: group for group in channels.groups_of(graph, channels.linked_channels(graph, weights))}


def some_of_each_group(data: bytes) -> set[int]:
    """Return a third of the channels of each group."""
    random = np.random.default_rng(2)
    chosen = [random.permutation(group.channels)[: len(group.channels) // 3] for group in groups(data).values()]
    return {int(number) for part in chosen for number in part}


def masks(data: bytes, removed: set[int]) -> dict[int, NDArray[np.bool_]]:
    linked = channels.linked_channels(*network.parse(data))
    return {tensor: ~np.isin(numbers, list(removed)) for tensor, numbers in linked.items()}


def assert_like(got: bytes, expected: bytes, image: NDArray[np.float32], within: float) -> None:
    """Both runtimes give the same for both files."""
    for run in (training.lite, lambda data, image: training.maps_of(*network.parse(data), image)):
        for one, other in zip(run(got, image), run(expected, image), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=within)


def signatures(data: bytes) -> list[tuple[str, str]]:
    """Return the names that a file gives to its input and outputs, and those of the tensors there."""
    model = flatbuffer.unpacked(data)
    tensors = model.subgraphs[0].tensors
    entries = [entry for signature in model.signatureDefs or () for entry in (*signature.inputs, *signature.outputs)]
    return [(entry.name.decode(), tensors[entry.tensorIndex].name.decode()) for entry in entries]


def test_channels_are_linked_through_additions_depthwise_layers_and_cells() -> None:
    assert {name: (group.stage, len(group.channels)) for name, group in groups(FILES["tiny"]).items()} == {
        "000": ("1/2", 8),
        "001": ("1/4", 8),
    }
    sparse = {name: (group.stage, len(group.channels)) for name, group in groups(FILES["sparse"]).items()}
    streams = {"000": ("1/2", 32), "012": ("1/4", 64), "025": ("1/8", 128), "038": ("1/16", 192), "051": ("1/32", 384)}
    assert streams.items() <= sparse.items()
    assert [sparse[name][1] for name in ("002", "006", "010")] == [8, 8, 16]  # middles of blocks
    # A lateral layer and the one that is enlarged and added to it; the latter begins nothing of its own.
    assert (sparse["047"], sparse["034"], sparse["021"]) == (("1/16", 96), ("1/8", 64), ("1/4", 48))
    assert not {"064", "073", "082", "087", "089"} & sparse.keys()  # the last two are the outputs'
    assert len(sparse) == 28


def test_channels_are_linked_through_padding_of_channels() -> None:
    graph, weights = network.parse(FILES["padded"])
    linked, found = channels.linked_channels(graph, weights), groups(FILES["padded"])
    assert [len(found[name].channels) for name in ("000", "012", "020", "024")] == [32, 16, 16, 32]
    wide = next(step for step in graph.steps if step.key == "048")  # the first layer at 1/32 writes 384
    assert sum(len(np.intersect1d(linked[wide.output], group.channels)) for group in found.values()) == 384
    assert set(found["000"].channels) <= set(linked[wide.output].tolist())  # from the stem to there, one stream


def test_every_channel_of_an_addition_is_the_one_it_is_added_to(file: bytes) -> None:
    graph, weights = network.parse(file)
    linked = channels.linked_channels(graph, weights)
    for step in graph.steps:
        for source in (
            step.inputs if step.kind in ("ADD", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "RESIZE_BILINEAR") else ()
        ):
            np.testing.assert_array_equal(linked[source], linked[step.output])
    needed = np.concatenate([linked[tensor] for tensor in (graph.image, graph.boxes, graph.scores)])
    assert not any(set(group.channels) & set(needed.tolist()) for group in groups(file).values())


def test_channels_that_nothing_reads_leave_without_a_trace(file: bytes, image: NDArray[np.float32]) -> None:
    removed = some_of_each_group(file)
    graph, weights = network.parse(file)
    kept = masks(file, removed)
    for step in graph.steps:
        if step.kind == "CONV_2D":
            weights[f"{step.key}.weight"][:, ~kept[step.inputs[0]]] = 0
    unread = network.write_back(file, weights)
    smaller = channels.left_out(unread, removed)
    assert len(smaller) < len(unread)
    assert_like(smaller, unread, image, 5e-5)


def test_parameters_and_macs_fall_as_the_channels_tell(file: bytes) -> None:
    removed = some_of_each_group(file)
    graph, before = network.parse(file)
    less = channels.left_out(file, removed)
    after = network.parse(less)[1]
    kept = {tensor: int(mask.sum()) for tensor, mask in masks(file, removed).items()}
    numbers = products = 0
    tensors = flatbuffer.unpacked(file).subgraphs[0].tensors
    for step in graph.steps:
        if step.key:
            each = step.window**2 * (kept[step.inputs[0]] if step.kind == "CONV_2D" else 1)
            numbers += kept[step.output] * (each + 1)
            _, high, wide, _ = tensors[step.output].shape  # of the file's own input
            products += kept[step.output] * each * high * wide
    side = int(tensors[graph.image].shape[1])
    cells = {tensor: side // scale for tensor, scale in channels.scales_of(graph).items()}
    assert cells == {tensor: int(tensors[tensor].shape[1]) for tensor in cells}
    assert channels.parameters(after) == numbers < channels.parameters(before)
    assert flatbuffer.macs(less, side) == products < flatbuffer.macs(file, side)


def test_what_is_left_can_be_pruned_and_written_again(file: bytes, image: NDArray[np.float32]) -> None:
    smaller = channels.left_out(file, some_of_each_group(file))
    assert network.write_back(smaller, network.parse(smaller)[1])
    assert [group.stage for group in groups(smaller).values()] == [group.stage for group in groups(file).values()]
    assert len(channels.left_out(smaller, some_of_each_group(smaller))) < len(smaller)
    assert_like(channels.left_out(smaller, set()), smaller, image, 0)
    assert signatures(smaller) == signatures(file)
    assert len(flatbuffer.size_constants(smaller)) == len(flatbuffer.size_constants(file))
    with pytest.raises(CalibrationError, match="leave out less"):
        channels.left_out(file, set(groups(file)["000"].channels))


def faces(*rows: tuple[int, int, int, int, bool], side: int = 64) -> crops.Crop:
    """Return a noisy crop in which the faces are bright."""
    pixels = np.random.default_rng(4).integers(40, 110, (side, side, 3), np.uint8)
    for x0, y0, x1, y1, _ in rows:
        pixels[y0:y1, x0:x1] += 120
    found = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    return crops.Crop(pixels, found, np.array([row[4] for row in rows], np.bool_))


def test_activations_are_told_for_faces_each_counting_alike_and_for_what_is_elsewhere() -> None:
    graph, weights = network.parse(FILES["tiny"])
    crop = faces((4, 8, 12, 16, False), (24, 24, 64, 48, False), (0, 56, 16, 64, True))
    activity = prune.measure(graph, weights, [crop])
    first, second = (step for step in graph.steps if step.key in ("000", "001"))
    with torch.no_grad():
        tiny = network.Graph((first, second), graph.image, second.output, second.output)
        values = tiny(weights, torch.from_numpy(crop.pixels).permute(2, 0, 1)[None].float() / 127.5 - 1)[0][0].numpy()
    small, large = values[:, 2:4, 1:3].mean(axis=(1, 2)), values[:, 6:12, 6:16].mean(axis=(1, 2))
    outside = np.ones((16, 16), np.bool_)
    outside[2:4, 1:3] = outside[6:12, 6:16] = outside[14:, :4] = False
    in_faces, elsewhere = activity.size[second.output]
    np.testing.assert_allclose(in_faces, (small + large) / 2, rtol=1e-4)
    np.testing.assert_allclose(elsewhere, values[:, outside].mean(axis=1), rtol=1e-4)
    with pytest.raises(CalibrationError, match="no face"):
        prune.measure(graph, weights, [faces((0, 56, 16, 64, True))])


def ranked(activity: channels.Activity, rank: str, weights: network.Weights) -> list[int]:
    """Return the positions of the channels of Tiny's second layer, from the one that does least."""
    graph, _ = network.parse(FILES["tiny"])
    linked = channels.linked_channels(graph, weights)
    output = next(step.output for step in graph.steps if step.key == "001")
    return [int(place) for place in np.argsort(prune.ranking(graph, weights, linked, activity, rank)[linked[output]])]


def test_channels_are_ranked_by_faces_by_weights_and_by_both() -> None:
    graph, weights = network.parse(FILES["tiny"])
    weights = {key: torch.ones_like(value) for key, value in weights.items()}
    size = {step.inputs[0]: np.ones((2, 8)) for step in graph.steps if step.kind == "CONV_2D" and step.inputs[0]}
    last = max(size)
    size[last] = np.array([[5, 1, 1, 3, 4, 5, 6, 7], [5, 3, 1.5, 9, 4, 9, 9, 9]])
    activity = channels.Activity(size, {})
    # 1 in faces and 3 elsewhere tells them apart better than 1 and 1.5 do.
    assert ranked(activity, "attention", weights)[:2] == [2, 1]
    weights["001.weight"][6] *= 0.5
    weights["002.weight"][:, 6] *= 0.5
    weights["001.weight"][7] *= 0.8
    assert ranked(activity, "l1", weights)[:2] == [6, 7]
    assert ranked(activity, "attention", weights)[-1] != 6
    both = ranked(activity, "both", weights)
    assert both.index(6) < ranked(activity, "attention", weights).index(6)
    assert both[0] == 2


def test_of_each_group_those_that_do_least_leave() -> None:
    wide, narrow = channels.Group("000", 2, tuple(range(10))), channels.Group("001", 2, (10, 11, 12))
    ranks = np.array([3, 0.1, 3, 0.2, 3, 0.1, 3, 3, 3, 3, 0, 0, 0])
    assert prune._least([wide, narrow], ranks, 0.2, 1) == {1, 5, 10}
    assert prune._least([wide, narrow], ranks, 0.25, 4) == {1, 5}
    assert prune._least([wide], ranks, 0.99, 4) == {1, 5, 3, 0, 2, 4}
    assert not prune._least([wide, narrow], ranks, 0, 1)


def test_what_was_read_from_a_channel_is_laid_upon_one_like_it() -> None:
    data = FILES["sparse"]
    graph, weights = network.parse(data)
    linked = channels.linked_channels(graph, weights)
    twin, other = linked[next(step.output for step in graph.steps if step.key == "002")][:2].tolist()
    for key in ("002.weight", "002.bias", "003.weight", "003.bias"):
        weights[key][0] = 2 * weights[key][1] if key[:3] == "002" else weights[key][1]
    weights["003.bias"][:2] = torch.tensor([0.75, 0.25])  # which the bias of the reader must make good
    data = network.write_back(data, weights)
    crop = faces((20, 20, 50, 60, False), (80, 30, 86, 36, False), side=192)
    image = (crop.pixels.astype(np.float32) / 127.5 - 1)[None]
    smaller = channels.left_out(data, {twin}, prune.measure(graph, weights, [crop]))
    bare = channels.left_out(data, {twin})
    assert twin != other
    (_, scores), (_, got), (_, without) = (training.lite(file, image) for file in (data, smaller, bare))
    assert abs(got - scores).mean() < 0.02 * abs(without - scores).mean()


@pytest.mark.parametrize(("name", "blocks"), [("sparse", 13), ("padded", 9), ("tiny", 0)])
def test_a_block_that_adds_nothing_leaves_without_a_trace(name: str, blocks: int, crowd: Crowd) -> None:
    data = FILES[name]
    graph, weights = network.parse(data)
    found = channels.blocks(graph)
    assert len(found) == blocks
    dropped = [*found][:2] + [*found][-1:]
    for first in dropped:
        last = next(step for step in graph.steps if found[first][0] == step.output).inputs
        key = next(
            step.key for step in graph.steps if step.output in last and step.key and step.output != found[first][1]
        )
        weights[f"{key}.weight"].zero_()
        weights[f"{key}.bias"].zero_()
    idle = network.write_back(data, weights)
    smaller = channels.without_blocks(idle, dropped)
    image = training.fitted(data, (crowd[0][600:792, 200:392].astype(np.float32) / 127.5 - 1)[None])
    assert_like(smaller, idle, image, 5e-5)
    assert signatures(smaller) == signatures(data)
    assert len(network.parse(smaller)[1]) == len(weights) - 8 * len(dropped)  # four layers each
    with pytest.raises(CalibrationError, match="no block to drop begins with 002"):
        channels.without_blocks(data, ["002"])


def test_a_damaged_file_is_told(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.tflite").write_bytes(FILES["padded"][:1000])
    assert main(["prune", str(tmp_path / "damaged.tflite"), str(pictures), "--out", str(tmp_path / "out")]) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "tiny.tflite").write_bytes(FILES["tiny"])
    return tmp_path / "tiny.tflite"


QUICK = ["--side=64", "--crop=64", "--held=4", "--pictures=4"]


def test_the_step_writes_what_training_goes_on_from(
    pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["prune", str(tiny), str(pictures), *QUICK, "--multiple=2", "--out"]
    assert main([*asked, str(tmp_path / "out"), "--share", "0.5", "--table"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert main([*asked, str(tmp_path / "again"), "--share", "0.5"]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert [(row[0], row[1:3]) for row in rows] == [
        ("nothing", ["8", "8"]),
        ("50% of all", ["4", "4"]),
        ("50% of 1/2", ["4", "8"]),
        ("50% of 1/4", ["8", "4"]),
        ("25% of 000", ["6", "8"]),
        ("50% of 000", ["4", "8"]),
    ]
    assert all(row[-1].count(" / ") == 2 for row in rows)
    for name in ("graph.tflite", "ema.npz"):
        assert (tmp_path / "out" / "0.5" / name).read_bytes() == (tmp_path / "again" / "0.5" / name).read_bytes()
    smaller = tmp_path / "out" / "0.5"
    graph, _ = network.parse((smaller / "graph.tflite").read_bytes())
    recipe = train.Recipe(steps=1, batch=4, side=64, held=4, warmup=0)
    state = train._state(graph, network.load_npz(smaller / "ema.npz"), recipe, {}, torch.device("cpu"))
    run = train.Trainer(graph, recipe, state, pictures, tmp_path)
    before = state.weights["000.weight"].detach().clone()
    run._step(next(run._batches(0)))
    assert before.shape[0] == 4
    assert not torch.equal(state.weights["000.weight"], before)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stage", "1/3"], "no stage or group 1/3; there are 1/2, 1/4, 000, 001"),
        (["--drop", "000"], "no block to drop begins with 000"),
        (["--share", "1"], "at least 0 and less than 1"),
        (["--share", "0.2", "-0.1"], "at least 0 and less than 1"),
        (["--multiple", "0"], "--multiple must be 1 or more"),
        (["--weights", "nothing.npz"], "cannot read the weights nothing.npz"),
    ],
)
def test_what_cannot_be_done_is_told(
    arguments: list[str], told: str, pictures: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(tiny), str(pictures), "--out", str(tmp_path / "out"), *QUICK, *arguments]) == 1
    assert told in capsys.readouterr().err


def test_a_network_that_is_not_there_is_told(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(tmp_path / "no.tflite"), str(pictures), "--out", str(tmp_path / "out"), *QUICK]) == 1
    assert "cannot read the network" in capsys.readouterr().err
