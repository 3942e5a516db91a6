"""What requests to models cost, by prices that were looked up by hand."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given
from hypothesis import strategies as st

from amelia_flask.pricing import NANO, Counts, Price, price, to_dollars, to_nano

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
MIXED = Counts(1000, 100, 10_000, 2000)
# At 1, 5, 0.1 and 1.25 dollars a million: 1 + 0.5 + 1 + 2.5 thousandths; the reads would have cost 10 instead of 1.
MIXED_PRICE = Price(5_000_000, 9_000_000)


@pytest.mark.parametrize(
    ("model", "counts", "expected"),
    [
        ("claude-haiku-4-5", Counts(1_000_000, 0, 0, 0), Price(NANO, 0)),
        ("claude-haiku-4-5", Counts(0, 1_000_000, 0, 0), Price(5 * NANO, 0)),
        ("claude-haiku-4-5", Counts(0, 0, 1_000_000, 0), Price(NANO // 10, 9 * NANO // 10)),
        ("claude-haiku-4-5", Counts(0, 0, 0, 1_000_000), Price(5 * NANO // 4, 0)),
        ("claude-haiku-4-5", Counts(0, 0, 1, 0), Price(100, 900)),
        ("claude-haiku-4-5", Counts(0, 0, 0, 0), Price(0, 0)),
        ("claude-haiku-4-5", MIXED, MIXED_PRICE),
        ("claude-haiku-4-5-20251001", MIXED, MIXED_PRICE),
        ("anthropic/claude-haiku-4-5", MIXED, MIXED_PRICE),
        ("anthropic/claude-haiku-4.5", MIXED, MIXED_PRICE),
        ("openrouter/anthropic/claude-haiku-4.5", MIXED, MIXED_PRICE),
        ("amazon/nova-pro-v1", Counts(1_000_000, 0, 0, 0), Price(800_000_000, 0)),
        # The whole prompt decides the tier: above 200,000 tokens input costs 6 and output 22.5.
        ("claude-sonnet-4-5", Counts(200_000, 0, 0, 0), Price(600_000_000, 0)),
        ("claude-sonnet-4-5", Counts(100_000, 1000, 100_001, 0), Price(682_500_600, 540_005_400)),
        # A provider without a price of its own for what is written to the cache takes the plain one.
        ("gpt-4o", Counts(0, 0, 0, 1000), Price(2_500_000, 0)),
        ("no-such-model", MIXED, None),
        ("anthropic/no-such-model", MIXED, None),
        ("no-such-provider/claude-haiku-4-5-x/y", MIXED, None),
        ("/", MIXED, None),
        ("whisper-1", MIXED, None),  # paid by the minute
        ("\n", MIXED, None),
    ],
    ids=str,
)
def test_a_request_costs_what_its_tokens_cost(model: str, counts: Counts, expected: Price | None) -> None:
    assert price(model, counts, NEW_YEAR) == expected


KNOWN = sorted(
    {model.id for provider in get_snapshot().providers for model in provider.models if "/" not in model.id}
)
USED = [Counts(1000, 100, 10_000, 2000), Counts(150_000, 3, 100_000, 1), Counts(7, 0, 0, 0), Counts(0, 300_001, 0, 0)]


@pytest.mark.parametrize("counts", USED, ids=str)
def test_every_model_costs_what_the_library_itself_computes(counts: Counts) -> None:
    compared = 0
    for model in KNOWN:
        ours, theirs = price(model, counts, NEW_YEAR), by_library(model, counts)
        assert (ours and ours.cost_nano) == theirs or ours is None, model
        compared += ours is not None
    assert compared > 300, "the other names are found with their provider alone, or are not paid by the token"


def by_library(model: str, counts: Counts) -> int | None:
    """The cost in nano-dollars as `calc_price` has it, which is slow; its input is with the cache."""
    usage = Usage(
        input_tokens=sum(counts) - counts.output_tokens,
        output_tokens=counts.output_tokens,
        cache_read_tokens=counts.cache_read_tokens,
        cache_write_tokens=counts.cache_creation_tokens,
    )
    try:
        return to_nano(calc_price(usage, model, genai_request_timestamp=NEW_YEAR).total_price)
    except LookupError:
        return None


@pytest.mark.parametrize(
    ("moment", "dollars"),
    [
        (datetime(1999, 1, 1, tzinfo=UTC), 10),
        (datetime(1, 1, 1, tzinfo=UTC), 10),
        (datetime(2025, 6, 9, 23, 59, 59, tzinfo=UTC), 10),
        (datetime(2025, 6, 10, tzinfo=UTC), 2),
        (datetime(2025, 6, 10, 11, tzinfo=timezone(timedelta(hours=12))), 10),
        (datetime(2025, 6, 9, 20, tzinfo=timezone(timedelta(hours=-4))), 2),
        (datetime(9999, 12, 31, tzinfo=UTC), 2),
    ],
    ids=str,
)
def test_the_price_is_that_of_the_day_in_utc(moment: datetime, dollars: int) -> None:
    assert price("o3", Counts(1_000_000, 0, 0, 0), moment) == Price(dollars * NANO, 0)


@pytest.mark.parametrize(
    ("dollars", "nano"),
    [("0", 0), ("0.1", 100_000_000), ("5e-10", 0), ("15e-10", 2), ("25e-10", 2), ("1e6", 10**15), ("-15e-10", -2)],
)
def test_dollars_are_rounded_half_to_even(dollars: str, nano: int) -> None:
    assert to_nano(Decimal(dollars)) == nano


@given(st.integers(0, 10**15))
def test_nano_dollars_survive_the_way_through_a_float(nano: int) -> None:
    assert to_nano(Decimal(repr(to_dollars(nano)))) == nano
