"""What ``auto`` means for this migration: first by what is known without a connection, then by the measured link."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from whimbrel.migrate.job import Migration
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.migrate.preflight import means_of
from whimbrel.migrate.speed import link_bytes_per_s, storage_bytes_per_s
from whimbrel.plan.choice import Situation, choose
from whimbrel.plan.convergence import RoundFacts, crossing_bytes_per_s
from whimbrel.plan.costs import HYBRID, POST_COPY, SHARED
from whimbrel.plan.means import possible
from whimbrel.plan.strategies import AUTO, Carry, Strategy, strategy_of
from whimbrel.wire.calls import OfferReply
from whimbrel.wire.rpc import Peer


async def first_choice(job: Migration, peer: Peer) -> Strategy:
    """What was asked for; for ``auto`` what the destination is to prepare for. Raises BadInput."""
    request = job.request
    if request.strategy != AUTO:
        return strategy_of(request.strategy)
    if not job.source.status.shared or request.handover_in_ms > 0:
        return strategy_of(HYBRID)
    # The destination has to mount it too, or refuses (see `storage_needed`).
    link = await link_bytes_per_s(peer)
    storage = await storage_bytes_per_s(Path(job.node.shared_directory), f".speed-{request.id}")
    limit = request.bandwidth_bps / 8 or float("inf")
    choice = choose(
        Situation(
            memory_bytes=job.source.status.rss_bytes,
            files_bytes=0,
            link_bytes_per_s=min(link, limit),
            storage_bytes_per_s=min(storage, limit),
            shared=True,
            max_downtime_ms=request.max_downtime_ms,
            costs=job.node.costs,
            deadline_ms=request.deadline_ms,
        )
    )
    rates = f"link {min(link, limit) * 8 / 1e6:.0f} Mbit/s, storage {min(storage, limit) * 8 / 1e6:.0f} Mbit/s"
    job.say(f"auto: {choice.reason} ({rates})")
    return strategy_of(SHARED if choice.strategy == SHARED else HYBRID)


def storage_needed(job: Migration, strategy: Strategy) -> str:
    """Identity of the shared storage that the destination must mount too; "" when none is needed or works here."""
    if job.source.status.shared:
        return job.source.status.shared
    return job.node.capabilities.shared[0] if strategy.carry is Carry.SHARED and not _storage_problem(job) else ""


def _storage_problem(job: Migration) -> str:
    """Why this node cannot put memory on shared storage; empty when it can."""
    if not job.node.shared_directory:
        return f"{job.node.endpoint.name} mounts no shared storage (`shared_directory` in its agent's settings)"
    if not job.source.status.shared and not job.node.capabilities.shared:
        return f"the shared storage of {job.node.endpoint.name} is away (`whimbrel node ls` says why)"
    return ""


def possible_choice(job: Migration, strategy: Strategy, offer: OfferReply) -> Strategy:
    """The same if the two nodes have what it needs; for ``auto`` else the nearest that can work. Raises Refused."""
    means = means_of(job.node.capabilities, job.source.run_dir, offer)
    strategy, why_another = possible(
        strategy,
        replace(means, shared_problem=_storage_problem(job) or offer.shared_problem),
        job.source.status.rss_bytes,
        here=job.node.endpoint.name,
        there=job.destination.name,
        auto=job.request.strategy == AUTO,
    )
    if why_another:
        job.say(f"auto: {strategy.name}, because {why_another}")
        job.strategy = strategy.name
    return strategy


def second_choice(job: Migration, strategy: Strategy, channel: PageChannel) -> Strategy:
    """``auto`` again, now that the link can be measured. Blocks for that, some ms on a fast link."""
    if job.request.strategy != AUTO or strategy.name != HYBRID:  # another one only because that cannot work
        return strategy
    measured = job.link_bytes_per_s = channel.measure_bytes_per_s()
    limit = job.request.bandwidth_bps / 8 or measured
    choice = choose(
        Situation(
            memory_bytes=job.source.status.rss_bytes,
            files_bytes=job.files_bytes,
            link_bytes_per_s=min(measured, limit),
            handover_in_ms=job.request.handover_in_ms,
            max_downtime_ms=job.request.max_downtime_ms,
            costs=job.node.costs,
            deadline_ms=job.request.deadline_ms,
        )
    )
    job.say(f"auto: {choice.reason} (link {min(measured, limit) * 8 / 1e6:.0f} Mbit/s)")
    job.strategy = choice.strategy
    return strategy_of(choice.strategy)


def third_choice(job: Migration, strategy: Strategy, first: RoundFacts) -> bool:
    """``auto`` once more, when the first round has told how fast the service writes and how fast that crosses: whether
    what is dirty is to follow the resume, because rounds would miss a limit."""
    request, written = job.request, first.written_bytes_per_s
    limited = request.max_downtime_ms > 0 or request.deadline_ms > 0
    if request.strategy != AUTO or strategy.name != HYBRID or not limited or written is None:
        return False
    rate = crossing_bytes_per_s([first])
    choice = choose(
        Situation(
            memory_bytes=first.next_bytes,
            files_bytes=0,  # they are there; what is written of them meanwhile is in the round
            link_bytes_per_s=rate,
            dirty_bytes_per_s=written,
            prepared=True,
            handover_in_ms=max(0.0, request.handover_in_ms - job.now_ms()) if request.handover_in_ms > 0 else 0.0,
            max_downtime_ms=request.max_downtime_ms,
            costs=job.node.costs,
            deadline_ms=max(1.0, request.deadline_ms - job.now_ms()) if request.deadline_ms > 0 else 0.0,
        )
    )
    job.say(f"{written / 1e6:.1f} MB/s are written and {rate / 1e6:.1f} MB/s cross: {choice.reason}")
    return choice.strategy == POST_COPY
