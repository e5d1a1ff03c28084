"""``python -m bench.settings_doc``: write the tables of settings in docs/operations.md from their declarations."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

from blurguard.declarations import Setting, SettingsTable, declared
from blurguard.settings import Settings, WatchSettings
from calibration.tables import row

OPERATIONS = Path(__file__).resolve().parents[1] / "docs" / "operations.md"
TABLES: dict[str, type[SettingsTable]] = {"settings": Settings, "watch": WatchSettings}
HEAD = ("Setting", "Option", "Default", "Values", "Meaning")


def with_tables(text: str) -> str:
    """Return a Markdown text with each table between its two comments made anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- begin {name}, made by python -m bench.settings_doc -->\n", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + begin + _table(table) + end + after
    return text


def _table(table: type[SettingsTable]) -> str:
    lines = [row(HEAD), row(["---"] * len(HEAD)), *(row(_cells(setting)) for setting in declared(table))]
    return "\n".join(lines) + "\n"


def _cells(setting: Setting) -> tuple[str, ...]:
    options = ", ".join(f"`{name}`" for name in re.split("[ /]+(?=-)", setting.option))
    return f"`{setting.name}`", options, _default(setting), _values(setting), setting.help


def _default(setting: Setting) -> str:
    if setting.default in (None, ""):
        return setting.unset
    return f"`{str(setting.default).lower()}`" if setting.kind is bool else f"`{setting.default_text}`"


def _values(setting: Setting) -> str:
    if setting.one_shot:
        return "on the command line only"
    if issubclass(setting.kind, StrEnum):
        return ", ".join(f"`{choice}`" for choice in setting.kind)
    texts = {bool: "`true`, `false`", str: (setting.metavar or "text").lower()}
    return setting.range_text or texts[setting.kind]


if __name__ == "__main__":
    OPERATIONS.write_text(with_tables(OPERATIONS.read_text("utf-8")), "utf-8")
