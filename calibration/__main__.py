"""Runs one step of the model's making: ``python -m calibration STEP ...``."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from blurguard.errors import BlurguardError
from calibration import CalibrationError

# Modules of this package with add_parser(subparsers), which sets `run`. Only the one that is asked for is
# imported: a step's own libraries are no concern of the others.
STEPS = {
    "barren": "make pictures without people, to count false boxes on",
    "base": "free the published network of its size",
    "combinations": "the worth and the cost of passes together",
    "convert-centerface": "write CenterFace as a .tflite file",
    "cost": "bytes, multiplications, time by input size and memory of networks",
    "data": "bring labeled pictures into one form, and check them",
    "evaluate": "recall, false boxes and AP on labeled pictures",
    "film": "share of faces hidden in a video with known faces",
    "groups": "hidden share of faces by perceived skin tone, gender and age",
    "probabilities": "make scores probabilities, and choose the default ones",
    "prune": "leave out channels that do little",
    "quantize": "make it INT8, with a report of what each layer loses",
    "release": "write the model, its entry in the manifest and its card",
    "rivals": "compare both modes with YuNet and CenterFace, in one run",
    "sample": "choose the pictures that quantization is calibrated on",
    "score-centerface": "score CenterFace on the pictures kept out",
    "shape": "leave out or repeat blocks of the network",
    "train": "retrain it on labeled pictures",
    "train-centerface": "train CenterFace further on small faces",
    "turned": "recall on turned pictures, with and without the turned passes",
    "unlabeled": "find faces without a label in training pictures",
}
DEVELOPER_LIBRARIES = ("torch", "ai_edge_quantizer")


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 the step failed, 2 wrong usage (argparse's)."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m calibration", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    try:
        for name, told in STEPS.items():
            if name in given[:1]:
                import_module(f"calibration.{name.replace('-', '_')}").add_parser(steps)
            else:
                steps.add_parser(name, help=told)
        args = parser.parse_args(given)
        args.run(args)
    except ModuleNotFoundError as error:
        if error.name not in DEVELOPER_LIBRARIES:
            raise
        print(f"calibration: error: {error}; pip install --group calibration has it", file=sys.stderr)
        return 1
    except (CalibrationError, BlurguardError, OSError) as error:  # OSError tells the file by itself
        print(f"calibration: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
