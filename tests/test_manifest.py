"""The manifest decides which networks a mode loads, its identity covers all of them, and it can be rewritten."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.faults.commands import blurguard
from blurguard.detection.model_zoo import MANIFEST, Manifest, ModelSpec, NetworkSpec, PassSpec, Plan, load_manifest
from blurguard.detection.registry import load_detector
from blurguard.detection.scales import RULES
from blurguard.errors import ModelError
from blurguard.settings import Mode, Settings
from calibration import manifest as written
from tests.conftest import ROOT

OTHER_NETWORKS = ("centerface*.tflite", "blazeface_far*.tflite")
BLACK = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a copy of the folder of models."""
    return Path(shutil.copytree(ROOT / "models", tmp_path / "models"))


@pytest.fixture
def shipped() -> Manifest:
    return load_manifest()


# --- identity ---------------------------------------------------------------------------------------------------


def with_model(manifest: Manifest, model: ModelSpec) -> Manifest:
    return Manifest((model, *manifest.models[1:]), manifest.networks)


def with_first_pass(model: ModelSpec, mode: Mode, changed: Callable[[PassSpec], PassSpec]) -> ModelSpec:
    plan = model.plans[mode]
    passes = (changed(plan.passes[0]), *plan.passes[1:])
    return dataclasses.replace(model, plans=model.plans | {mode: dataclasses.replace(plan, passes=passes)})


def other_coefficient(each: PassSpec) -> PassSpec:
    return dataclasses.replace(each, probability=(*each.probability[:-1], each.probability[-1] + 1e-4))


def other_rule(each: PassSpec) -> PassSpec:
    return dataclasses.replace(each, scales=next(name for name in RULES if name != each.scales))


def other_network(each: PassSpec) -> PassSpec:
    return dataclasses.replace(each, network="far-float")


def identities(manifest: Manifest) -> dict[Mode, str]:
    return {mode: manifest.identity(manifest.model(), mode) for mode in Mode}


@pytest.mark.parametrize("change", [other_coefficient, other_rule, other_network])
@pytest.mark.parametrize("mode", Mode)
def test_identity_changes_with_a_pass(shipped: Manifest, mode: Mode, change: Callable[[PassSpec], PassSpec]) -> None:
    before = identities(shipped)
    after = identities(with_model(shipped, with_first_pass(shipped.model(), mode, change)))
    assert before[Mode.ACCURATE] != after[Mode.ACCURATE]  # the fast plan serves its videos
    assert (before[Mode.FAST] != after[Mode.FAST]) == (mode is Mode.FAST)


def test_identity_changes_with_the_rotated_pass(shipped: Manifest) -> None:
    model = shipped.model()
    plan = model.plans[Mode.ACCURATE]
    assert plan.rotated
    for rotated in (None, other_coefficient(plan.rotated)):
        changed = dataclasses.replace(plan, rotated=rotated)
        other = with_model(shipped, dataclasses.replace(model, plans=model.plans | {Mode.ACCURATE: changed}))
        assert identities(other)[Mode.ACCURATE] != identities(shipped)[Mode.ACCURATE]


@pytest.mark.parametrize(("name", "modes"), [("far", {*Mode}), ("centerface", {Mode.ACCURATE}), ("stock", set())])
def test_identity_changes_with_the_weights_that_a_mode_uses(shipped: Manifest, name: str, modes: set[Mode]) -> None:
    spec = dataclasses.replace(shipped.networks[name], sha256="0" * 64)
    after = identities(Manifest(shipped.models, shipped.networks | {name: spec}))
    assert {mode for mode, identity in identities(shipped).items() if after[mode] != identity} == modes


def test_identity_names_the_model_and_is_different_for_each_mode_and_model(shipped: Manifest) -> None:
    every = [(model.name, shipped.identity(model, mode)) for model in shipped.models for mode in Mode]
    assert len({identity for _, identity in every}) == len(every)
    assert all(re.fullmatch(f"{name}@[0-9a-f]{{64}}", identity) for name, identity in every)


def test_a_threshold_does_not_change_the_identity(shipped: Manifest) -> None:
    model = shipped.model()
    plans = {mode: dataclasses.replace(plan, threshold=0.9, crowd_ap=1.0) for mode, plan in model.plans.items()}
    assert identities(with_model(shipped, dataclasses.replace(model, plans=plans))) == identities(shipped)


# --- which networks are loaded ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
def test_the_stock_model_needs_no_network_that_was_trained_on_wider_face(copied: Path, mode: Mode) -> None:
    for pattern in OTHER_NETWORKS:
        files = list(copied.glob(pattern))
        assert files, pattern
        for file in files:
            file.unlink()
    detector = load_detector(Settings(model="stock", mode=mode), copied)
    assert not len(detector.detect(BLACK, 0.5))
    for name in load_manifest(copied).model("stock").networks_of(mode):
        assert "WIDER" not in load_manifest(copied).networks[name].training_data


