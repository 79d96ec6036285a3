"""One SSH server for the tests of delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sshd import SshServer, ssh_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A device: this machine behind a real SSH server."""
    with ssh_server(tmp_path_factory.mktemp("sshd")) as running:
        yield running
