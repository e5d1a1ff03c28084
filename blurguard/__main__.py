"""Command line, as ``python -m blurguard``."""

from blurguard.cli.app import main

main()
