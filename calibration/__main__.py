"""Runs one step of the model's making: ``python -m calibration STEP ...``."""

import argparse
import sys
from collections.abc import Sequence

from calibration import CalibrationError, base, evaluate, film

STEPS = (base, evaluate, film)  # modules with add_parser(subparsers), which sets `run`


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0 done, 1 the step failed, 2 wrong usage (argparse's)."""
    parser = argparse.ArgumentParser(prog="python -m calibration", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    for step in STEPS:
        step.add_parser(steps)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except CalibrationError as error:
        print(f"calibration: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
