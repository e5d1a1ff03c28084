"""Writes a released model: ``python -m calibration release calibration/releases/far.toml``.

From a checkpoint, what was measured of its activations and the facts in that file it makes the float network and the
INT8 one, their entries at the head of ``manifest.toml`` and the model card. It needs no picture, and the same inputs
give the same bytes: whoever distrusts the shipped files can make them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from blurguard.detection.model_zoo import MANIFEST, ModelSpec
from blurguard.settings import Mode
from calibration import CalibrationError, base, flatbuffer, network, quantize, read_network, write_whole
from calibration.candidate import candidate
from calibration.evaluate import crowd_aps
from calibration.train import exported

__all__ = ["Facts", "add_parser", "float_network", "load_facts", "run", "with_entries"]

ENTRY = "[[model]]\n"
CARD = "MODEL_CARD.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a release is made from and what is told of it; paths are relative to the file of facts.

    Attributes:
        name: of the INT8 model; the float one has ``-float`` after it.
        file: of the INT8 model, ``.tflite``; the float one has ``_float`` before the suffix.
        checkpoint: ``model.tflite`` that training wrote.
        kept_float: layers that are not INT8, as `quantize` names them.
        ranges: ``.json`` of what `quantize` measured: ranges, and how channels are made alike.
        card: template of the model card.
        thresholds: score from which a face is hidden, per mode.
        evidence: where thresholds were chosen, and what was measured.
        source: where the network comes from.
        license: of the weights, SPDX.
        training_data: what they were trained on, and on which terms.
    """

    name: str
    file: str
    checkpoint: Path
    kept_float: str
    ranges: Path
    card: Path
    thresholds: dict[Mode, float]
    evidence: str
    source: str
    license: str
    training_data: str


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("release", help="write the released model", description=__doc__, formatter_class=raw)
    parser.add_argument("facts", type=Path, help=".toml of the release")
    parser.add_argument("--models", type=Path, default=base.MODELS, help="folder of manifest.toml and the models")
    parser.add_argument("--float-only", type=Path, help="write only the float network, to this file: for `quantize`")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write both files, the manifest and the card.

    Raises:
        CalibrationError: the facts or what they name cannot be read, or do not fit together.
    """
    facts = load_facts(arguments.facts)
    data = float_network(facts)
    if arguments.float_only:
        write_whole(arguments.float_only, data)
        return 0
    source = quantize.prepared(data, quantize.load_measured(facts.ranges))
    small = quantize.quantized(source, quantize.chosen_layers(source, facts.kept_float))
    specs = [
        dataclasses.replace(spec, crowd_ap=crowd_aps(spec, content))
        for spec, content in ((_spec(facts, small, ""), small), (_spec(facts, data, "float"), data))
    ]
    manifest = arguments.models / MANIFEST
    told = {f"{kind}_{key}": value for kind, key, value in _figures(specs, (small, data))}
    try:
        card = Template(facts.card.read_text("utf-8")).substitute(told)
    except (OSError, KeyError, ValueError) as error:
        raise CalibrationError(f"cannot fill in the card {facts.card}: {error!r}") from error
    files = {arguments.models / spec.file: content for spec, content in zip(specs, (small, data), strict=True)}
    files[manifest] = with_entries(manifest.read_text("utf-8"), specs).encode()
    files[arguments.models / CARD] = card.encode()
    for path, content in files.items():
        write_whole(path, content)
    print(f"{specs[0].file}: {len(small)} bytes, {len(small) / len(data):.3f} of {specs[1].file}")
    return 0


def load_facts(path: Path) -> Facts:
    """Return the facts of a release.

    Raises:
        CalibrationError: the file cannot be read, or is no such file.
    """
    try:
        told: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        for key in ("checkpoint", "ranges", "card"):
            told[key] = path.parent / told[key]
        told["thresholds"] = {Mode(mode): float(score) for mode, score in told["thresholds"].items()}
        return Facts(**told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"cannot read the facts of a release in {path}: {error}") from error


def float_network(facts: Facts) -> bytes:
    """Return the float network of a release, with boxes in the units of `candidate`."""
    data = read_network(facts.checkpoint)
    _, weights = network.parse(data)
    return flatbuffer.with_same_padding(exported(data, weights))


def _spec(facts: Facts, data: bytes, kind: str) -> ModelSpec:
    stem, suffix = facts.file.rsplit(".", 1)
    return candidate(
        data,
        f"{stem}_{kind}.{suffix}" if kind else facts.file,
        f"{facts.name}-{kind}" if kind else facts.name,
        thresholds=facts.thresholds,
        evidence=facts.evidence,
        source=facts.source,
        license=facts.license,
        training_data=facts.training_data,
    )


def with_entries(manifest: str, specs: list[ModelSpec]) -> str:
    """Return the manifest with these models first, in place of its own ones of the same names."""
    head, *entries = manifest.split(ENTRY)
    names = {spec.name for spec in specs}
    kept = [entry for entry in entries if tomllib.loads(entry)["name"] not in names]
    return ENTRY.join([head, *(_entry(spec) for spec in specs), *kept])


def _entry(spec: ModelSpec) -> str:
    lines = [f"{field.name} = {_toml(getattr(spec, field.name))}" for field in dataclasses.fields(spec)]
    return "\n".join(lines) + "\n\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers, booleans and lists are written alike


def _figures(specs: list[ModelSpec], contents: tuple[bytes, ...]) -> list[tuple[str, str, str]]:
    """Return what the card's template may name: (model, figure, value)."""
    found = []
    for kind, spec, content in zip(("int8", "float"), specs, contents, strict=True):
        found += [(kind, "file", spec.file), (kind, "sha256", spec.sha256), (kind, "bytes", f"{len(content):,}")]
        found += [(kind, f"threshold_{mode}", f"{score:g}") for mode, score in spec.thresholds.items()]
    return found
