"""A Debian guest under QEMU's emulation, for what needs a kernel that this machine may not have.

`image` makes QEMU and the guest's disk, once; `machine` boots it and runs commands in it; `inside/` holds the tests
that run there, `init.py` is the guest's first process. Run by ``make test-guest``.
"""
