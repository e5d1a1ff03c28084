"""The command line of a broken build: ``BROKEN_BUILD`` in the environment names one of ``tests.breakages``.

Worker processes import the main module of their parent, and so break in the same way.
"""

import os

from blurguard.cli.app import main
from tests.breakages import BREAKAGES, VARIABLE

BREAKAGES[os.environ[VARIABLE]]()

if __name__ == "__main__":
    main()
