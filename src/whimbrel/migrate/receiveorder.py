"""What an agent tells the process that receives a service."""

from __future__ import annotations

import msgspec

from whimbrel.runtime.moving import Landing

MAX_ORDER_BYTES = 1 << 16


class ReceiveOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the worker needs; paths are the destination's own."""

    service: str
    stand_in: str
    token: str
    listen_host: str
    work_dir: str
    stage_dir: str
    needed_file: str
    criu_run_dir: str
    netns_dir: str
    landing: Landing
    expected_pages: int
    staged: bool
