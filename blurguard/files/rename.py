"""Renames files without ever replacing another, as far as the system allows."""

import ctypes
import errno
import os
from pathlib import Path

_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # fcntl.h, linux/fs.h


def rename_noreplace(draft: Path, target: Path) -> None:
    """Rename a file without ever replacing another.

    On systems without such a call the file may keep its old name as well.

    Raises:
        FileExistsError: the name is taken.
        OSError: it cannot be renamed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux, glibc 2.28 and later
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(draft), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, *_NOT_SUPPORTED):  # these mean: not by this kernel or file system
            raise OSError(number, os.strerror(number), os.fspath(draft), None, os.fspath(target))
    try:
        os.link(draft, target)  # fails if the name is taken
    except OSError as error:
        # File systems without hard links (FAT, some network shares): check, then rename.
        if error.errno not in (errno.EPERM, *_NOT_SUPPORTED, errno.EMLINK):
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from error
        draft.rename(target)
