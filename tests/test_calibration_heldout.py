"""The pictures kept out of training are the same ones on every machine."""

from __future__ import annotations

from pathlib import Path

from calibration import heldout
from calibration.crops import Picture, load_pictures

NAMES = [f"{number:04d}.webp" for number in range(10)]


def test_names_alone_decide() -> None:
    expected = {"0001.webp", "0006.webp", "0009.webp"}
    assert heldout.kept_out(NAMES, 3) == expected
    assert heldout.kept_out([f"/any/where/{name}" for name in reversed(NAMES)], 3) == expected
    assert heldout.kept_out(NAMES, 0) == frozenset()
    assert heldout.kept_out(NAMES, 99) == frozenset(NAMES)


def test_each_data_set_has_its_own_count(tmp_path: Path) -> None:
    for name, count in (("wider_more", 300), ("masked", 80), ("another", 0)):
        lines = "\n".join(f'{{"image": "img/{number}.png", "faces": []}}' for number in range(400))
        (tmp_path / name).mkdir()
        (tmp_path / name / "faces.jsonl").write_text(lines, "utf-8")
        pictures = load_pictures(tmp_path / name)
        for source in (tmp_path / name, tmp_path / name / "faces.jsonl"):
            training, kept = heldout.divided(source, pictures)
            assert (len(training), len(kept)) == (400 - count, count)
            assert paths(training) | paths(kept) == paths(pictures)


def paths(pictures: list[Picture]) -> set[Path]:
    return {picture.path for picture in pictures}
