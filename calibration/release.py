"""Writes a released network: ``python -m calibration release calibration/releases/far.toml``.

From a checkpoint, the ranges of its activations and the facts in that file it makes the float network and the INT8
one, their entries in ``manifest.toml`` and the model card. It needs no picture, and the same inputs give the same
bytes: anyone who distrusts the shipped files can make them. The models that use the networks stay as they are:
`probabilities` fits those.
"""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from blurguard.detection.model_zoo import MANIFEST, NetworkSpec
from calibration import CalibrationError, base, flatbuffer, network, quantize, read_network, write_whole
from calibration.candidate import CENTERFACE, candidate, family_of
from calibration.manifest import with_entries
from calibration.train import exported

__all__ = ["Facts", "add_parser", "float_network", "load_facts", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Inputs of a release, and its texts; paths are relative to the file of facts.

    Attributes:
        name: of the INT8 network; the float one has ``-float`` after it.
        file: of the INT8 network, ``.tflite``; the float one has ``_float`` before the suffix.
        checkpoint: ``model.tflite`` that training wrote, or a float network in the units of `candidate`.
        kept_float: layers that are not INT8, as `quantize` names them.
        ranges: ``.json`` that `quantize` measured: ranges, and how channels are made alike.
        card: template of the model card.
        card_file: name of the card beside the manifest.
        source: where the network comes from.
        license: of the weights, SPDX.
        training_data: of the weights, and its terms.
    """

    name: str
    file: str
    checkpoint: Path
    kept_float: str
    ranges: Path
    card: Path
    card_file: str
    source: str
    license: str
    training_data: str


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("release", help="write the released network", description=__doc__, formatter_class=raw)
    parser.add_argument("facts", type=Path, help=".toml of the release")
    parser.add_argument("--models", type=Path, default=base.MODELS, help="folder of manifest.toml and the networks")
    parser.add_argument("--float-only", type=Path, help="write only the float network, to this file: for `quantize`")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write both files, the manifest and the card.

    Raises:
        CalibrationError: the facts or the files that they name cannot be read, or do not fit together.
    """
    facts = load_facts(arguments.facts)
    data = float_network(facts)
    if arguments.float_only:
        write_whole(arguments.float_only, data)
        return 0
    source = quantize.prepared(data, quantize.load_measured(facts.ranges))
    small = quantize.quantized(source, quantize.chosen_layers(source, facts.kept_float))
    specs = [_spec(facts, small, ""), _spec(facts, data, "float")]
    manifest = arguments.models / MANIFEST
    figures = {f"{kind}_{key}": value for kind, key, value in _figures(specs)}
    try:
        card = Template(facts.card.read_text("utf-8")).substitute(figures)
    except (OSError, KeyError, ValueError) as error:
        raise CalibrationError(f"cannot fill in the card {facts.card}: {error!r}") from error
    files = {arguments.models / spec.file: content for spec, content in zip(specs, (small, data), strict=True)}
    files[manifest] = with_entries(manifest.read_text("utf-8"), specs).encode()
    files[arguments.models / facts.card_file] = card.encode()
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
        values: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        for key in ("checkpoint", "ranges", "card"):
            values[key] = path.parent / values[key]
        return Facts(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CalibrationError(f"cannot read the facts of a release in {path}: {error}") from error


def float_network(facts: Facts) -> bytes:
    """Return the float network of a release, with boxes in the units of `candidate`."""
    data = read_network(facts.checkpoint)
    if family_of(data) is CENTERFACE:
        return data
    _, weights = network.parse(data)
    return flatbuffer.with_same_padding(exported(data, weights))


def _spec(facts: Facts, data: bytes, kind: str) -> NetworkSpec:
    stem, suffix = facts.file.rsplit(".", 1)
    return candidate(
        data,
        f"{facts.name}-{kind}" if kind else facts.name,
        f"{stem}_{kind}.{suffix}" if kind else facts.file,
        source=facts.source,
        license=facts.license,
        training_data=facts.training_data,
    )


def _figures(specs: list[NetworkSpec]) -> list[tuple[str, str, str]]:
    """Return the figures that the card's template may name: (network, figure, value)."""
    return [
        (kind, figure, value)
        for kind, spec in zip(("int8", "float"), specs, strict=True)
        for figure, value in (("file", spec.file), ("sha256", spec.sha256), ("bytes", f"{spec.size:,}"))
    ]
