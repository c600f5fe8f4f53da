"""Links of a given rate and delay between network namespaces.

The rate is the kernel's everywhere (a token bucket with a bounded queue). The delay is `netem`'s where the kernel has
it, else that of a relay of ours: a process between two TAP devices.
"""

from whimbrel.network.shaping.links import DelayBy, End, Relay, connect, delay_by, reshape

__all__ = ["DelayBy", "End", "Relay", "connect", "delay_by", "reshape"]
