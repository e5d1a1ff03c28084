"""Shipped networks can be made again, byte for byte, from what is in the project."""

from __future__ import annotations

import shutil
import tomllib
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

RELEASES = sorted((ROOT / "calibration" / "releases").glob("*.toml"))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(base.MODELS, tmp_path / "models"))


@pytest.mark.parametrize("facts", RELEASES, ids=lambda path: path.stem)
def test_the_shipped_files_are_those_that_the_checkpoint_makes(
    facts: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tomllib.loads(facts.read_text("utf-8"))
    specs = [spec for name, spec in model_zoo.load_manifest().networks.items() if name.startswith(known["name"])]
    made = [*(spec.file for spec in specs), known["card_file"]]
    for name in made:
        (copied / name).unlink(missing_ok=True)
    assert main(["release", str(facts), "--models", str(copied)]) == 0
    for name in [*made, model_zoo.MANIFEST]:
        assert (copied / name).read_bytes() == (base.MODELS / name).read_bytes(), name
    assert f"{known['file']}: " in capsys.readouterr().out


def test_every_network_but_the_original_one_has_a_release() -> None:
    names = {release.load_facts(facts).name for facts in RELEASES}
    shipped = model_zoo.load_manifest().networks.keys() - {"stock"}
    assert shipped == {name for stem in names for name in (stem, f"{stem}-float")}


def test_facts_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    broken = tmp_path / "facts.toml"
    for content in ("name = ", RELEASES[0].read_text("utf-8").replace("ranges =", "range =")):
        broken.write_text(content, "utf-8")
        with pytest.raises(CalibrationError, match="facts of a release"):
            release.load_facts(broken)
