"""The two kernel interfaces of the tracker, as plain functions over `ioctl`: userfaultfd's asynchronous
write-protect (Linux 6.7, ``linux/userfaultfd.h``) and PAGEMAP_SCAN (``linux/fs.h``).

A page counts as *written* while its page-table entry has no write-protect mark. In a mapping that is
registered with an asynchronous userfaultfd, the first write clears the mark without telling anybody;
PAGEMAP_SCAN returns the pages without the mark and can set it again in the same step.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

import numpy as np
from numpy.typing import NDArray

from whimbrel.memory.ranges import EMPTY, Ranges
from whimbrel.model.units import PAGE_BYTES

UFFD_USER_MODE_ONLY = 1
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_API_VERSION = 0xAA
_WRITE_PROTECT, _WP_UNPOPULATED, _WP_ASYNC = 1 << 0, 1 << 13, 1 << 15
_REGISTER_MODE_WP = 2

_PAGEMAP_SCAN = 0xC0606610
_PM_SCAN_WP_MATCHING, _PM_SCAN_CHECK_WPASYNC = 1, 2
_IS_WPALLOWED, _IS_WRITTEN, _IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_PFNZERO = (1 << n for n in range(6))
_IS_GUARD = 1 << 8  # Linux 6.15
_SCAN_ARGUMENTS = struct.Struct("<12Q")
_ADDRESS_SPACE_BYTES = (1 << 47) - PAGE_BYTES  # as far as CRIU looks

_NO_TRACKING = (
    "this kernel has no asynchronous write-protect tracking ({what}): use Linux 6.7 or newer with CONFIG_USERFAULTFD"
)


def enable(uffd: int) -> None:
    """The handshake on a fresh userfaultfd. Raises OSError(EINVAL) where the kernel lacks the feature."""
    wanted = _WRITE_PROTECT | _WP_UNPOPULATED | _WP_ASYNC
    fcntl.ioctl(uffd, _UFFDIO_API, struct.pack("<QQQ", _API_VERSION, wanted, 0))


def register(uffd: int, start: int, end: int) -> None:
    """Put `[start, end)` under write-protect tracking; what is already so under this userfaultfd is left
    alone.

    Raises OSError: ESRCH the address space is gone, EBUSY somebody else's userfaultfd holds it, EINVAL or
    EPERM nothing or something unsuitable is mapped there.
    """
    fcntl.ioctl(uffd, _UFFDIO_REGISTER, struct.pack("<QQQQ", start, end - start, _REGISTER_MODE_WP, 0))


def forget_marks(uffd: int, start: int, end: int) -> None:
    """From now on every page of `[start, end)`, all of it registered, counts as written.

    A mapping that mremap joins to another loses its registration with that one (Linux 6.18: the whole of what they have
    become), but not its marks, and a marked page can then be written without losing its mark. Registered again, such a
    page looks as if nobody had written it, and is not protected by a scan: no write to it would ever be seen.

    Raises OSError: ENOENT something in between is not registered.
    """
    fcntl.ioctl(uffd, _UFFDIO_WRITEPROTECT, struct.pack("<QQQ", start, end - start, 0))


class Scanner:
    """PAGEMAP_SCAN with its result buffer. Only populated pages are ever returned: the kernel has a faster
    walk for "written" alone, but it reports every hole of a sparse reservation as written. Zero pages and
    guard regions are left out, as CRIU leaves them out."""

    def __init__(self, regions: int = 1 << 15) -> None:
        self._vector: NDArray[np.uint64] = np.empty((regions, 3), dtype=np.uint64)
        self._never = _IS_PFNZERO | _IS_FILE | (_IS_GUARD if _knows_guard_regions() else 0)

    def written(self, pagemap: int, start: int, end: int, *, rearm: bool, files: bool = True) -> Ranges:
        """Pages of registered mappings that were written since they were last re-armed. `files=False`, for
        where no file is mapped, is several times faster: the kernel need not look at each page."""
        flags = _PM_SCAN_WP_MATCHING if rearm else 0
        absent = self._never if files else self._never & ~_IS_FILE
        return self._scan(pagemap, start, end, flags, absent, _IS_WPALLOWED | _IS_WRITTEN)

    def dropped(self, pagemap: int, start: int, end: int) -> Ranges:
        """Pages of registered mappings of files of which only the write-protect mark is left: their own
        copy was dropped (MADV_DONTNEED, truncation) and what they hold is again the file's. The kernel
        lists them as swapped out, so really swapped pages are among them."""
        absent = self._never | _IS_WRITTEN | _IS_PRESENT
        return self._scan(pagemap, start, end, 0, absent, _IS_WPALLOWED | _IS_SWAPPED)

    def unregistered(self, pagemap: int, start: int, end: int) -> Ranges:
        """All populated pages of mappings that are not registered, without unmodified file pages."""
        return self._scan(pagemap, start, end, 0, self._never | _IS_WPALLOWED, 0)

    def present(self, pagemap: int, start: int, end: int, *, files: bool = True) -> Ranges:
        """All populated pages, registered or not, nothing re-armed. `files`: as for `written`."""
        return self._scan(pagemap, start, end, 0, self._never if files else self._never & ~_IS_FILE, 0)

    def any_guard(self, pagemap: int) -> bool:
        """Are there guard regions (MADV_GUARD_INSTALL)? Where the kernel has them but cannot list them: no."""
        if not self._never & _IS_GUARD:
            return False
        size, address = len(self._vector), self._vector.ctypes.data
        argument = bytearray(_SCAN_ARGUMENTS.pack(
            _SCAN_ARGUMENTS.size, 0, 0, _ADDRESS_SPACE_BYTES, 0, address, size, 1, 0, _IS_GUARD, 0, _IS_GUARD
        ))  # fmt: skip
        return bool(fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument))

    def any_registered(self, pagemap: int, start: int, end: int) -> bool:
        """Is there a populated page in a registered mapping?"""
        return len(self._scan(pagemap, start, end, 0, self._never, _IS_WPALLOWED, max_pages=1)) > 0

    def populated(self, pagemap: int, start: int, end: int) -> Ranges:
        """All populated pages, re-armed. Raises PermissionError when any of it is not registered."""
        return self._scan(pagemap, start, end, _PM_SCAN_WP_MATCHING | _PM_SCAN_CHECK_WPASYNC, self._never, 0)

    def _scan(
        self, pagemap: int, start: int, end: int, flags: int, absent: int, required: int, max_pages: int = 0
    ) -> Ranges:
        parts: list[Ranges] = []
        size, address = len(self._vector), self._vector.ctypes.data
        while start < end:
            # An "inverted" category matches when it is absent; the mask names those that must match.
            argument = bytearray(_SCAN_ARGUMENTS.pack(
                _SCAN_ARGUMENTS.size, flags, start, end, 0, address, size, max_pages,
                absent, absent | required, _IS_PRESENT | _IS_SWAPPED, _IS_PRESENT | _IS_SWAPPED,
            ))  # fmt: skip
            count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
            reached = _SCAN_ARGUMENTS.unpack(argument)[4]
            if count:
                parts.append(self._vector[:count, :2].copy())
            if reached <= start or (count and max_pages):
                break
            start = reached
        if not parts:
            return EMPTY
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _knows_guard_regions() -> bool:
    argument = _SCAN_ARGUMENTS.pack(_SCAN_ARGUMENTS.size, 0, 0, 0, 0, 0, 0, 0, 0, _IS_GUARD, 0, _IS_GUARD)
    with open("/proc/self/pagemap", "rb") as pagemap:
        try:
            fcntl.ioctl(pagemap, _PAGEMAP_SCAN, bytearray(argument))
        except OSError:
            return False
    return True


def missing_support() -> str | None:
    """One line that says why this host cannot track writes, or None. Tries it on this very process."""
    number = {"x86_64": 323, "aarch64": 282}.get(platform.machine())
    if number is None:
        return f"write tracking is not written for {platform.machine()}: use x86-64 or arm64"
    libc = ctypes.CDLL(None, use_errno=True)
    uffd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | UFFD_USER_MODE_ONLY)
    if uffd < 0:
        return _NO_TRACKING.format(what=f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    try:
        enable(uffd)
        with open("/proc/self/pagemap", "rb") as pagemap:
            Scanner(1).unregistered(pagemap.fileno(), 0, 0)
            fcntl.ioctl(pagemap, _PAGEMAP_SCAN, bytearray(_SCAN_ARGUMENTS.pack(96, *[0] * 11)))
    except OSError as error:
        return _NO_TRACKING.format(what=errno.errorcode.get(error.errno or 0, str(error)))
    finally:
        os.close(uffd)
    return None
