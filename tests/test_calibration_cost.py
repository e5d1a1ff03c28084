"""The table of what networks cost: it tells the truth about bytes and multiplications, and of each model in turn."""

from __future__ import annotations

import argparse
import sys

import pytest

from blurguard.detection import model_zoo
from calibration import CalibrationError, cost, flatbuffer

NETWORKS = model_zoo.load_manifest().networks


def printed(capsys: pytest.CaptureFixture[str], *given: str) -> list[list[str]]:
    parser = argparse.ArgumentParser()
    cost.add_parser(parser.add_subparsers())
    cost.run(parser.parse_args(["cost", *given]))
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_each_model_has_its_bytes_its_multiplications_and_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    head, _, *rows = printed(capsys, "stock", "far", "--side", "64", "--rounds", "1")
    stock, far, *memory = rows
    models = [model.name for model in model_zoo.load_manifest().models]
    assert head == ["model", "bytes", "64 px: MMAC, ms"]
    for row, name in ((stock, "stock"), (far, "far")):
        assert row[0] == name
        assert row[1].startswith(f"{len(model_zoo.load_weights(NETWORKS[name])):,} (")
    assert stock[1].endswith("(1.00x)") and stock[2].endswith("(1.00x)")
    assert [row[0] for row in memory] == ["model", "---", *models]
    assert all(1 < float(megabytes) < 1000 for row in memory[2:] for megabytes in row[1:])


def test_multiplications_are_those_of_the_side_that_is_asked_for() -> None:
    data = model_zoo.load_weights(NETWORKS["far"])
    assert flatbuffer.macs(data, 128) == 4 * flatbuffer.macs(data, 64) > 4e7


@pytest.mark.parametrize(
    ("model", "side", "message"),
    [("stock", 100, "multiples of 32 px: 100"), ("absent", 64, "no network absent; .*far, ")],
)
def test_a_side_or_a_network_that_does_not_exist_is_an_error(model: str, side: int, message: str) -> None:
    arguments = argparse.Namespace(models=[model], side=[side], rounds=1)
    with pytest.raises(CalibrationError, match=message):
        cost.run(arguments)
