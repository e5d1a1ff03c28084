"""What is shipped can be made again, byte for byte, from what is in the project."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from blurguard.detection import model_zoo
from calibration import CalibrationError, base
from calibration.__main__ import main
from tests.conftest import ROOT
from tests.needs import has_training_packages, needs_training_packages

if has_training_packages():
    from calibration import release

pytestmark = needs_training_packages

FACTS = ROOT / "calibration" / "releases" / "far.toml"
MADE = ("blazeface_far.tflite", "blazeface_far_float.tflite", "manifest.toml", "MODEL_CARD.md")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(base.MODELS, tmp_path / "models"))


def test_the_shipped_files_are_those_that_the_checkpoint_makes(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in MADE[:2]:
        (copied / name).unlink()
    assert main(["release", str(FACTS), "--models", str(copied)]) == 0
    for name in MADE:
        assert (copied / name).read_bytes() == (base.MODELS / name).read_bytes(), name
    assert "blazeface_far.tflite: " in capsys.readouterr().out


def test_models_of_other_names_stay_behind_the_new_ones() -> None:
    text = (base.MODELS / "manifest.toml").read_text("utf-8")
    stock, *rest = (spec for spec in model_zoo.all_specs() if not spec.name.startswith("far"))
    assert (stock.name, rest) == ("stock", [])
    head, *_, last = text.split(release.ENTRY)
    again = release.with_entries(release.ENTRY.join([head, last]), model_zoo.all_specs()[:2])
    assert again == text


def test_facts_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    broken = tmp_path / "facts.toml"
    for content in ("name = ", FACTS.read_text("utf-8").replace("ranges =", "range =")):
        broken.write_text(content, "utf-8")
        with pytest.raises(CalibrationError, match="facts of a release"):
            release.load_facts(broken)
