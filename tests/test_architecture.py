"""The layers hold, and the rules that a reader relies on."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "blurguard"
# A module imports only from the rows above its own.
ROWS = (
    ("errors", "process", "types"),
    ("exposure", "families", "geometry", "light", "output", "scenes", "stages"),
    ("association", "config", "journal"),
    ("folders", "health", "inbox", "intake", "models", "originals", "tracks"),
    ("failures", "runtime"),
    ("blazeface", "obscure", "media", "convert", "metadata"),
    ("cloak", "video"),
    ("copies", "encoders", "planes"),
    ("remux",),
    ("containers", "report"),
    ("deep", "animation", "jpeg"),
    ("formats",),
    ("images",),
    ("detectors",),
    ("footage",),
    ("pipeline",),
    ("workers",),
    ("batch",),
    ("desk",),
    ("loop",),
    ("watch",),
    ("console", "doctor", "options"),
    ("cli",),
)
EXEMPT = ("__init__", "__main__")
ROW_OF = {name: number for number, row in enumerate(ROWS) for name in row}
NETWORK = {
    "aiohttp", "asyncio", "ftplib", "http", "httpx", "imaplib", "poplib", "requests", "smtplib", "socket",
    "socketserver", "ssl", "urllib", "urllib3", "webbrowser", "xmlrpc",
}  # fmt: skip
FFMPEG = {"copies", "encoders", "footage", "planes", "remux", "video"}  # footage names a type only
RUNTIMES = ("ai_edge_litert", "tflite_runtime")
LONGEST_FUNCTION, LONGEST_MODULE = 60, 400

MODULES = {path.stem: path for path in sorted(PACKAGE.rglob("*.py"))}
every_module = pytest.mark.parametrize("name", MODULES)


def tree_of(name: str) -> ast.Module:
    tree: ast.Module = ast.parse(MODULES[name].read_text("utf-8"))
    return tree


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of everything that is imported, anywhere in the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the layers"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_imported(tree: ast.Module) -> set[str]:
    """Return those of our modules that are imported."""
    parts = [name.split(".") for name in imported(tree)]
    return {part[1] for part in parts if part[0] == "blurguard" and len(part) > 1} - {"__version__"}


def test_every_module_stands_in_one_row_and_in_one_folder() -> None:
    assert {path.parent for path in MODULES.values()} == {PACKAGE}
    assert sorted(set(MODULES) - set(ROW_OF) - set(EXEMPT)) == []
    assert len(ROW_OF) == sum(map(len, ROWS))


@every_module
def test_modules_import_only_from_rows_above(name: str) -> None:
    if name in EXEMPT:
        return
    rooms = rooms_imported(tree_of(name))
    assert rooms <= set(ROW_OF)
    assert sorted(room for room in rooms if ROW_OF[room] >= ROW_OF[name]) == []


@every_module
def test_only_the_runtime_names_the_runtimes(name: str) -> None:
    tree = tree_of(name)
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [value for value in constants if isinstance(value, str)]
    named = [text for text in (*texts, *imported(tree)) if text.startswith(RUNTIMES)]
    assert bool(named) == (name == "runtime")


@every_module
def test_only_video_names_ffmpeg(name: str) -> None:
    assert ("av" in {full.split(".")[0] for full in imported(tree_of(name))}) == (name in FFMPEG)


@every_module
def test_nothing_can_reach_the_network(name: str) -> None:
    assert NETWORK & {full.split(".")[0] for full in imported(tree_of(name))} == set()


@every_module
def test_functions_and_modules_are_short(name: str) -> None:
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= LONGEST_MODULE
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not only_a_signature(node):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


def only_a_signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell a table of options, which is all parameters, from code."""
    return len(function.body) == 1 and ast.get_docstring(function) is not None


def catches_everything(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id == "Exception") for kind in caught)


@every_module
def test_only_the_boundaries_catch_every_exception(name: str) -> None:
    handlers = [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.ExceptHandler)]
    assert name in ("workers", "cli") or not any(map(catches_everything, handlers))


def test_the_test_can_tell_layers_apart() -> None:
    source = "import blurguard.cli\nfrom blurguard import batch\nfrom blurguard.pipeline import Anonymizer\n"
    assert rooms_imported(ast.parse(source)) == {"cli", "batch", "pipeline"}
    assert Path(MODULES["types"]) == PACKAGE / "types.py"
