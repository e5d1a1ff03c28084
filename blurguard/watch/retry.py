"""Retry rules of the drop folder: which failures are tried again, and when.

A failure whose cause lies outside of its file is retried: there is no space to write, or a worker process has died.
After a write error the daemon pauses first, longer each time. Any other failure is final for this version of the file:
it is tried again only if the file changes, or once with ``--retry-failed`` (`Coordinator.retry_failed`).
"""

import os
from concurrent.futures.process import BrokenProcessPool

from blurguard.batch.journal import FileRecord, FileState
from blurguard.batch.workers import Job
from blurguard.errors import OutputError, StorageError
from blurguard.files.stamp import FileStamp
from blurguard.types import Outcome


def is_final(record: FileRecord | None, stamp: FileStamp) -> bool:
    """Whether a file has failed and has not changed since (same stamp), so that it is not tried again."""
    return record is not None and record.state is FileState.FAILED and record.source == stamp


def is_temporary(outcome: Outcome, job: Job) -> bool:
    """Whether a failure is retried because its cause lies outside of the file."""
    if outcome.error in (StorageError.__name__, BrokenProcessPool.__name__):
        return True
    writable = job.scratch is not None and os.access(job.scratch, os.W_OK | os.X_OK)
    return outcome.error == OutputError.__name__ and not writable
