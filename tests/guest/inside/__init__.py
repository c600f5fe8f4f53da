"""Tests for a kernel with soft-dirty bits and control groups of version 2 alone; `tests/guest/test_guest.py` runs them
in the guest."""
