"""What a wrong answer costs: CenterNet's focal loss of the scores, overlap and distance of the boxes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own habit
from torch import Tensor

from calibration.crops import LEAST_WEIGHT_AT, MOST_WEIGHT_AT, USUAL_PX

__all__ = ["PARTS", "Losses", "losses_of", "overlaps"]

ALPHA, BETA = 2, 4  # CenterNet (arXiv 1904.07850), equation 1
OVERLAP_WEIGHT, DISTANCE_WEIGHT = 2.0, 0.5
BOX_EASE = 0.4  # boxes of large faces are easy: a face's size to this power less counts in their part of the loss
LOG_SIZE_RANGE = (0.0, 7.0)  # 1 to 1100 px: keeps the areas of wild guesses finite


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss and its parts, scalars."""

    loss: Tensor
    heat: Tensor
    overlap: Tensor
    distance: Tensor

    def stacked(self) -> Tensor:
        """Return the values in the order of their fields, cut off from what they were computed from."""
        return torch.stack([getattr(self, part.name) for part in dataclasses.fields(self)]).detach()


PARTS = tuple(part.name for part in dataclasses.fields(Losses))


def losses_of(boxes: Tensor, logits: Tensor, targets: list[Tensor], *, quality: bool = False) -> Losses:
    """Return the losses of boxes (B, 4, s, s) and logits (B, s, s) against the targets of a `Batch`."""
    heat, counted, wanted, share = targets
    mine = share > 0
    weight, found, truth = share[mine], boxes.float().movedim(1, -1)[mine], wanted.movedim(1, -1)[mine]  # (N,), (N, 4)
    iou, generalised = overlaps(_corners(found), _corners(truth))
    sizes = truth[:, 2:].mean(dim=1, keepdim=True).exp()  # the geometric mean, px
    weight = weight * (sizes[:, 0] / USUAL_PX).clamp(LEAST_WEIGHT_AT, MOST_WEIGHT_AT) ** -BOX_EASE
    total = weight.sum().clamp(min=1e-6)
    errors = torch.cat([(found[:, :2] - truth[:, :2]) / sizes, found[:, 2:] - truth[:, 2:]], dim=1)
    overlap = ((1 - generalised) * weight).sum() / total
    distance = (errors.abs().sum(dim=1) * weight).sum() / total
    reached = torch.ones_like(heat)
    if quality:
        reached[mine] = iou.detach()
    focal = _focal(logits.float(), (heat, counted, share), reached)
    return Losses(focal + OVERLAP_WEIGHT * overlap + DISTANCE_WEIGHT * distance, focal, overlap, distance)


def _focal(logits: Tensor, maps: tuple[Tensor, Tensor, Tensor], reached: Tensor) -> Tensor:
    """Return CenterNet's focal loss per face; ``reached`` is the score that the cells of a face shall have.

    Below 1 it is the quality focal loss (arXiv 2006.04388): cross entropy times the squared distance.
    """
    heat, counted, share = maps
    score, mine = logits.sigmoid(), share > 0
    entropy = F.binary_cross_entropy_with_logits(logits, reached, reduction="none")
    hit = entropy * (reached - score).abs() ** ALPHA * share
    miss = (1 - heat) ** BETA * score**ALPHA * F.softplus(logits)
    return (torch.where(mine, hit, miss) * counted).sum() / share.sum().clamp(min=1)


def _corners(boxes: Tensor) -> Tensor:
    """Return (N, 4) x0 y0 x1 y1 of center and log size."""
    half = boxes[:, 2:].clamp(*LOG_SIZE_RANGE).exp() / 2
    return torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], dim=1)


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU (arXiv 1902.09630) of boxes (N, 4), row by row."""
    far, near = torch.minimum(one[:, 2:], other[:, 2:]), torch.maximum(one[:, :2], other[:, :2])
    shared = (far - near).clamp(min=0).prod(dim=1)
    union = (one[:, 2:] - one[:, :2]).prod(dim=1) + (other[:, 2:] - other[:, :2]).prod(dim=1) - shared
    hull = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(dim=1)
    iou = shared / union
    return iou, iou - (hull - union) / hull
