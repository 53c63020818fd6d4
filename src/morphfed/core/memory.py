"""Memory that a process keeps for itself between training steps.

A training step asks for the same few dozen megabytes again and again. By default the GNU C library may return large
blocks to the system when they are freed, and the next step pays for every page anew: up to a fifth of a small network's
step (docs/performance.md). CUDA has a caching allocator of its own and is not concerned.
"""

from __future__ import annotations

import ctypes
import sys

LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Environment of processes that copy whole models: new memory comes in large pages, which is several times faster."""

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_LARGEST = 32 << 20
"""The most that glibc takes as the threshold; larger blocks still go back at once."""


def keep_freed_memory() -> bool:
    """Let this process reuse blocks of up to 32 MiB; for good, and without effect on any result.

    Returns:
        Whether the C library can; False where it is not glibc (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # musl has a mallopt that does nothing
        options = [(_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)]
        return all(library.mallopt(name, value) == 1 for name, value in options)
    except AttributeError:
        return False


def give_back_freed_memory() -> None:
    """Return what is free to the system, also between blocks in use; without effect where the C library cannot."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
