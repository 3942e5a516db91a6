"""What a usage record costs, in whole nano-dollars. Pure: no database, no network.

Prices come from the genai-prices package, which carries its tables with it: by model, by day (prices change),
with cache rates and tiers. Its `input_tokens` include the cache; the counts of this service are disjoint.
"""

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
    cost = _calculate(model, counts, moment)
    if cost is None:
        return None
    if not counts.cache_read_tokens:
        return Price(to_nano(cost), 0)
    plain = counts._replace(input_tokens=counts.input_tokens + counts.cache_read_tokens, cache_read_tokens=0)
    uncached = _calculate(model, plain, moment)
    return Price(to_nano(cost), to_nano(uncached) - to_nano(cost) if uncached is not None else 0)


def _calculate(model: str, counts: Counts, moment: datetime) -> Decimal | None:
    # Imported when the first record is priced: the tables take 0.2 s and 15 MB, which most processes of the
    # command line never need.
    from genai_prices import Usage, calc_price

    usage = Usage(
        input_tokens=counts.input_tokens + counts.cache_read_tokens + counts.cache_creation_tokens,
        output_tokens=counts.output_tokens,
        cache_read_tokens=counts.cache_read_tokens,
        cache_write_tokens=counts.cache_creation_tokens,
    )
    for provider, name in _names(model):
        try:
            found = calc_price(usage, name, provider_id=provider, genai_request_timestamp=moment)
        except (LookupError, ValueError):
            continue
        if _prices_all(found.model_price, usage):
            return Decimal(found.total_price)
    return None


def _prices_all(rates: Any, usage: Any) -> bool:
    """Whether there is a rate for all tokens used; models that are paid by the minute or the page have none."""
    return not (
        (usage.input_tokens and rates.input_mtok is None) or (usage.output_tokens and rates.output_mtok is None)
    )


def _names(model: str) -> list[tuple[str | None, str]]:
    """The providers and names under which a price may be known: the model's own first.

    `anthropic/claude-sonnet-4-5` is a provider with a name of its own, `amazon/nova-pro-v1` a name of OpenRouter's.
    """
    provider, slash, name = model.partition("/")
    return [(None, model), (provider, name), ("openrouter", model)] if slash else [(None, model)]
