"""Runs a network at any input size. The only importer of LiteRT, or else of tflite-runtime.

An interpreter has a fixed input size and is costly to build. A cache keeps interpreters of up to ``CACHE_BYTES``
together, and drops the least recently used first. Interpreters are not thread-safe: one ``Network`` per worker.
"""

import contextlib
import math
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blurguard.detection.model_zoo import NetworkSpec
from blurguard.errors import ModelError

# Building an interpreter takes a third of the time of a run, or more. Two networks then take under 250 MB together.
CACHE_BYTES = 92_000_000
MAX_INPUT_BYTES = 90_000_000  # larger inputs are tiled. 1.27 million px for CenterFace as INT8.
_RUNTIMES = (("ai_edge_litert.interpreter", "ai-edge-litert"), ("tflite_runtime.interpreter", "tflite-runtime"))


def interpreter_class() -> tuple[Any, str]:
    """Return the ``Interpreter`` class, and the name and version of its package.

    Raises:
        ModelError: neither package is installed.
    """
    for module, package in _RUNTIMES:
        try:
            interpreter = import_module(module).Interpreter
        except ImportError:
            continue
        with contextlib.suppress(PackageNotFoundError):
            return interpreter, f"{package} {version(package)}"
        return interpreter, package
    raise ModelError("no TensorFlow Lite runtime is installed; run: pip install ai-edge-litert")


class Network:
    """A set of weights that runs at any multiple of ``spec.size_multiple`` px."""

    def __init__(self, spec: NetworkSpec, data: bytes) -> None:
        """Take the bytes of the model, whose hash has been checked. Builds no interpreter yet.

        Raises:
            ModelError: no runtime is installed.
        """
        self.spec, self._data = spec, data
        self._make, _ = interpreter_class()
        self._interpreters: OrderedDict[tuple[int, int], Any] = OrderedDict()

    @property
    def max_px(self) -> int:
        """Px of the largest input that does not have to be tiled."""
        return MAX_INPUT_BYTES // self.spec.bytes_per_px

    def run(self, canvas: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the raw output maps for one RGB image.

        Args:
            canvas: (h, w, 3) uint8; h and w multiples of ``spec.size_multiple``.

        Returns:
            boxes (h / stride, w / stride, 4) in input px, and logits (h / stride, w / stride).

        Raises:
            ModelError: the runtime fails.
        """
        height, width = canvas.shape[:2]
        try:
            interpreter = self._interpreter(height, width)
            self._feed(interpreter, canvas)
            interpreter.invoke()
            boxes, logits = (_output(interpreter, name) for name in (self.spec.boxes, self.spec.scores))
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"network {self.spec.name}: the runtime failed at {width}x{height} px: {error}") from error
        return boxes[..., :4], logits[..., 0]

    def _interpreter(self, height: int, width: int) -> Any:
        """Return the cached interpreter for that size, or build it."""
        key = (height, width)
        if key not in self._interpreters:
            while self._interpreters and self._bytes_of((*self._interpreters, key)) > CACHE_BYTES:
                self._interpreters.popitem(last=False)
            self._interpreters[key] = self._build(height, width)
        self._interpreters.move_to_end(key)
        return self._interpreters[key]

    def _bytes_of(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Return the memory of interpreters of these sizes, about."""
        return self.spec.bytes_per_px * sum(map(math.prod, sizes))

    def _build(self, height: int, width: int) -> Any:
        """Build an interpreter after setting the sizes that the file itself holds."""
        data = bytearray(self._data)
        for offset, divisor in self.spec.size_constants:
            struct.pack_into("<2i", data, offset, height // divisor, width // divisor)
        with _quiet_stderr_once():
            interpreter = self._make(model_content=bytes(data), num_threads=1)
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [1, height, width, 3])
            interpreter.allocate_tensors()
        return interpreter

    def _feed(self, interpreter: Any, canvas: NDArray[np.uint8]) -> None:
        """Write the image into the input tensor in the value range of the network."""
        view = interpreter.tensor(interpreter.get_input_details()[0]["index"])()[0]
        if view.dtype == np.uint8:
            view[...] = canvas
        else:
            np.multiply(canvas, np.float32(self.spec.input_scale), out=view)
            view += np.float32(self.spec.input_offset)


def _output(interpreter: Any, name: str) -> NDArray[np.float32]:
    """Return the named output as float32, without its batch axis."""
    (details,) = (d for d in interpreter.get_output_details() if d["name"] == name)
    raw = interpreter.get_tensor(details["index"])[0]
    if raw.dtype == np.float32:
        return np.asarray(raw)
    scale, zero = details["quantization"]
    return np.asarray((raw.astype(np.float32) - np.float32(zero)) * np.float32(scale), np.float32)


_first_build = threading.Lock()
_built = threading.Event()


@contextlib.contextmanager
def _quiet_stderr_once() -> Iterator[None]:
    """Hide the message that the runtime prints at its first interpreter ("Created ... delegate").

    C++ prints it once per process, so the file descriptor must be redirected. That affects all threads: only the
    first one does it, once.
    """
    if _built.is_set():
        yield
        return
    with _first_build, contextlib.ExitStack() as restored:
        with contextlib.suppress(OSError):  # no stderr at all, as in some daemons
            stderr = os.dup(2)
            restored.callback(os.close, stderr)
            restored.callback(os.dup2, stderr, 2)
            with Path(os.devnull).open("wb") as null:
                os.dup2(null.fileno(), 2)
        yield
        _built.set()
