"""The end-to-end delay of one task, eq. (4) of `coordinated`, part by part. All functions take arrays that broadcast.

Queuing is taken to be the same before and after (IV-A), and the answer to be small beside the task.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def processing_ms(measured_ms: Values, power: Values, other_power: Values) -> Values:
    """d_proc C_s / C_s': what took `measured_ms` where the computing power is `power`, elsewhere."""
    return measured_ms * power / other_power


def transmission_ms(task_bytes: Values, radio_bps: Values, wired_bps: Values) -> Values:
    """S_u / B_ubs with B_ubs = min(B_ub, B_bs); infinite where one of them carries nothing."""
    slowest_bps = np.minimum(radio_bps, wired_bps)
    with np.errstate(divide="ignore", invalid="ignore"):
        took_ms = task_bytes * 8e3 / slowest_bps
    # without a link there is no way, however small the task
    return np.where(slowest_bps > 0, took_ms, np.inf)


def propagation_ms(rtt_ms: Values) -> Values:
    """RTT_bs; the way through the air is too short to count."""
    return rtt_ms
