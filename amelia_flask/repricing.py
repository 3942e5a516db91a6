"""Gives records that had no price the one that is known by now; the sums follow in the same transaction."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import peewee

from amelia_flask import clock, rollups
from amelia_flask.database import Prepared, Row, param
from amelia_flask.ledger import Ledger
from amelia_flask.models import LARGEST_TOTAL, TokenUsage
from amelia_flask.pricing import Counts, Price, price, to_dollars
from amelia_flask.progress import Step

# So many records are looked at in one read, and so many of them at most are changed in one transaction.
PAGE = 500


@dataclass
class Records:
    """How many records of a model there are, and what they cost in nano-dollars."""

    count: int = 0
    cost_nano: int = 0


@dataclass
class Repriced:
    """The records that got a price, and those that have none still, by model."""

    priced: dict[str, Records] = field(default_factory=lambda: defaultdict(Records))
    unpriced: dict[str, Records] = field(default_factory=lambda: defaultdict(Records))


class _Unpriced(NamedTuple):
    id: str
    model: str
    timestamp: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int

    @property
    def counts(self) -> Counts:
        return Counts(*self[3:])


_is_unpriced = TokenUsage.cost_source == "unpriced"
_COLUMNS = [getattr(TokenUsage, name) for name in _Unpriced._fields]
_count = Prepared(lambda: TokenUsage.select(peewee.fn.COUNT(peewee.SQL("*"))))
_ids = Prepared(
    lambda: TokenUsage.select(TokenUsage.id).where(TokenUsage.id > param("after")).order_by(TokenUsage.id).limit(PAGE)
)
_page = Prepared(
    lambda: (
        TokenUsage.select(*_COLUMNS)
        .where(TokenUsage.id > param("after"), TokenUsage.id <= param("last"), _is_unpriced)
        .order_by(TokenUsage.id)
    )
)
# Only where it is still as it was when the price was looked up.
_set_price = Prepared(
    lambda: (
        TokenUsage.update(
            cost_usd=param("cost_usd"),
            cost_nano=param("cost_nano"),
            savings_nano=param("savings_nano"),
            cost_source="computed",
        )
        .where(
            _is_unpriced, *(column == param(name) for name, column in zip(_Unpriced._fields, _COLUMNS, strict=True))
        )
        .returning(TokenUsage.workflow, TokenUsage.day, TokenUsage.agent, TokenUsage.model)
    )
)


def count(ledger: Ledger) -> int:
    """How many records `reprice` looks at."""
    found: int = ledger.read(_count.run)[0][0]
    return found


def reprice(ledger: Ledger, step: Step, dry_run: bool = False) -> Repriced:
    """Price what has no price and can have one by now, with the price of its day; a `dry_run` changes nothing.

    `step` is given the records that were looked at. Raises DatabaseUnavailable, and ValidationError where a sum would
    leave 64 bits; what was priced by then stays.
    """
    done = Repriced()
    for records in _pages(ledger, step):
        priced = [(record, _price(record)) for record in records]
        found = [(record, cost) for record, cost in priced if cost is not None]
        if not dry_run and found:
            found = ledger.write(_set_prices, found)
        for record, cost in found:
            _add(done.priced[record.model], cost.cost_nano)
        for record in (record for record, cost in priced if cost is None):
            _add(done.unpriced[record.model], 0)
    return done


def _add(records: Records, cost_nano: int) -> None:
    records.count += 1
    records.cost_nano += cost_nano


def _pages(ledger: Ledger, step: Step) -> Iterator[list[_Unpriced]]:
    after = ""
    while ids := ledger.read(_ids.run, after=after):
        last = ids[-1][0]
        yield [_Unpriced(*row) for row in ledger.read(_page.run, after=after, last=last)]
        step(len(ids))
        after = last


def _price(record: _Unpriced) -> Price | None:
    found = price(record.model, record.counts, clock.from_text(record.timestamp))
    return found if found is not None and max(map(abs, found)) <= LARGEST_TOTAL else None


Found = list[tuple[_Unpriced, Price]]


def _set_prices(tx: Any, found: Found) -> Found:
    """Price these records, and tell of which that was done."""
    done: Found = []
    changes: dict[tuple[str, rollups.Key], rollups.Sums] = defaultdict(rollups.Sums)
    for record, cost in found:
        for workflow_id, *key in _set_price.run(tx, **record._asdict(), **_costs(cost)):
            place = (workflow_id, (key[0], key[1], key[2]))
            changes[place] = changes[place].plus(_change(record, cost))
            done.append((record, cost))
    for (workflow_id, key), change in changes.items():
        rollups.change(tx, workflow_id, key, change)
    return done


def _costs(cost: Price) -> dict[str, Row]:
    return {"cost_usd": to_dollars(cost.cost_nano)} | cost._asdict()


def _change(record: _Unpriced, cost: Price) -> rollups.Sums:
    return rollups.Sums(unpriced_tokens=-sum(record.counts), cost_nano=cost.cost_nano, savings_nano=cost.savings_nano)
