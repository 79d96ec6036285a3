"""Dates as seconds since 1970 in UTC: RFC 3339 for people, ASN.1 times in certificates.

`time.strptime`, `datetime` and `calendar` take milliseconds to import.
"""

from __future__ import annotations

import re
import time
from typing import Tuple

DAY_S = 86400.0
_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})"
    r"(?:[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2}))?"
)
_ASN1 = re.compile(r"([0-9]{2}|[0-9]{4})" + r"([0-9]{2})" * 5 + "Z")
_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def parse_rfc3339(text: str) -> float:
    """Return the time of `2026-11-30T12:00:00Z`; a date alone is its first second in UTC.

    Raises:
        ValueError: not a date, or not one of the calendar.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(text)
    year, month, day = (int(part) for part in match.group(1, 2, 3))
    hour, minute, second = (int(part or 0) for part in match.group(4, 5, 6))
    zone = match.group(7) or "Z"
    offset_s = 0
    if zone not in "Zz":
        hours, minutes = int(zone[1:3]), int(zone[4:6])
        if hours > 23 or minutes > 59:
            raise ValueError(text)
        offset_s = (hours * 60 + minutes) * (-60 if zone[0] == "-" else 60)
    # a leap second is the second after it, as everywhere on Unix
    return _epoch((year, month, day), (hour, minute, second)) - offset_s


def parse_asn1(text: str) -> float:
    """Return the time of a UTCTime or GeneralizedTime as RFC 5280 writes them.

    Raises:
        ValueError: another form.
    """
    match = _ASN1.fullmatch(text)
    if match is None:
        raise ValueError(text)
    numbers = [int(part) for part in match.groups()]
    if len(match.group(1)) == 2:  # RFC 5280, section 4.1.2.5.1
        numbers[0] += 1900 if numbers[0] >= 50 else 2000
    return _epoch((numbers[0], numbers[1], numbers[2]), (numbers[3], numbers[4], numbers[5]))


def format_rfc3339(seconds: float) -> str:
    """Return a time in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _epoch(date: Tuple[int, int, int], clock: Tuple[int, int, int]) -> float:
    year, month, day = date
    hour, minute, second = clock
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not (1 <= month <= 12 and year >= 1 and hour < 24 and minute < 60 and second <= 60):
        raise ValueError("no such time")
    if not 1 <= day <= _MONTH_DAYS[month - 1] + (leap and month == 2):
        raise ValueError("no such day")
    before = year - 1
    days = before * 365 + before // 4 - before // 100 + before // 400
    days += sum(_MONTH_DAYS[: month - 1]) + (leap and month > 2) + day - 1
    days -= 719162  # of 1970-01-01, counted the same way
    return days * DAY_S + hour * 3600.0 + minute * 60.0 + second
