"""The fixtures of tests/conftest.py do what the other tests count on."""

from __future__ import annotations

import socket

import pytest


def test_a_test_without_the_network_marker_reaches_no_other_machine():
    with pytest.raises(PermissionError, match="no `network` marker"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(PermissionError, match=r"example\.invalid"):
        socket.getaddrinfo("example.invalid", 80)


def test_a_test_without_the_network_marker_reaches_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_each_old_python_says_its_version(old_python):
    assert old_python.is_file()


def test_the_engine_library_is_a_shared_object(engine_library):
    assert engine_library.read_bytes()[:4] == b"\x7fELF"


@pytest.mark.torch
def test_the_digits_network_answers_what_it_learned(digits_cnn):
    answers = digits_cnn.answers(digits_cnn.test_x)
    assert answers.shape == (360, 10)
    assert (answers.argmax(1) == digits_cnn.test_y).mean() == pytest.approx(digits_cnn.accuracy)
    assert len(list(digits_cnn.calibration.glob("*.npz"))) == 64


@pytest.mark.torch
def test_the_motion_network_answers_for_any_length_of_signal(motion_gru):
    assert motion_gru.answers(motion_gru.test_x[:3, :17]).shape == (3, 4)