@pytest.mark.parametrize("model", ["far", "far-float"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_the_fast_mode_loads_no_centerface(copied: Path, model: str, damage: str) -> None:
    for file in copied.glob("centerface*.tflite"):
        if damage == "changed":
            file.write_bytes(file.read_bytes()[:-1] + b"?")
        else:
            file.unlink()
    fast = load_detector(Settings(model=model, mode=Mode.FAST), copied)
    assert not len(fast.detect(BLACK, 0.5))
    with pytest.raises(ModelError, match=r"centerface.*\.tflite.*reinstall blurguard"):
        load_detector(Settings(model=model, mode=Mode.ACCURATE), copied)


def test_a_mode_loads_the_networks_of_its_passes(shipped: Manifest) -> None:
    for model in shipped.models:
        fast, accurate = model.plans[Mode.FAST], model.plans[Mode.ACCURATE]
        assert model.networks_of(Mode.FAST) == fast.networks
        assert set(model.networks_of(Mode.ACCURATE)) == {*accurate.networks, *fast.networks}


def test_models_names_the_networks_of_each_mode_and_their_training_data(shipped: Manifest) -> None:
    lines = [line.strip() for line in blurguard("models").stdout.splitlines()]
    for model in shipped.models:
        at = next(index for index, line in enumerate(lines) if line.removesuffix(" (default)") == model.name)
        assert lines[at].endswith(" (default)") == (model == shipped.models[0])
        for line, (mode, plan) in zip(lines[at + 1 :], model.plans.items(), strict=False):
            uses, probability = line.removeprefix(f"{mode}: ").split(", hides from a probability of ")
            assert uses.split(" and ") == plan.networks
            assert float(probability) == pytest.approx(plan.threshold, rel=1e-4)
    text = " ".join(" ".join(lines).split())
    for name, spec in shipped.networks.items():
        part = text[text.index(f"network {name} license:") :].split("file: ")[0]
        known = f"license: {spec.license} source: {spec.source} trained on: {spec.training_data} SHA-256: {spec.sha256}"
        assert " ".join(known.split()) in part
        assert spec.training_data


# --- rewriting --------------------------------------------------------------------------------------------------


def text_of(folder: Path = ROOT / "models") -> str:
    return (folder / MANIFEST).read_text("utf-8")


def entries(text: str) -> dict[str, str]:
    """Return each entry by its kind and name."""
    return {"\n".join(entry.splitlines()[:2]): entry for entry in written.ENTRY.split(text)[1:]}


def test_an_entry_that_is_written_is_read_again(copied: Path, shipped: Manifest) -> None:
    every: list[ModelSpec | NetworkSpec] = [*shipped.models, *shipped.networks.values()]
    (copied / MANIFEST).write_text(written.with_entries(text_of(), every), "utf-8")
    assert load_manifest(copied) == shipped


def test_only_the_entry_of_the_same_kind_and_name_changes(shipped: Manifest) -> None:
    model = dataclasses.replace(shipped.model("far-float"), evidence='other "words" and ümlauts')
    spec = dataclasses.replace(shipped.networks["far"], source="elsewhere")
    before, after = entries(text_of()), entries(written.with_entries(text_of(), [model, spec]))
    assert list(before) == list(after)
    changed = {key for key, entry in before.items() if after[key] != entry}
    assert changed == {'[[model]]\nname = "far-float"', '[[network]]\nname = "far"'}
    assert text_of().split("[[")[0] == written.with_entries(text_of(), [model, spec]).split("[[")[0]


def test_a_new_entry_comes_after_the_others_of_its_kind(copied: Path, shipped: Manifest) -> None:
    model = dataclasses.replace(shipped.model(), name="new")
    text = written.with_entries(text_of(), [model, dataclasses.replace(shipped.networks["far"], name="new")])
    (copied / MANIFEST).write_text(text, "utf-8")
    now = load_manifest(copied)
    assert [one.name for one in now.models] == [*(one.name for one in shipped.models), "new"]
    assert list(now.networks) == [*shipped.networks, "new"]
    assert now.models[0] == shipped.models[0]


def test_a_plan_without_a_rotated_pass_is_written_without_one(copied: Path, shipped: Manifest) -> None:
    each = PassSpec(network="stock", scales="own", probability=(0.0, 1.0, 0.0, 0.0, -0.25))
    plans = {mode: Plan(passes=(each, each), threshold=0.3, crowd_ap=12.5) for mode in Mode}
    model = ModelSpec(name="plain", evidence="none", plans=plans)
    (copied / MANIFEST).write_text(written.with_entries(text_of(), [model]), "utf-8")
    assert load_manifest(copied).model("plain") == model
