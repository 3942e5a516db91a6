"""Counts that processes keep together."""

import threading

import pytest

from amelia_flask.counters import Counter, Gauge, Histogram, Numbers
from tests import programs


def test_processes_count_together_and_what_an_ended_one_counted_stays() -> None:
    code = """
    import os
    from amelia_flask import counters
    counter, gauge, histogram = counters.Counter(), counters.Gauge(), counters.Histogram(1, 10)
    done, go = os.pipe(), os.pipe()
    counter.add(100)
    children = []
    for slot in (0, 1, 255):
        child = os.fork()
        if not child:
            counters.begin_process(slot)
            counter.add(slot + 1)
            gauge.set(7)
            histogram.observe(5)
            assert gauge.here == 7
            os.write(done[1], b".")
            os.read(go[0], 1)
            os._exit(0)
        children.append(child)
    assert os.read(done[0], 1) and os.read(done[0], 1) and os.read(done[0], 1)
    print(counter.total, gauge.total, histogram.totals, counters.process_starts.total)
    os.kill(children[1], 9)
    os.waitpid(children[1], 0)
    counters.end_process(1)
    print(counter.total, gauge.total, histogram.totals)
    counters.begin_process(1)
    print(gauge.here)
    counter.add()
    print(counter.total)
    os.write(go[1], b"..")
    """
    assert programs.run(code, ".").splitlines() == [
        "359.0 21.0 [0.0, 3.0, 0.0, 15.0] 3.0",
        "359.0 14.0 [0.0, 3.0, 0.0, 15.0]",
        "0.0",
        "360.0",
    ]


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0, [1, 0, 0]), (1, [1, 0, 0]), (1.5, [0, 1, 0]), (2, [0, 1, 0]), (2.1, [0, 0, 1]), (1e9, [0, 0, 1])],
)
def test_a_bucket_holds_what_is_at_or_below_its_bound(value: float, counts: list[float]) -> None:
    histogram = Histogram(1, 2)
    histogram.observe(value)
    assert histogram.totals == [*counts, value]


def test_no_count_is_lost_between_threads() -> None:
    numbers, counter = Numbers(3), Counter()

    def count() -> None:
        for _ in range(2000):
            numbers.add((0, 1), (2, 2))
            counter.add()

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers.sums() == [16_000, 0, 32_000]
    assert counter.total == 16_000


def test_a_gauge_says_what_is_now() -> None:
    gauge = Gauge()
    gauge.set(3)
    gauge.set(1)
    assert gauge.here == gauge.total == 1
