"""The released models: their manifest, and the check that the weights are the measured ones.

A model is one choice of ``--model``. For each mode it has passes, each of one network at some scales. A network is a
file of weights. ``models/manifest.toml`` describes both, so adding one is data, not code. The installed package
contains that folder. A checkout has it beside the package.
"""

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blurguard.detection.fusion import COEFFICIENTS
from blurguard.detection.scales import RULES
from blurguard.errors import ModelError
from blurguard.files.errors import os_errors
from blurguard.settings import Mode

MANIFEST = "manifest.toml"
_PACKAGE = Path(__file__).resolve().parent.parent
_TEXTS = ("file", "source", "license", "training_data")  # about a network, without effect on what it computes


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """One file of weights: a ``[[network]]`` of the manifest.

    Attributes:
        name: by which passes refer to it.
        file: beside the manifest.
        sha256: of the file, hex.
        size: of the file, bytes.
        layers: number of convolutions by the type of their weights: int8, float32.
        stride: px of the input per output cell.
        input: name of the only input tensor, (1, h, w, 3).
        boxes: name of the output (1, h / stride, w / stride, >= 4): offset x y of the
            box center from the cell center, then width and height.
        scores: name of the output (1, h / stride, w / stride, 1): logits.
        input_scale: of uint8 RGB for a float input: x * scale + offset.
        input_offset: see ``input_scale``.
        size_multiple: h and w are multiples of this, px.
        bytes_per_px: memory of an interpreter, about, per px of its input.
        size_constants: (byte offset, divisor) of two int32 in the file that are set to h // divisor and w // divisor.
        offset_unit: input px per unit of the raw offset x y.
        size_unit: input px per unit of the raw width and height.
        log_sizes: whether raw width and height are natural logarithms (of sizes in that unit).
        box_scale: factors on raw width and height that make a tight face box.
        box_shift: added to the center, as shares of the tight width and height.
        source: origin of the weights.
        license: of the weights, SPDX.
        training_data: of the weights.
    """

    name: str
    file: str
    sha256: str
    size: int
    layers: dict[str, int]
    stride: int
    input: str
    boxes: str
    scores: str
    input_scale: float
    input_offset: float
    size_multiple: int
    bytes_per_px: int
    size_constants: tuple[tuple[int, int], ...] = ()
    offset_unit: float = 1.0
    size_unit: float = 1.0
    log_sizes: bool = False
    box_scale: tuple[float, float] = (1.0, 1.0)
    box_shift: tuple[float, float] = (0.0, 0.0)
    source: str
    license: str
    training_data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSpec:
    """One network at the scales of one rule.

    Attributes:
        network: name of the `NetworkSpec`.
        scales: name of the rule in `scales.RULES`.
        probability: coefficients of `fusion.probabilities`, which make its scores probabilities.
    """

    network: str
    scales: str
    probability: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The passes of a model in one mode.

    Attributes:
        passes: all of them run on every image, and what they find is fused.
        rotated: the pass over the image turned by quarters, or None for no such pass.
        threshold: default probability from which a face is hidden.
        crowd_ap: AP on ``examples/photos/crowd.jpg``, percent. Shows whether a build runs as released.
    """

    passes: tuple[PassSpec, ...]
    rotated: PassSpec | None = None
    threshold: float
    crowd_ap: float

    @property
    def every_pass(self) -> tuple[PassSpec, ...]:
        """All passes, the rotated one last."""
        return self.passes if self.rotated is None else (*self.passes, self.rotated)

    @property
    def networks(self) -> list[str]:
        """Names of the networks, each once, in the order of the passes."""
        return list(dict.fromkeys(each.network for each in self.every_pass))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One choice of ``--model``: a ``[[model]]`` of the manifest.

    Attributes:
        name: value of ``--model``.
        evidence: source of the thresholds and probabilities.
        plans: the passes of each mode.
    """

    name: str
    evidence: str
    plans: dict[Mode, Plan]

    @property
    def networks(self) -> list[str]:
        """Names of the networks of all modes, each once."""
        return self.networks_of(Mode.ACCURATE)

    def plans_of(self, mode: Mode) -> list[Plan]:
        """Return the plans that a mode uses: in videos the accurate one uses that of the fast mode too."""
        return [self.plans[mode]] if mode is Mode.FAST else [self.plans[mode], self.plans[Mode.FAST]]

    def networks_of(self, mode: Mode) -> list[str]:
        """Return the names of the networks that a mode uses, each once."""
        return list(dict.fromkeys(name for plan in self.plans_of(mode) for name in plan.networks))


