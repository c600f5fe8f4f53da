"""A gateway as a NAT router: its users appear to the services with the gateway's own address (RFC 3022, 4.1).

The kernel translates before it looks for the neighbour, so packets that are held for a service wait translated, and
connections through here survive its moves as any other.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable

from whimbrel.model.errors import BadInput, Refused
from whimbrel.network.names import interface

TABLE = "whimbrel-nat"


def translate(subnets: Iterable[str]) -> None:
    """What comes from these subnets leaves the calling thread's namespace with its own address; exactly these from now
    on, none: no translation. Connections that are being translated go on. Raises Refused, BadInput."""
    wanted = [str(interface(subnet).network) for subnet in subnets]
    if any(network.endswith("/32") for network in wanted):
        raise BadInput(f"nat {wanted} is not a list of subnets: write them like 10.99.0.0/24")
    if not wanted and not shutil.which("nft"):
        return  # then nothing was set up either
    lines = [f"add table ip {TABLE}", f"delete table ip {TABLE}"]
    if wanted:
        inside = ", ".join(wanted)
        lines += [
            f"add table ip {TABLE}",
            f"add chain ip {TABLE} out {{ type nat hook postrouting priority srcnat; policy accept; }}",
            f"add rule ip {TABLE} out ip saddr {{ {inside} }} ip daddr != {{ {inside} }} masquerade",
        ]
    with contextlib.ExitStack() as quietly:
        if not wanted:  # a kernel without nft's tables has none of ours
            quietly.enter_context(contextlib.suppress(Refused))
        _nft("\n".join(lines))


def _nft(script: str) -> None:
    """All or nothing: nft takes a script as one transaction."""
    try:
        done = subprocess.run(["nft", "-f", "-"], input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Refused("address translation needs nft: run scripts/setup, or leave `nat` out") from error
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[:1] or ["nft says no more"]
        raise Refused(f"address translation cannot be set up: {reason[0]}; does the kernel have nft's NAT?")
