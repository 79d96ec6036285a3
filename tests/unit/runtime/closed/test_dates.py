"""Dates against the standard library's own."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.closed.dates import format_rfc3339, parse_asn1, parse_rfc3339

ZONES = st.integers(-23 * 60, 23 * 60).map(
    lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))
)


@given(st.datetimes(timezones=ZONES).filter(lambda when: 2 < when.year < 9998))
def test_a_date_of_rfc_3339_is_read_as_datetime_reads_it(when: datetime.datetime) -> None:
    assert parse_rfc3339(when.isoformat()) == when.replace(microsecond=0).timestamp()


@given(st.integers(0, 2**33))
def test_a_written_date_is_read_back(seconds: int) -> None:
    assert parse_rfc3339(format_rfc3339(seconds)) == seconds


def test_a_day_alone_is_its_first_second_in_utc() -> None:
    assert parse_rfc3339("2027-01-31") == parse_rfc3339("2027-01-31T00:00:00Z")


@pytest.mark.parametrize(
    "text",
    ["", "soon", "2027-1-31", "2027-02-29", "2027-13-01", "2027-01-31T24:00:00Z",
     "2027-01-31T00:00:00", "2027-01-31T00:00:00+24:00", "20270131", "2027-01-31Z"],
)  # fmt: skip
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_rfc3339(text)


def test_years_of_two_digits_are_those_of_rfc_5280() -> None:
    assert parse_asn1("491231235959Z") == parse_rfc3339("2049-12-31T23:59:59Z")
    assert parse_asn1("500101000000Z") == parse_rfc3339("1950-01-01T00:00:00Z")
    assert parse_asn1("20501231000000Z") == parse_rfc3339("2050-12-31")
    with pytest.raises(ValueError, match=r".*"):
        parse_asn1("20501231000000+0100")