@dataclass(frozen=True, slots=True)
class Manifest:
    """All models, the default first, and the networks by their names."""

    models: tuple[ModelSpec, ...]
    networks: dict[str, NetworkSpec]

    def model(self, name: str = "") -> ModelSpec:
        """Return the model of that name, or the default one for ``""``.

        Raises:
            ModelError: unknown name.
        """
        for model in self.models:
            if name in ("", model.name):
                return model
        raise ModelError(f"no model named {name!r}; there are: {', '.join(model.name for model in self.models)}")

    def identity(self, model: ModelSpec, mode: Mode) -> str:
        """Return the model's name with a SHA-256 of all that decides on its detections in this mode, hex."""
        networks = [_without(self.networks[name], _TEXTS) for name in model.networks_of(mode)]
        plans = [_without(plan, ("threshold", "crowd_ap")) for plan in model.plans_of(mode)]
        return f"{model.name}@{hashlib.sha256(json.dumps([networks, plans]).encode()).hexdigest()}"


def models_dir() -> Path:
    """Return the folder of the manifest, in the installed package or in the checkout.

    Raises:
        ModelError: neither has one.
    """
    for candidate in (_PACKAGE / "models", _PACKAGE.parent / "models"):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise ModelError(f"no {MANIFEST} in {_PACKAGE} or beside it: blurguard is not installed properly; reinstall it")


def load_manifest(models: Path | None = None) -> Manifest:
    """Return the manifest of a folder, by default of the released models.

    Raises:
        ModelError: the manifest is missing or invalid.
    """
    path = (models or models_dir()) / MANIFEST
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
        if unknown := set(tables) - {"network", "model", "original"}:
            raise ValueError(f"unknown tables {sorted(unknown)}")
        networks = {entry["name"]: _parse_network(entry) for entry in tables["network"]}
        for kind in ("network", "model"):
            if len({entry["name"] for entry in tables[kind]}) < len(tables[kind]):
                raise ValueError(f"two {kind}s of one name")
        parsed = tuple(_parse_model(entry) for entry in tables["model"])
        if missing := {name for model in parsed for name in model.networks} - networks.keys():
            raise ValueError(f"no networks {sorted(missing)}")
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a valid manifest: {error!r}; reinstall blurguard") from error
    return Manifest(parsed, networks)


def load_weights(spec: NetworkSpec, models: Path | None = None) -> bytes:
    """Return the bytes of a network's file after checking their hash.

    Raises:
        ModelError: the file is missing, or not the one in the manifest.
    """
    path = (models or models_dir()) / spec.file
    with os_errors(path, "cannot read the model", ModelError, "reinstall blurguard"):
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != spec.sha256:
        raise ModelError(f"{path}: the file is not the one that was released (SHA-256 differs); reinstall blurguard")
    return data


def _without(spec: NetworkSpec | Plan, fields: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in asdict(spec).items() if key not in fields}


def _parse_network(entry: dict[str, Any]) -> NetworkSpec:
    values = dict(entry)
    if values["bytes_per_px"] < 1:
        raise ValueError(f"bytes_per_px {values['bytes_per_px']}")
    constants = values.get("size_constants", ())
    values["size_constants"] = tuple((int(offset), int(divisor)) for offset, divisor in constants)
    for pair in {"box_scale", "box_shift"} & values.keys():
        x, y = values[pair]
        values[pair] = (float(x), float(y))
    return NetworkSpec(**values)  # refuses unknown keys


def _parse_model(entry: dict[str, Any]) -> ModelSpec:
    values = dict(entry)
    plans = {mode: _parse_plan(values.pop(mode)) for mode in Mode}
    return ModelSpec(plans=plans, **values)


def _parse_plan(entry: dict[str, Any]) -> Plan:
    values = dict(entry)
    values["passes"] = tuple(_parse_pass(each) for each in values["passes"])
    if "rotated" in values:
        values["rotated"] = _parse_pass(values["rotated"])
        if len(RULES[values["rotated"].scales](4000, 3000)) > 1:
            raise ValueError("a rotated pass has one scale")
    values["threshold"] = float(values["threshold"])
    if not 0 < values["threshold"] < 1:
        raise ValueError(f"threshold {values['threshold']}")
    return Plan(**values)


def _parse_pass(entry: dict[str, Any]) -> PassSpec:
    values = dict(entry)
    values["probability"] = tuple(float(number) for number in values["probability"])
    if len(values["probability"]) != COEFFICIENTS or values["scales"] not in RULES:
        raise ValueError(f"pass {values}")
    return PassSpec(**values)
