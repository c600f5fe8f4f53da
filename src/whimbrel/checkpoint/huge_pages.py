"""Transparent huge pages off for whatever this process starts from here on, across fork and exec."""

from __future__ import annotations

import ctypes

_PR_SET_THP_DISABLE = 41


def forbid_huge_pages() -> None:
    """For who starts a CRIU that restores lazily. CRIU writes the pages that it has before it registers the mapping
    with userfaultfd; with huge pages for everybody the first of them makes 2 MB present, and the pages around it would
    read as zeros instead of being asked for. CRIU itself forbids them only for images that have a parent. In the
    restored process it puts the setting back to what it was at the dump. No effect before Linux 3.15."""
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
