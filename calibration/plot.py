"""The curves of a training run, drawn from its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from calibration import whole_at

__all__ = ["draw"]

PANELS = (
    ("loss", ("loss", "held_loss")),
    ("parts", ("heat", "overlap", "distance", "held_heat", "held_overlap", "held_distance")),
    ("AP, %", ("ap_large", "ap_medium", "ap_small")),
    ("learning rate", ("rate",)),
)


def draw(log: Path, out: Path) -> None:
    """Write a PNG of losses, validation AP and learning rate by step; the file is whole or absent at its name."""
    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    figure = Figure(figsize=(10, 10), layout="constrained")
    axes = figure.subplots(len(PANELS), sharex=True)
    for axis, (title, names) in zip(axes, PANELS, strict=True):
        for name in names:
            axis.plot(*_curve(records, name), label=name, linestyle="-" if name == names[0] else "--")
        axis.set_ylabel(title)
        axis.legend(loc="upper right", fontsize="small")
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    with whole_at(out) as file:
        figure.savefig(file, format="png")


def _curve(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[name]) for record in records if name in record]
    return [step for step, _ in points], [value for _, value in points]
