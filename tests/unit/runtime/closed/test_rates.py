"""Token buckets, slots and counts of failures, by a clock that the test turns."""

from __future__ import annotations

from runtime.closed.rates import Failures, Limits, Usage


def test_a_burst_is_let_through_and_then_the_rate() -> None:
    usage, limits = Usage(), Limits(rate=2.0, burst=3.0)
    assert [usage.take(limits, 10.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert usage.take(limits, 10.25) == 0.25
    assert usage.take(limits, 10.5) == 0.0
    assert usage.take(limits, 10.5) == 0.5


def test_over_a_long_time_exactly_the_rate_is_let_through() -> None:
    usage, limits = Usage(), Limits(rate=7.0, burst=2.0)
    passed = sum(usage.take(limits, 0.01 * step) == 0.0 for step in range(10_000))
    assert 700 <= passed <= 702


def test_a_pause_does_not_fill_the_bucket_beyond_the_burst() -> None:
    usage, limits = Usage(), Limits(rate=100.0, burst=2.0)
    usage.take(limits, 0.0)
    assert [usage.take(limits, 1e6) == 0.0 for _ in range(3)] == [True, True, False]


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    usage, limits = Usage(), Limits(rate=1.0, burst=1.0)
    assert usage.take(limits, 5.0) == 0.0
    assert usage.take(limits, 1.0) == 1.0


def test_new_limits_do_not_forgive_what_was_used() -> None:
    usage = Usage()
    assert usage.take(Limits(rate=1.0, burst=1.0), 0.0) == 0.0
    assert usage.take(Limits(rate=0.5, burst=100.0), 0.0) == 2.0


def test_slots_are_counted() -> None:
    usage = Usage()
    assert not usage.is_full(Limits(concurrency=1))
    usage.active = 1
    assert usage.is_full(Limits(concurrency=1))
    assert not usage.is_full(Limits())


def test_failures_are_counted_by_address() -> None:
    failures = Failures(3)
    waits = [failures.add("192.0.2.1", 0.0) for _ in range(5)]
    assert waits == [0.0, 0.0, 0.0, 20.0, 20.0]
    assert failures.add("192.0.2.2", 0.0) == 0.0
    assert failures.add("192.0.2.1", 20.0) == 0.0


def test_one_ipv6_network_counts_as_one_address() -> None:
    failures = Failures(1)
    assert failures.add("2001:db8:1:2::1", 0.0) == 0.0
    assert failures.add("2001:db8:1:2:ffff::9", 0.0) > 0
    assert failures.add("2001:db8:1:3::1", 0.0) == 0.0
    assert failures.add("::ffff:192.0.2.9", 0.0) == 0.0
    assert failures.add("192.0.2.9", 0.0) > 0
    assert failures.add("fe80::1%eth0", 0.0) == 0.0
    assert failures.add("not an:address", 0.0) == 0.0


def test_memory_for_addresses_is_bounded_and_the_oldest_is_forgotten() -> None:
    failures = Failures(1, max_peers=8)
    for number in range(1000):
        failures.add(f"192.0.2.{number}", 0.0)
    assert len(failures._peers) == 8
    assert failures.add("192.0.2.999", 0.0) > 0
    assert failures.add("192.0.2.0", 0.0) == 0.0
