"""Errors of blurguard, with their exit codes.

    BlurguardError        1   unforeseen
    ├── ConfigError       3   unknown key, bad value, overlapping folders
    ├── ModelError        4   missing model, checksum mismatch, runtime not installed
    ├── InputError        5   unreadable, unsupported, truncated, too large
    └── OutputError       6   exists without --overwrite, not writable
        └── StorageError  6   disk full, read-only or broken, for every file alike

Other exit codes: 0 all done or skipped, 2 usage (from typer), 7 a batch with at least one failure, 130 interrupted.
"""

EXIT_OK = 0
EXIT_UNFORESEEN = 1
EXIT_BATCH_FAILED = 7
EXIT_INTERRUPTED = 130


class BlurguardError(Exception):
    """Base of all errors that blurguard raises on purpose."""

    exit_code = EXIT_UNFORESEEN


class ConfigError(BlurguardError):
    """A setting is unknown, out of range, or contradicts another one."""

    exit_code = 3


class ModelError(BlurguardError):
    """The detector cannot run: missing file, wrong checksum, or no runtime."""

    exit_code = 4


class InputError(BlurguardError):
    """A source file cannot be read in its format."""

    exit_code = 5


class OutputError(BlurguardError):
    """A result cannot be written, or would replace a file that blurguard did not write."""

    exit_code = 6


class StorageError(OutputError):
    """No file can be written at present: the disk is full, read-only or broken."""
