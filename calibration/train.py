"""Retrains the detector on labeled pictures: ``python -m calibration train DATA --out FOLDER ...``.

DATA is a folder with ``faces.jsonl``. FOLDER gets, every few minutes:

- ``model.tflite``: the network with the moving average of the weights, which is what a model is made of and further
  training starts from; ``units.tflite``: the same with boxes as released files have them, for ``evaluate --file`` and
  ``quantize``; ``ema.npz``: that average alone; ``weights.npz``: the last ones;
- ``state.pt``: all that ``--resume`` needs to go on as if nothing had happened;
- ``log.jsonl``: losses, learning rate and speed; of the moving average, the losses on pictures kept back and the AP
  of the accurate mode on some of them, of the float network (faces of 60, 24 and 8 px and more);
- ``plot.png``: the curves of that log.

``graph.tflite`` there is the network that the weights belong to. A file FOLDER/finish ends the run early: from
the next checkpoint on the learning rate falls to zero, as it does at the end of all steps. Ctrl-C or a kill
loses what came after the last checkpoint.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import math
import pickle
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from blurguard.settings import Mode
from calibration import CalibrationError, flatbuffer, network, plot, read_network, whole_at, write_whole
from calibration.base import OUTPUTS
from calibration.candidate import OFFSET_UNIT, SIZE_UNIT, UNITS, alone, candidate
from calibration.crops import Batch, Blocks, Picture, Plan, load_pictures, split
from calibration.evaluate import pixels_of
from calibration.losses import PARTS, Losses, losses_of
from calibration.network import Graph, Weights
from calibration.quantize import load_measured
from calibration.rounding import Rounded
from calibration.score import Labeled, load_truth, subset_aps

__all__ = [
    "Pictures",
    "Recipe",
    "Schedule",
    "State",
    "Trainer",
    "Training",
    "add_parser",
    "add_recipe",
    "described",
    "exported",
    "given_recipe",
    "keep_memory",
    "refuse_senseless",
    "run",
    "state_of",
    "stored_state",
]

MOST_GRADIENT = 5.0  # norm
WEIGHT_DECAY = 1e-3
DESCRIPTION = "BlazeFace full-range, retrained by blurguard"
LOWEST_SCORE = 0.1  # for AP: an untrained network sees thousands of faces under it
LOG_EVERY = 50  # steps
RANGES = "ranges.json"  # of a run that rounds: its own copy of what it was given
HELD_BLOCKS = 2  # of crops, for validation
MALLOC = {-1: 2**31 - 1, -2: 2**28, -4: 0}  # malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX


def _type_of(part: dataclasses.Field[Any]) -> type:
    return int if part.default is dataclasses.MISSING else type(part.default)


def described(default: Any, text: str) -> Any:
    """Return a field of a recipe with this default and help."""
    return field(default=default, metadata={"help": f"{text} (default: {default})"})


@dataclass(frozen=True, slots=True)
class Schedule:
    """The part of a recipe that every network shares."""

    steps: int = field(metadata={"help": "of the whole run"})
    batch: int = described(16, "crops a step; a GPU has room for 64 and more")
    side: int = described(384, "px of a crop, a multiple of 32")
    rate: float = described(8e-4, "learning rate between warm-up and decay")
    warmup: int = described(200, "steps over which the rate rises")
    decay: int = described(1200, "steps at the end over which it falls to zero")
    average: float = described(0.999, "of the moving average, how much each step keeps")
    seed: int = described(0, "of pictures and crops")


@dataclass(frozen=True, slots=True)
class Recipe(Schedule):
    """What a run is defined by; the same recipe, data and machine give the same weights."""

    held: int = described(100, "pictures kept back for validation")
    quality: bool = described(False, "let the score learn the IoU of its box")
    ranges: str = described("", "train as INT8 will compute, by this .json that `quantize` wrote for these weights")


Pictures = tuple[list[Picture], list[Picture]]  # to train on, and kept back


@dataclass(slots=True)
class State:
    """All that changes while training."""

    weights: Weights
    average: Weights
    optimizer: torch.optim.AdamW
    step: int
    last_step: int


def add_parser(steps: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this step to ``python -m calibration``."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = steps.add_parser("train", help="retrain it on labeled pictures", description=__doc__, formatter_class=raw)
    parser.add_argument("data", type=Path, help="folder with faces.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--graph", type=Path, help="float .tflite to start from")
    parser.add_argument("--init", type=Path, help=".npz of weights to start from instead of the graph's own")
    parser.add_argument("--resume", action="store_true", help="go on with the run in FOLDER by its recipe")
    add_recipe(parser, Recipe)
    parser.add_argument("--watched", type=int, default=24, help="pictures that AP is taken on (default: 24)")
    parser.set_defaults(run=run)


def add_recipe(parser: argparse.ArgumentParser, recipe: type[Schedule]) -> None:
    """Add the fields of a recipe, and the arguments that every training has."""
    group = parser.add_argument_group("recipe", "with --resume, what is given here replaces what the run had")
    for part in dataclasses.fields(recipe):
        kind = {"action": argparse.BooleanOptionalAction} if part.default is False else {"type": _type_of(part)}
        group.add_argument(f"--{part.name.replace('_', '-')}", help=part.metadata["help"], **kind)
    parser.add_argument("--every", type=float, default=300, help="seconds between checkpoints (default: 300)")
    parser.add_argument("--workers", type=int, default=1, help="processes that make crops (default: 1)")


def given_recipe(arguments: argparse.Namespace, recipe: type[Schedule]) -> dict[str, Any]:
    """Return the fields of a recipe that the command line gives."""
    given = {part.name: getattr(arguments, part.name) for part in dataclasses.fields(recipe)}
    return {name: value for name, value in given.items() if value is not None}


def run(arguments: argparse.Namespace) -> int:
    """Train, from the start or from the last checkpoint.

    Raises:
        CalibrationError: wrong files or folders, or the loss is no number any more.
    """
    out: Path = arguments.out
    keep_memory()
    given = given_recipe(arguments, Recipe)
    if arguments.resume:
        stored = stored_state(out / "state.pt")
        recipe = Recipe(**stored["recipe"] | given)
        refuse_senseless(recipe)
        stored["last_step"] = given.get("steps", stored["last_step"])
    else:
        _refuse_unfit(arguments)
        stored, recipe = {}, Recipe(**given)
        refuse_senseless(recipe)
        load_pictures(arguments.data)  # cannot be read? Then nothing is written
        graph_file = flatbuffer.resizable(read_network(arguments.graph), OUTPUTS, DESCRIPTION)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "graph.tflite", graph_file)
    if "ranges" in given:
        write_whole(out / RANGES, load_measured(Path(given["ranges"])).as_json().encode())
    graph, weights = network.parse((out / "graph.tflite").read_bytes())
    if arguments.init and not stored:
        weights = network.load_npz(arguments.init)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = _state(graph, weights, recipe, stored, device)
    trainer = Trainer(graph, recipe, state, arguments.data, out)
    trainer.watch(arguments.watched)
    trainer.train(arguments.every, arguments.workers)
    return 0


class Training:
    """Takes a run from where it is to its last step. A subclass knows the network."""

    parts = PARTS  # names of the values of a `Losses`

    def __init__(self, recipe: Schedule, state: State, plan: Plan, pictures: Pictures, out: Path) -> None:
        self.recipe, self.state, self.plan, self.out = recipe, state, plan, out
        self.pictures, self.held = pictures
        self.device = next(iter(state.weights.values())).device
        # Elsewhere the CPU only emulates bfloat16, slower than float32.
        self.half_precision = self.device.type == "cuda" or "avx512_bf16" in _cpu_flags()

    def train(self, every_seconds: float, workers: int = 0) -> None:
        """Train, with a checkpoint every so many seconds and at the end; ``workers`` 0 makes crops in this process."""
        state, parts = self.state, []
        began = saved = time.monotonic()
        self._log(recipe=dataclasses.asdict(self.recipe), pictures=len(self.pictures), held=len(self.held))
        for batch in self._batches(workers):
            if state.step >= state.last_step:
                return
            losses, gradient = self._step(batch)
            parts.append(torch.cat([losses.stacked(), gradient[None]]))
            done = state.step == state.last_step
            if len(parts) == LOG_EVERY or done:
                mean, worst = torch.stack(parts).mean(dim=0).tolist(), torch.stack(parts).amax(dim=0).tolist()
                told = dict(zip((*self.parts, "gradient"), mean, strict=True))
                told |= {"worst_loss": worst[0], "worst_gradient": worst[-1]}
                self._log(**told, rate=self._rate(), per_second=len(parts) / (time.monotonic() - began))
                parts, began = [], time.monotonic()
                if not math.isfinite(mean[0]):
                    raise CalibrationError("the loss is no number any more: --resume from the last checkpoint")
            if done or time.monotonic() - saved >= every_seconds:
                self._checkpoint()
                saved = time.monotonic()

    def validate(self) -> dict[str, float]:
        """Return the losses of the averaged weights on crops of the pictures kept back, the same crops every time."""
        blocks = Blocks(self.held, self.plan, min(self.recipe.batch, len(self.held)), self.recipe.seed)
        with torch.no_grad():
            parts = [self._losses(self.state.average, batch) for block in range(HELD_BLOCKS) for batch in blocks[block]]
        means = torch.stack([losses.stacked() for losses in parts]).mean(dim=0).tolist()
        return {f"held_{name}": mean for name, mean in zip(self.parts, means, strict=True)}

    def measure(self) -> dict[str, float]:
        """Return further figures of the averaged weights."""
        return {}

    def _step(self, batch: Batch) -> tuple[Losses, Tensor]:
        """Change the weights once; return the losses before and the norm of their gradient."""
        state = self.state
        losses = self._losses(state.weights, batch)
        for group in state.optimizer.param_groups:
            group["lr"] = self._rate()
        state.optimizer.zero_grad()
        torch.autograd.backward(losses.loss)
        gradient = torch.nn.utils.clip_grad_norm_(state.weights.values(), MOST_GRADIENT)
        state.optimizer.step()
        state.step += 1
        keep = min(self.recipe.average, (1 + state.step) / (4 + state.step))  # early on, the last third of the steps
        with torch.no_grad():
            for key, value in state.weights.items():
                state.average[key].lerp_(value, 1 - keep)
        return losses, gradient

    def _image(self, pixels: Tensor) -> Tensor:
        """Return (b, 3, side, side) from -1 to 1 of uint8 (b, side, side, 3); NHWC in memory, which the CPU prefers."""
        return pixels.to(self.device).permute(0, 3, 1, 2).float().div(127.5).sub(1)

    def _losses(self, weights: Mapping[str, Tensor], batch: Batch) -> Losses:
        raise NotImplementedError

    def _export(self) -> None:
        """Write the network with the averaged weights in the form that it is used in."""

    def _rate(self) -> float:
        """Return the learning rate of the next step: up, level, down to zero."""
        recipe, step = self.recipe, self.state.step
        up = (step + 1) / max(recipe.warmup, 1)
        down = (self.state.last_step - step) / max(recipe.decay, 1)
        return recipe.rate * min(1.0, up, down)

    def _batches(self, workers: int) -> Iterator[Batch]:
        """Yield the batches from the present step on, without end."""
        blocks: Any = Blocks(self.pictures, self.plan, self.recipe.batch, self.recipe.seed)
        first, done = divmod(self.state.step, self.plan.per_picture)
        numbers = range(first, sys.maxsize)
        loader: Any = DataLoader(
            blocks,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            worker_init_fn=_one_thread,
            multiprocessing_context="spawn" if workers else None,  # OpenCV's threads do not survive a fork: it hung
        )
        for index, batches in zip(numbers, loader, strict=False):
            yield from (Batch(*batch) for batch in batches[done if index == first else 0 :])

    def stored(self) -> dict[str, Any]:
        """Return the state in the form that `state_of` resumes from."""
        stored = {part.name: getattr(self.state, part.name) for part in dataclasses.fields(self.state)}
        return stored | {"optimizer": self.state.optimizer.state_dict(), "recipe": dataclasses.asdict(self.recipe)}

    def _checkpoint(self) -> None:
        state = self.state
        if (self.out / "finish").exists():
            state.last_step = min(state.last_step, state.step + self.recipe.decay)
        network.save_npz(self.out / "ema.npz", state.average)
        network.save_npz(self.out / "weights.npz", state.weights)
        self._export()
        with whole_at(self.out / "state.pt") as part:
            torch.save(self.stored(), part)
        if self.held:
            self._log(**self.validate(), **self.measure())
        plot.draw(self.out / "log.jsonl", self.out / "plot.png")

    def _log(self, **values: Any) -> None:
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}
        line = json.dumps({"step": self.state.step, "time": round(time.time()), **rounded})
        print(line, flush=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Trainer(Training):
    """Trains BlazeFace."""

    recipe: Recipe

    def __init__(self, graph: Graph, recipe: Recipe, state: State, data: Path, out: Path) -> None:
        pictures = split(load_pictures(data), recipe.held)
        super().__init__(recipe, state, Plan(side=recipe.side), pictures, out)
        self.data = data
        self.computed: Graph | Rounded = graph
        if recipe.ranges:
            given = exported((out / "graph.tflite").read_bytes(), state.average)
            self.computed = Rounded(given, load_measured(out / RANGES), self.device)
            self.half_precision = False  # its 8 bits would round what is rounded already
        self.watched: list[Labeled] = []

    def watch(self, count: int) -> None:
        """Take the AP on so many of the pictures kept back, at every checkpoint."""
        kept = {picture.path for picture in self.held}
        truth = [picture for picture in load_truth(self.data) if picture.path in kept]
        self.watched = random.Random(self.recipe.seed).sample(truth, min(count, len(truth)))  # noqa: S311 - a sample

    def measure(self) -> dict[str, float]:
        """Return the AP, in percent, that the averaged weights have in the accurate mode on the pictures watched."""
        if not self.watched:
            return {}
        data = exported((self.out / "graph.tflite").read_bytes(), self.state.average)
        detector = alone(candidate(data), data, Mode.ACCURATE)
        found = [detector.detect(pixels_of(picture), LOWEST_SCORE) for picture in self.watched]
        names = ("ap_large", "ap_medium", "ap_small")
        return dict(zip(names, subset_aps(self.watched, found), strict=True))

    def _losses(self, weights: Mapping[str, Tensor], batch: Batch) -> Losses:
        pixels, *targets = (torch.as_tensor(values).to(self.device) for values in batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            boxes, logits = self.computed(weights, self._image(pixels))
        return losses_of(boxes, logits[:, 0], targets, quality=self.recipe.quality)

    def _export(self) -> None:
        graph = (self.out / "graph.tflite").read_bytes()
        write_whole(self.out / "model.tflite", network.write_back(graph, self.state.average))
        write_whole(self.out / "units.tflite", exported(graph, self.state.average))


def exported(graph: bytes, weights: Weights) -> bytes:
    """Return the float network that would be released with these weights: `graph` with boxes in units."""
    parsed, _ = network.parse(graph)
    model = flatbuffer.unpacked(network.write_back(graph, network.in_units(parsed, weights, OFFSET_UNIT, SIZE_UNIT)))
    model.description = f"{DESCRIPTION}, {UNITS}"
    return flatbuffer.packed(model, share=False)


def _refuse_unfit(arguments: argparse.Namespace) -> None:
    """Raise if the arguments are not enough for a new run, or there is one already."""
    if not arguments.steps or not arguments.graph:
        raise CalibrationError("give --graph and --steps, or --resume")
    if (arguments.out / "state.pt").exists():
        raise CalibrationError(f"{arguments.out} holds a run already: --resume it, or choose another folder")


def refuse_senseless(recipe: Schedule) -> None:
    """Raise `CalibrationError` for sizes and counts that no training can have."""
    if recipe.side < 1 or recipe.side % 32 or min(recipe.batch, recipe.steps) < 1:
        raise CalibrationError("--side is a multiple of 32 px; --side, --batch and --steps are at least 1")


def _state(graph: Graph, weights: Weights, recipe: Recipe, stored: Mapping[str, Any], device: torch.device) -> State:
    """Return a run at its beginning, or where it was stored."""
    if not stored and network.box_channels(graph, weights) == network.STOCK_CHANNELS:
        weights = network.with_log_sizes(graph, weights)
    return state_of(weights, recipe, stored, device)


def state_of(weights: Weights, recipe: Schedule, stored: Mapping[str, Any], device: torch.device) -> State:
    """Return a run at its beginning with these weights, or where it was stored."""
    weights = stored.get("weights", weights)
    average = {key: value.detach().to(device, copy=True) for key, value in stored.get("average", weights).items()}
    weights = {key: value.detach().to(device, copy=True).requires_grad_() for key, value in weights.items()}
    groups = [
        {"params": [value for value in weights.values() if value.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [value for value in weights.values() if value.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
    if stored:
        optimizer.load_state_dict(stored["optimizer"])
    return State(weights, average, optimizer, stored.get("step", 0), stored.get("last_step", recipe.steps))


def stored_state(path: Path) -> dict[str, Any]:
    """Return the content of a run's ``state.pt``, or raise `CalibrationError`."""
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CalibrationError(f"no run to resume: {error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise CalibrationError(f"{path} is damaged: start anew, from model.tflite beside it") from error
    if "optimiser" in stored:  # the key's name in states of older runs
        stored["optimizer"] = stored.pop("optimiser")
    return stored


def keep_memory() -> None:
    """Let glibc keep freed memory: each activation in fresh pages cost a third of the processor time (measured)."""
    if sys.platform == "linux":
        allocator = ctypes.CDLL(None)
        if hasattr(allocator, "mallopt"):
            for option, value in MALLOC.items():
                allocator.mallopt(option, value)


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text("utf-8") if info.exists() else ""


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)
