"""What happens to tests that lack a tool: they skip, but in CI (the variable CI is set) they fail."""

import importlib.util
import os
from typing import NoReturn

import pytest

WITHOUT_TRAINING = "torch or ai-edge-quantizer is not installed: only developers who retrain need them"
_HAS_TRAINING = all(importlib.util.find_spec(name) for name in ("torch", "ai_edge_quantizer"))

needs_training_packages = pytest.mark.skipif(not _HAS_TRAINING, reason=WITHOUT_TRAINING)


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def missing(reason: str) -> NoReturn:
    """Skip a test for lack of a tool; in CI fail it."""
    if in_ci():
        pytest.fail(f"in CI: {reason}", pytrace=False)
    pytest.skip(reason)


def has_training_packages() -> bool:
    """Tell whether the dependency group ``calibration`` is installed; in CI fail if it is not."""
    if not _HAS_TRAINING and in_ci():
        pytest.fail(f"in CI: {WITHOUT_TRAINING}", pytrace=False)
    return _HAS_TRAINING
