"""What ``auto`` means for this migration: first by what is known without a connection, then by the measured link."""

from __future__ import annotations

from whimbrel.migrate.job import Migration
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.migrate.preflight import means_of
from whimbrel.plan.choice import HYBRID, Situation, choose
from whimbrel.plan.means import possible
from whimbrel.plan.strategies import AUTO, Strategy, strategy_of
from whimbrel.wire.calls import OfferReply


def first_choice(job: Migration) -> Strategy:
    """What was asked for; for ``auto`` what the destination is to prepare for. Raises BadInput."""
    return strategy_of(HYBRID if job.request.strategy == AUTO else job.request.strategy)


def possible_choice(job: Migration, strategy: Strategy, offer: OfferReply) -> Strategy:
    """The same if the two nodes have what it needs; for ``auto`` else the nearest that can work. Raises Refused."""
    strategy, why_another = possible(
        strategy,
        means_of(job.node.capabilities, job.source.run_dir, offer),
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
    measured = channel.measure_bytes_per_s()
    limit = job.request.bandwidth_bps / 8 or measured
    choice = choose(
        Situation(
            memory_bytes=job.source.status.rss_bytes,
            files_bytes=job.files_bytes,
            link_bytes_per_s=min(measured, limit),
            handover_in_ms=job.request.handover_in_ms,
            max_downtime_ms=job.request.max_downtime_ms,
            deadline_ms=job.request.deadline_ms,
        )
    )
    job.say(f"auto: {choice.reason} (link {min(measured, limit) * 8 / 1e6:.0f} Mbit/s)")
    job.strategy = choice.strategy
    return strategy_of(choice.strategy)
