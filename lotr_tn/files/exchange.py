"""Two paths exchanged by one call of the system, where it has one."""

import ctypes
import os
import sys
from pathlib import Path

AT_FDCWD = -100  # paths are relative to the working folder, as everywhere
SWAP = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names so that neither is ever missing; False where the system cannot."""
    if sys.platform == "win32":
        return False
    system = ctypes.CDLL(None)
    first, second = os.fsencode(one), os.fsencode(other)
    if call := getattr(system, "renameat2", None):
        return call(AT_FDCWD, first, AT_FDCWD, second, SWAP) == 0
    if call := getattr(system, "renamex_np", None):
        return call(first, second, SWAP) == 0
    return False
