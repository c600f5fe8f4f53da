"""Ways through the region: B and RTT between any two places, along the links with the least round-trip time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from whimbrel.model.edge import Link


def routes(names: Sequence[str], links: Sequence[Link]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(bandwidth in bit/s, round-trip time in ms) from each name to each, in the order of `names`.

    A way's bandwidth is that of its narrowest link; 0 and infinite where no way leads. To itself: infinite and 0.
    """
    index = {name: number for number, name in enumerate(names)}
    rtt_ms = np.full((len(names), len(names)), np.inf)
    bandwidth_bps = np.zeros_like(rtt_ms)
    np.fill_diagonal(rtt_ms, 0.0)
    np.fill_diagonal(bandwidth_bps, np.inf)
    for link in links:
        for a, b in ((index[link.a], index[link.b]), (index[link.b], index[link.a])):
            rtt_ms[a, b], bandwidth_bps[a, b] = link.rtt_ms, link.bandwidth_bps
    for over in range(len(names)):
        around_ms = rtt_ms[:, over, None] + rtt_ms[None, over, :]
        around_bps = np.minimum(bandwidth_bps[:, over, None], bandwidth_bps[None, over, :])
        shorter = (around_ms < rtt_ms) | ((around_ms == rtt_ms) & (around_bps > bandwidth_bps))
        rtt_ms = np.where(shorter, around_ms, rtt_ms)
        bandwidth_bps = np.where(shorter, around_bps, bandwidth_bps)
    return bandwidth_bps, rtt_ms
