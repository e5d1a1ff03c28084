"""``python -m blurguard`` is the command line."""

from blurguard.cli.app import main

main()
