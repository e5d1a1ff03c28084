"""Are faces of all groups hidden alike? ``python -m calibration groups DATA``.

Beside ``faces.jsonl``, DATA has ``people.csv`` with the columns image, face, perceived_skin, perceived_gender and
perceived_age. ``face`` is the index of a row of that picture in faces.jsonl, from 0. Skin tones are I to VI, of
Fitzpatrick's scale. Other values are groups of their own. Only the pictures that people.csv names are used.

A face of 20 px and more counts as hidden as in `calibration.score`, under boxes enlarged BOX_FACTOR times. The score
threshold is that of the mode, unless ``--min-score`` sets another. ``--found`` reads the faces of any detector from
JSON lines instead: ``{"source" or "image", "faces": [{"box": [x0, y0, x1, y1], "score"}]}``, px, as from
``blurguard detect``. Standard errors are binomial, as if faces of one picture were independent.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import cv2
import numpy as np

from blurguard.settings import Mode
from blurguard.types import Detections
from calibration import CalibrationError
from calibration.evaluate import add_choice, chosen_pictures, detect_all, detector_of
from calibration.score import BOX_FACTOR, Labeled, face_heights, hidden_faces, load_truth
from calibration.tables import table

__all__ = ["Group", "Person", "add_parser", "difference", "groups_of", "load_people", "read_found", "run"]

MIN_PX = 20  # height of a face; people cannot tell more of smaller ones
COLUMNS = ("image", "face", "perceived_skin", "perceived_gender", "perceived_age")
ATTRIBUTES = ("skin", "gender", "age")
POOLS = {"I-III": ("I", "II", "III"), "IV-VI": ("IV", "V", "VI")}  # skin tones that are also counted together
UNSURE = "Not Sure"  # of the labels; an empty one means the same
HEAD = ("group", "faces", "hidden", "standard error")


@dataclass(frozen=True, slots=True)
class Person:
    """A labeled face of a picture: its index there, and the perceived attributes."""

    face: int
    skin: str
    gender: str
    age: str


@dataclass(frozen=True, slots=True)
class Group:
    """Faces of one kind."""

    name: str
    faces: int
    hidden: int

    @property
    def share(self) -> float:
        """Hidden faces, percent."""
        return 100 * self.hidden / self.faces

    @property
    def error(self) -> float:
        """Standard error of the share, points of percent."""
        return math.sqrt(self.share * (100 - self.share) / self.faces)


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "hidden share of faces by perceived skin tone, gender and age"
    parser = steps.add_parser("groups", help=text, description=__doc__, formatter_class=raw)
    add_choice(parser)
    parser.add_argument("--found", type=Path, help=".jsonl file of detections to use instead of a model")
    parser.add_argument("--min-score", type=float, help="score threshold (default: that of the mode)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a table per mode, or the one of ``--found``."""
    cv2.setNumThreads(1)
    if arguments.min_score is not None and not 0 <= arguments.min_score <= 1:
        raise CalibrationError(f"--min-score is from 0 to 1, not {arguments.min_score:g}")
    people = load_people(arguments.data, load_truth(arguments.data))
    truth = [picture for picture in chosen_pictures(arguments) if picture.path in people]
    if not truth:
        raise CalibrationError(f"{arguments.data / 'people.csv'} names none of the chosen pictures")
    for name, found, threshold in _detections(arguments, truth):
        seen = hidden_people(people, truth, found, threshold)
        if not seen:
            raise CalibrationError(f"{arguments.data / 'people.csv'} has no face of {MIN_PX} px and more")
        groups = groups_of(seen)
        print(f"{name}, score from {threshold:g}, {len(truth)} pictures, faces of {MIN_PX} px and more")
        print(f"hidden under boxes {BOX_FACTOR:g} times as large:\n")
        print(table(HEAD, map(_row, groups)))
        print(f"\n{difference(groups)}\n")
    return 0


def load_people(data: Path, truth: Sequence[Labeled]) -> dict[Path, list[Person]]:
    """Return the labeled faces of ``people.csv``, by the path of their picture.

    Raises:
        CalibrationError: the file cannot be read, is empty, or a row is of no picture, of no face, or of one twice.
    """
    file = data / "people.csv"
    counts = {picture.path: len(picture.boxes) for picture in truth}
    people: dict[Path, list[Person]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened)
            for row in reader:
                where = f"line {reader.line_num} of {file}"
                path, person = _person(data, row, counts, where)
                known = people.setdefault(path, [])
                if any(person.face == other.face for other in known):
                    raise CalibrationError(f"{where}: a second row for face {person.face} of {path.name}")
                known.append(person)
    except (OSError, ValueError, csv.Error) as error:
        raise CalibrationError(f"cannot read the people of {data}: {error!r}") from error
    if not people:
        raise CalibrationError(f"{file} names no face")
    return people


