"""Rules that hold in every module of blurguard, and the layers contract of pyproject.toml (``make lint`` runs it)."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "blurguard"
NETWORK = {
    "aiohttp", "asyncio", "ftplib", "http", "httpx", "imaplib", "poplib", "requests", "smtplib", "socket",
    "socketserver", "ssl", "urllib", "urllib3", "webbrowser", "xmlrpc",
}  # fmt: skip
# Pixels of video frames are hidden in place, so `anonymize` names FFmpeg's frames; all else is done in `video`.
FFMPEG = ("video.", "anonymize.frame_detection", "anonymize.video", "anonymize.surfaces")
RUNTIMES = ("ai_edge_litert", "tflite_runtime")
CATCH_ALL = {"batch.workers", "cli.command"}
MAX_FUNCTION_LINES, MAX_MODULE_LINES, MAX_MODULES = 60, 400, 12

MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
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


def packages_imported(name: str) -> set[str]:
    """Return the packages outside blurguard that a module imports."""
    return {full.split(".")[0] for full in imported(tree_of(name))}


@every_module
def test_only_the_interpreter_names_the_runtimes(name: str) -> None:
    tree = tree_of(name)
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = [value for value in constants if isinstance(value, str)]
    named = [text for text in (*texts, *imported(tree)) if text.startswith(RUNTIMES)]
    assert bool(named) == (name == "detection.interpreter")


@every_module
def test_only_video_imports_ffmpeg(name: str) -> None:
    assert "av" not in packages_imported(name) or name.startswith(FFMPEG)


@every_module
def test_nothing_can_reach_the_network(name: str) -> None:
    assert NETWORK & packages_imported(name) == set()


@every_module
def test_functions_and_modules_are_short(name: str) -> None:
    assert len(MODULES[name].read_text("utf-8").splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not only_a_signature(node):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


def only_a_signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell a table of options, which is all parameters, from code."""
    return len(function.body) == 1 and ast.get_docstring(function) is not None


def test_no_folder_is_wide() -> None:
    for folder in {path.parent for path in MODULES.values()}:
        assert len(list(folder.glob("*.py"))) <= MAX_MODULES, folder


def test_docs_show_every_module() -> None:
    picture = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("```")[1]
    shown = set(picture.replace("->", " ").split())
    assert {part for name in MODULES for part in name.split(".") if not part.startswith("__")} <= shown


def catches_everything(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id == "Exception") for kind in caught)


@every_module
def test_only_the_boundaries_catch_every_exception(name: str) -> None:
    handlers = [node for node in ast.walk(tree_of(name)) if isinstance(node, ast.ExceptHandler)]
    assert name in CATCH_ALL or not any(map(catches_everything, handlers))


@pytest.mark.parametrize(
    ("module", "imports"),
    [
        ("detection/regions", "from blurguard.redaction.regions import regions_from"),  # a sibling
        ("files/runner", "from blurguard.batch.runner import run_and_publish"),  # a higher layer
        ("hash", "from blurguard.files.atomic import digest_bytes"),  # in no layer
    ],
)
def test_contract_finds_a_misplaced_module(module: str, imports: str, tmp_path: Path) -> None:
    for folder in ("blurguard", "calibration", "bench", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=lambda _, names: set(names) - source_names(names))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert lint_imports(tmp_path).returncode == 0
    (tmp_path / "blurguard" / f"{module}.py").write_text(f'"""A misplaced module."""\n\n{imports}\n', "utf-8")
    assert "BROKEN" in lint_imports(tmp_path).stdout


def source_names(names: list[str]) -> set[str]:
    return {name for name in names if name.endswith(".py") or ("." not in name and name != "__pycache__")}


def lint_imports(checkout: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, check=False)
