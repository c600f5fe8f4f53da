"""What ``auto`` means for this migration: first by what is known without a connection, then by the measured link."""

from __future__ import annotations

from whimbrel.migrate.job import Migration
from whimbrel.migrate.pagechannel import PageChannel
from whimbrel.plan.choice import HYBRID, Situation, choose
from whimbrel.plan.strategies import AUTO, Carry, Strategy, strategy_of


def first_choice(job: Migration) -> Strategy:
    """What was asked for; for ``auto`` what the destination is to prepare for. Raises BadInput."""
    return strategy_of(HYBRID if job.request.strategy == AUTO else job.request.strategy)


def second_choice(job: Migration, strategy: Strategy, channel: PageChannel) -> Strategy:
    """``auto`` again, now that the link can be measured. Blocks for that, some ms on a fast link."""
    if job.request.strategy != AUTO or strategy.carry is not Carry.STREAM:
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
