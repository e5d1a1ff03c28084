"""What can go wrong, as one tree; each class carries the exit code of the command line.

    BlurguardError        1   unforeseen
    ├── ConfigError       3   unknown key, bad value, overlapping folders
    ├── ModelError        4   missing model, checksum mismatch, runtime not installed
    ├── InputError        5   unreadable, unsupported, truncated, too large
    └── OutputError       6   exists and no --overwrite, not writable
        └── StorageError  6   disk full, read-only or broken: nothing that is wrong with one file

Codes that no single error carries: 0 all done or skipped, 2 usage (Click's), 7 a batch with at least one
failure, 130 interrupted.
"""

EXIT_OK = 0
EXIT_UNFORESEEN = 1
EXIT_BATCH_FAILED = 7
EXIT_INTERRUPTED = 130


class BlurguardError(Exception):
    """Base of every error that blurguard raises on purpose."""

    exit_code = EXIT_UNFORESEEN


class ConfigError(BlurguardError):
    """A setting is unknown, out of range, or contradicts another one."""

    exit_code = 3


class ModelError(BlurguardError):
    """The detector cannot run: file missing, hash wrong, runtime absent."""

    exit_code = 4


class InputError(BlurguardError):
    """A source file cannot be read as what it claims to be."""

    exit_code = 5


class OutputError(BlurguardError):
    """A result cannot be written, or would overwrite something that is not ours."""

    exit_code = 6


class StorageError(OutputError):
    """Nothing at all can be written at present: the disk is full, read-only or broken."""
