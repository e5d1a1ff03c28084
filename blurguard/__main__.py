"""``python -m blurguard`` is the command line."""

from blurguard.cli import main

main()