def read_found(file: Path, truth: Sequence[Labeled]) -> list[Detections]:
    """Return the detections of each picture, matched by its file name.

    Raises:
        CalibrationError: the file cannot be read, reports an error, or lacks a picture, or two have the same name.
    """
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
        found = {PurePath(line.get("source") or line["image"]).name: _faces(line["faces"]) for line in lines}
        failed = [f"{line.get('source')}: {line['error']}" for line in lines if "error" in line]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"cannot read the detections of {file}: {error!r}") from error
    if failed:
        raise CalibrationError(f"{file} reports an error: {failed[0]}")
    names = [picture.path.name for picture in truth]
    if len(found) < len(lines) or len(set(names)) < len(names):
        raise CalibrationError(f"pictures have the same name, so the detections of {file} cannot be matched")
    if missing := [name for name in names if name not in found]:
        raise CalibrationError(f"{file} has no line for {missing[0]}, and lacks {len(missing)} pictures in all")
    return [found[name] for name in names]


def hidden_people(
    people: Mapping[Path, Sequence[Person]], truth: Sequence[Labeled], found: Sequence[Detections], threshold: float
) -> list[tuple[Person, bool]]:
    """Return each person of `MIN_PX` and more whose face counts, and whether it is hidden."""
    seen = []
    for picture, detections in zip(truth, found, strict=True):
        valid, hidden = hidden_faces(picture, detections, threshold, None)
        valid &= face_heights(picture) >= MIN_PX
        seen += [(person, bool(hidden[person.face])) for person in people[picture.path] if valid[person.face]]
    return seen


def groups_of(seen: Sequence[tuple[Person, bool]]) -> list[Group]:
    """Return all faces, then each group that has some: skin tones, pooled ones, genders and ages."""
    groups = [_group("all", [hidden for _, hidden in seen])]
    for attribute in ATTRIBUTES:
        values = [(getattr(person, attribute), hidden) for person, hidden in seen]
        kinds = {value: (value,) for value in sorted({value for value, _ in values}, key=lambda v: (v == UNSURE, v))}
        for name, kind in (kinds | (POOLS if attribute == "skin" else {})).items():
            groups.append(_group(f"{attribute} {name}", [hidden for value, hidden in values if value in kind]))
    return [group for group in groups if group.faces]


def difference(groups: Sequence[Group]) -> str:
    """Return a sentence: how much more often the first pool is hidden than the second."""
    pools = [group for pool in POOLS for group in groups if group.name == f"skin {pool}"]
    first, second = POOLS
    if len(pools) < len(POOLS):
        return f"{first} and {second} cannot be compared: no face has one of them."
    points = pools[0].share - pools[1].share
    error = math.hypot(*(pool.error for pool in pools))
    return f"{first} minus {second}: {points:+.1f} points, standard error {error:.1f}."


def _detections(
    arguments: argparse.Namespace, truth: list[Labeled]
) -> Iterator[tuple[str, Sequence[Detections], float]]:
    """Yield a name, the detections of each picture and the score threshold."""
    chosen: float | None = arguments.min_score
    if arguments.found:
        if chosen is None:
            raise CalibrationError("--found needs --min-score: the file does not say from which score a face is hidden")
        yield arguments.found.name, read_found(arguments.found, truth), chosen
        return
    for mode in arguments.mode or [*Mode]:
        detector = detector_of(arguments, mode)
        found, _ = detect_all(detector, truth)
        yield f"{mode}, {detector.identity}", found, detector.threshold if chosen is None else chosen


def _person(data: Path, row: Mapping[str, str | None], counts: Mapping[Path, int], where: str) -> tuple[Path, Person]:
    """Return the picture and the face of a row of people.csv."""
    if missing := [column for column in COLUMNS if row.get(column) is None]:
        raise CalibrationError(f"{where} has no {', '.join(missing)}")
    image, face, *perceived = (str(row[column]).strip() for column in COLUMNS)
    path = data / image
    if path not in counts:
        raise CalibrationError(f"{where}: faces.jsonl has no picture {image!r}")
    if not face.isdecimal() or int(face) >= counts[path]:
        raise CalibrationError(f"{where}: {image} has no face {face!r}, but {counts[path]} faces, from 0")
    return path, Person(int(face), *(value or UNSURE for value in perceived))


def _faces(records: Sequence[Mapping[str, object]]) -> Detections:
    boxes = np.array([record["box"] for record in records], np.float32)
    return Detections(boxes, np.array([record["score"] for record in records], np.float32))


def _group(name: str, hidden: Sequence[bool]) -> Group:
    return Group(name, len(hidden), sum(hidden))


def _row(group: Group) -> list[str]:
    return [group.name, str(group.faces), f"{group.share:.1f} %", f"{group.error:.1f}"]
