"""Trace context by the rules of the W3C, and ids of requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.trace import answer_traceparent, new_span_id, parse_traceparent, request_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def test_a_sound_traceparent_is_answered_with_the_same_trace_and_our_span() -> None:
    context = parse_traceparent(f"00-{TRACE}-{SPAN}-01")
    assert context is not None
    assert (context.trace_id, context.parent_id, context.sampled) == (TRACE, SPAN, True)
    span_id = new_span_id()
    answer = parse_traceparent(answer_traceparent(context, span_id))
    assert answer is not None
    assert (answer.trace_id, answer.parent_id, answer.sampled) == (TRACE, span_id, True)


def test_flags_that_nobody_has_defined_are_passed_over() -> None:
    context = parse_traceparent(f"00-{TRACE}-{SPAN}-fe")
    assert context is not None
    assert not context.sampled
    assert answer_traceparent(context, SPAN).endswith("-00")


def test_a_version_to_come_is_read_as_far_as_we_know_it() -> None:
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01") is not None
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings") is not None


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01more",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 5000,
    ],
)
def test_anything_else_counts_as_absent(text: str | None) -> None:
    assert parse_traceparent(text) is None


@given(st.text())
def test_no_text_whatever_raises(text: str) -> None:
    assert parse_traceparent(text) is None
    assert request_id({"x-request-id": text}).isprintable()


@pytest.mark.parametrize("given", ["abc", "7d2f:1/a+b=", "a" * 64])
def test_a_sane_request_id_is_kept(given: str) -> None:
    assert request_id({"x-request-id": given}) == given


@pytest.mark.parametrize("given", ["", "a b", 'a"b', "a\x1b[31m", "a" * 65, "é", "a\n"])
def test_another_is_replaced_by_one_of_ours(given: str) -> None:
    made = request_id({"x-request-id": given})
    assert len(made) == 16
    assert made != request_id({})
