"""Pictures without people."""

from pathlib import Path

import numpy as np
from PIL import Image

from calibration.__main__ import main
from calibration.barren import KINDS, PHOTOS
from calibration.score import load_truth


def test_the_step_draws_each_kind_and_labels_no_face(tmp_path: Path) -> None:
    for out in ("one", "two"):
        assert main(["barren", "--out", str(tmp_path / out), "--each", "1"]) == 0
    truth = load_truth(tmp_path / "one")
    assert len(truth) == len(KINDS) + len(PHOTOS)
    assert not sum(len(picture.boxes) for picture in truth)
    for picture in truth:
        same = (tmp_path / "two" / picture.path.name).read_bytes()
        assert picture.path.read_bytes() == same
        with Image.open(picture.path) as opened:
            assert opened.size == (picture.width, picture.height)
            assert np.asarray(opened.convert("L")).std() > 5
