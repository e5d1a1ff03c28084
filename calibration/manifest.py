"""Writes entries into ``manifest.toml``; all other entries, and comments in them, stay as they are."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable
from typing import Any

from blurguard.detection.model_zoo import ModelSpec, NetworkSpec, PassSpec, Plan

__all__ = ["model_entry", "network_entry", "with_entries"]

ENTRY = re.compile(r"(?m)^(?=\[\[)")


def with_entries(manifest: str, specs: Iterable[NetworkSpec | ModelSpec]) -> str:
    """Return the text of a manifest with these entries in the places of its own of the same kinds and names.

    New ones come after the others of their kind.
    """
    head, *entries = ENTRY.split(manifest)
    for spec in specs:
        if isinstance(spec, NetworkSpec):
            kind, written = "network", network_entry(spec)
        else:
            kind, written = "model", model_entry(spec)
        own = [index for index, entry in enumerate(entries) if _key(entry) == (kind, spec.name)]
        alike = [index for index, entry in enumerate(entries) if _key(entry)[0] == kind]
        if own:
            entries[own[0]] = written
        else:
            entries.insert(alike[-1] + 1 if alike else len(entries), written)
    return "".join([head, *entries])


def network_entry(spec: NetworkSpec) -> str:
    """Return the ``[[network]]`` of a file of weights, ended by a blank line."""
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return _lines("[[network]]", fields) + "\n"


def model_entry(model: ModelSpec) -> str:
    """Return the ``[[model]]`` with its plans, ended by a blank line."""
    parts = [_lines("[[model]]", {"name": model.name, "evidence": model.evidence})]
    parts += [_plan(f"[model.{mode}]", plan) for mode, plan in model.plans.items()]
    return "\n".join(parts) + "\n"


def _plan(head: str, plan: Plan) -> str:
    lines = [_lines(head, {"threshold": plan.threshold, "crowd_ap": plan.crowd_ap})]
    lines += ["passes = [\n", *(f"    {_pass(each)},\n" for each in plan.passes), "]\n"]
    if plan.rotated:
        lines.append(f"rotated = {_pass(plan.rotated)}\n")
    return "".join(lines)


def _pass(each: PassSpec) -> str:
    return _toml(dataclasses.asdict(each))


def _lines(head: str, fields: dict[str, Any]) -> str:
    return "".join([f"{head}\n", *(f"{key} = {_toml(value)}\n" for key, value in fields.items())])


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(part)}" for key, part in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers, booleans and lists are written alike


def _key(entry: str) -> tuple[str, str]:
    """Return kind and name of an entry."""
    ((kind, (values,)),) = tomllib.loads(entry).items()
    return kind, values.get("name", "")
