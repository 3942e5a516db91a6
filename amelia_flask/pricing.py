"""What a usage record costs, in whole nano-dollars. Pure: no database, no network.

Prices come from the genai-prices package, which carries its tables with it: by model, by day (prices change),
with cache rates and tiers. Its `input_tokens` include the cache; the counts of this service are disjoint.
"""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

NANO = 1_000_000_000


class Counts(NamedTuple):
    """The four disjoint counts of a request to a model."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int


class Price(NamedTuple):
    """What a request costs, and what its cache reads saved against the plain input rate, in nano-dollars."""

    cost_nano: int
    savings_nano: int


def to_nano(dollars: Decimal) -> int:
    """Dollars as whole nano-dollars, rounded half to even."""
    return int((dollars * NANO).to_integral_value())


def to_dollars(nano: int) -> float:
    """Nano-dollars as the float nearest to that many dollars."""
    return nano / NANO


def price(model: str, counts: Counts, moment: datetime) -> Price | None:
    """The price of a request at `moment`, or None where no price of the model is known.

    A moment before the first known price of a model takes that first one.
    """
    for prices in _prices(model, moment):
        rates = _rates(prices, sum(counts) - counts.output_tokens)
        if _prices_all(rates, counts):
            return _price(rates, counts)
    return None


class _Rates(NamedTuple):
    """Dollars for a million tokens of each of the four counts, and for a thousand requests."""

    input: Decimal | None
    output: Decimal | None
    cache_read: Decimal | None
    cache_write: Decimal | None
    requests: Decimal | None


def _prices(model: str, moment: datetime) -> Iterator[Any]:
    # Imported when the first record is priced: the tables take 0.2 s and 15 MB, which most processes of the
    # command line never need. With its prices the cost is computed here: its own `calc_price` takes 20 times as long.
    from genai_prices.data_snapshot import get_snapshot

    for provider, name in _names(model):
        try:
            _, found = get_snapshot().find_provider_model(name, None, provider, None)
        except LookupError:
            continue
        yield found.get_prices(moment)


def _rates(prices: Any, total_input: int) -> _Rates:
    """The rates for a request with so much input. What has no price of its own is input or free."""
    input_, output, read, write, requests = (
        _rate(getattr(prices, name), total_input)
        for name in ("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "requests_kcount")
    )
    return _Rates(input_, output, input_ if read is None else read, input_ if write is None else write, requests)


def _rate(rate: Any, total_input: int) -> Decimal | None:
    """A rate, or that of the highest tier that so much input reaches."""
    tiers = reversed(getattr(rate, "tiers", ()))
    found: Decimal | None = next(
        (tier.price for tier in tiers if total_input > tier.start), getattr(rate, "base", rate)
    )
    return found


def _prices_all(rates: _Rates, counts: Counts) -> bool:
    """Whether there is a rate for all tokens used; models that are paid by the minute or the page have none."""
    has_input = sum(counts) > counts.output_tokens
    return not ((has_input and rates.input is None) or (counts.output_tokens and rates.output is None))


def _price(rates: _Rates, counts: Counts) -> Price:
    """The price at these rates, of which those that are missing are of what was not used."""
    zero = Decimal()
    plain, output, read, write, requests = (rate or zero for rate in rates)
    others = counts.input_tokens * plain + counts.output_tokens * output + counts.cache_creation_tokens * write
    cost, uncached = (
        to_nano((others + counts.cache_read_tokens * rate) / 1_000_000 + requests / 1000) for rate in (read, plain)
    )
    return Price(cost, uncached - cost)


def _names(model: str) -> list[tuple[str | None, str]]:
    """The providers and names under which a price may be known: the model's own first.

    `anthropic/claude-sonnet-4-5` is a provider with a name of its own, `amazon/nova-pro-v1` a name of OpenRouter's.
    """
    provider, slash, name = model.partition("/")
    return [(None, model), (provider, name), ("openrouter", model)] if slash else [(None, model)]
