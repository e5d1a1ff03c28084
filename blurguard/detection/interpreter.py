"""Running a network at any size: the only importer of LiteRT, or of tflite-runtime where that is installed.

An interpreter has a fixed input size and is costly to build, so those in use are kept, least recently used
going first, as long as they hold no more than ``CACHE_PX`` input pixels together. Interpreters are not
thread-safe: one ``Network`` per worker.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blurguard.detection.model_zoo import ModelSpec
from blurguard.errors import ModelError

# An INT8 network takes about 100 bytes per input px, a float one 170 (measured): this bounds them to some 100 and
# 170 MB. Building an interpreter takes about as long as running it once.
CACHE_PX = 1_000_000
_RUNTIMES = (("ai_edge_litert.interpreter", "ai-edge-litert"), ("tflite_runtime.interpreter", "tflite-runtime"))


def interpreter_class() -> tuple[Any, str]:
    """Return the ``Interpreter`` class and which package, of which version, it is of.

    Raises:
        ModelError: when neither package is installed.
    """
    for module, package in _RUNTIMES:
        try:
            found = __import__(module, fromlist=["Interpreter"]).Interpreter
        except ImportError:
            continue
        with contextlib.suppress(PackageNotFoundError):
            return found, f"{package} {version(package)}"
        return found, package
    raise ModelError("no TensorFlow Lite runtime is installed; run: pip install ai-edge-litert")


class Network:
    """One set of weights that runs at any size which is a multiple of ``spec.size_multiple``."""

    def __init__(self, spec: ModelSpec, data: bytes, threads: int = 1) -> None:
        """Take the model's bytes, whose hash has been checked; builds nothing yet.

        Raises:
            ModelError: when no runtime is installed.
        """
        self.spec = spec
        self._data = data
        self._threads = threads
        self._make, _ = interpreter_class()
        self._interpreters: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def run(self, canvas: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the raw maps for one RGB picture.

        Args:
            canvas: (h, w, 3) uint8; h and w multiples of ``spec.size_multiple``.

        Returns:
            boxes (h / stride, w / stride, 4) in input px, and logits (h / stride, w / stride).

        Raises:
            ModelError: when the runtime fails.
        """
        size = canvas.shape[:2]
        try:
            interpreter = self._interpreter(size[0], size[1])
            self._feed(interpreter, canvas)
            interpreter.invoke()
            boxes, logits = (_output(interpreter, name) for name in (self.spec.boxes, self.spec.scores))
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"model {self.spec.name}: the runtime failed at {size[1]}x{size[0]} px: {error}"
            ) from error
        return boxes[..., :4], logits[..., 0]

    def _interpreter(self, height: int, width: int) -> Any:
        """Return the interpreter for that size, building it if there is none."""
        key = (height, width)
        if key not in self._interpreters:
            used = sum(h * w for h, w in self._interpreters)
            while self._interpreters and used + height * width > CACHE_PX:
                (h, w), _ = self._interpreters.popitem(last=False)
                used -= h * w
            self._interpreters[key] = self._build(height, width)
        self._interpreters.move_to_end(key)
        return self._interpreters[key]

    def _build(self, height: int, width: int) -> Any:
        """Build an interpreter; where the file holds sizes, they are set to this one first."""
        data = bytearray(self._data)
        for offset, divisor in self.spec.size_constants:
            struct.pack_into("<2i", data, offset, height // divisor, width // divisor)
        with _quiet_stderr_once():
            interpreter = self._make(model_content=bytes(data), num_threads=self._threads)
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [1, height, width, 3])
            interpreter.allocate_tensors()
        return interpreter

    def _feed(self, interpreter: Any, canvas: NDArray[np.uint8]) -> None:
        """Write the picture into the input tensor, as the numbers that the network expects."""
        view = interpreter.tensor(interpreter.get_input_details()[0]["index"])()[0]
        if view.dtype == np.uint8:
            view[...] = canvas
        else:
            np.multiply(canvas, np.float32(self.spec.input_scale), out=view)
            view += np.float32(self.spec.input_offset)


def _output(interpreter: Any, name: str) -> NDArray[np.float32]:
    """Return the output of that name as float32, without its batch axis."""
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
    """Keep what the runtime says at its first interpreter ("Created ... delegate") off the user's terminal.

    It says so once in a process, from C++, so only turning the descriptor away helps. That concerns all
    threads: it is done once, by one of them.
    """
    if _built.is_set():
        yield
        return
    with _first_build, _discard_stderr():
        yield
        _built.set()


@contextlib.contextmanager
def _discard_stderr() -> Iterator[None]:
    """Turn standard error to nowhere."""
    try:
        kept = os.dup(2)
    except OSError:  # no stderr at all, as in some daemons
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
