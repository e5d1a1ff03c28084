"""Command line."""

from blurguard.cli.app import main

__all__ = ["main"]
