from datetime import UTC, datetime, timedelta, timezone
from unittest.mock import patch
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from amelia_flask import clock


@given(st.datetimes(timezones=st.just(UTC)))
def test_text_keeps_every_microsecond(moment: datetime) -> None:
    assert clock.from_text(clock.to_text(moment)) == moment
    assert len(clock.to_text(moment)) == 27


def test_text_is_in_utc() -> None:
    berlin = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=1)))
    assert clock.to_text(berlin) == "2026-01-01T11:00:00.000000Z"


def test_ids_are_version_7_and_rise() -> None:
    ids = [clock.new_id() for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert {UUID(text).version for text in ids} == {7}
    assert {UUID(text).variant for text in ids} == {"specified in RFC 4122"}


def test_ids_rise_when_the_clock_steps_back() -> None:
    before = clock.new_id()
    with patch("time.time_ns", return_value=0):
        assert clock.new_id() > before
