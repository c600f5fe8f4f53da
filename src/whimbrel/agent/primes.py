"""The benchmark for a server's computing power: how often a second one processor finds all primes up to 10,000.

The work is that of sysbench's CPU test, which the paper on coordinated migration names for its C_s: trial division by
odd numbers. Counted is processor time and not the clock's, so whatever else runs meanwhile changes little; the result
is that of the median event.

Run as ``python -I -S primes.py``; prints the events per second of processor time.
"""

from __future__ import annotations

import statistics
import time

UP_TO = 10_000
PRIMES = 1_229
LEAST_S = 0.4  # of processor time


def event() -> int:
    """The number of primes up to `UP_TO`."""
    found = 1  # two
    for number in range(3, UP_TO + 1, 2):
        divisor = 3
        while divisor * divisor <= number and number % divisor:
            divisor += 2
        found += divisor * divisor > number
    return found


def events_per_s() -> float:
    times: list[float] = []
    while sum(times) < LEAST_S:
        begin = time.process_time()
        if event() != PRIMES:
            raise AssertionError("this machine cannot count")
        times.append(time.process_time() - begin)
    return 1 / statistics.median(times)


if __name__ == "__main__":
    print(f"{events_per_s():.2f}")
