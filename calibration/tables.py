"""Markdown tables: the first column is text, the others are numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["row", "table", "table_head"]


def row(cells: Iterable[object]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def table_head(headers: Sequence[str]) -> str:
    """Return the two lines that begin a table, for tables whose rows are printed one by one."""
    return f"{row(headers)}\n{row(['---', *['---:'] * (len(headers) - 1)])}"


def table(headers: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a whole table."""
    return "\n".join([table_head(headers), *map(row, rows)])
