"""`edgepack run` offers whatever a bundle's own `serve` does, and hands it on unchanged."""

from __future__ import annotations

import os
from typing import Any

import pytest
from click.testing import CliRunner

from packager.bundle import local
from packager.cli.run import command
from runtime.arguments import parse
from runtime.main import COMMANDS


class _Became(BaseException):
    """In the place of this process, which would have become another."""


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    started: list[list[str]] = []

    def execve(path: str, argv: list[str], environment: object) -> None:
        started.append(argv)
        raise _Became

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(local, "check_bundle", lambda bundle, cache_dir: None)
    return started


def served(words: list[str], started: list[list[str]]) -> dict[str, Any]:
    """Return the values that the bundle's command line reads."""
    with pytest.raises(_Became):
        CliRunner().invoke(command, ["x.edgepack", *words])
    argv = started.pop()
    found = parse(argv[argv.index("serve") :], COMMANDS)
    assert found is not None
    assert found[0] == "serve"
    return found[1]


def test_every_option_of_serve_is_there() -> None:
    offered = {flag for parameter in command.params for flag in parameter.opts}
    for option in COMMANDS["serve"].options:
        (flag,) = option.flags
        negated = "--no-" + flag[2:]
        assert (negated if option.default is True else flag) in offered


def test_without_options_the_defaults_stay(became: list[list[str]]) -> None:
    found = parse(["serve"], COMMANDS)
    assert found is not None
    assert served([], became) == found[1]


def test_each_option_arrives(became: list[list[str]]) -> None:
    wanted = {
        "host": "::1", "port": 0, "threads": 0, "workers": 3, "queue": 9, "deadline": 1.5,
        "tls_cert": "c", "tls_key": "k", "tls_client_ca": "a", "tls_min": "1.2", "keys": "j",
        "insecure": True, "name": ["a", "b"], "allow_origin": ["https://x.example"],
        "page": False, "log": "json", "access_log": True, "capture_dir": "d",
        "capture_key": "y", "retune": True,
    }  # fmt: skip
    words: list[str] = []
    for name, value in wanted.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + name)
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [flag, str(item)]
    assert served(words, became) == wanted


@pytest.mark.parametrize(
    "words",
    [["--tls"], ["--tls-min", "1.1"], ["--workers", "0"], ["--deadline", "0"], ["--log", "xml"]],
)
def test_what_cannot_be_is_a_usage_error(words: list[str]) -> None:
    assert CliRunner().invoke(command, ["x.edgepack", *words]).exit_code == 2
