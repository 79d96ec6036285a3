"""A real SSH server on this machine, with keys and configuration of its own: the tests' device."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")


@dataclass(frozen=True, kw_only=True)
class SshServer:
    """An SSH server that runs.

    Attributes:
        config: What `ssh -F` needs to be let in.
        home: `TMPDIR` of what runs there, where folders appear and must be gone afterwards.
    """

    port: int
    user: str
    folder: Path
    config: Path
    home: Path
    process: subprocess.Popen[bytes]

    def url(self, **query: str) -> str:
        """Return the device's address."""
        words = "&".join(f"{key}={value}" for key, value in query.items())
        return f"ssh://{self.user}@127.0.0.1:{self.port}" + (f"?{words}" if words else "")

    def left(self) -> list[str]:
        """Return what lies in the device's folder for temporary files."""
        return sorted(path.name for path in self.home.iterdir())


def require_sshd() -> None:
    """Skip the test where no SSH server is installed."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("`sshd` and `ssh` are not installed (openssh-server, openssh-client)")


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Run a server whose only key is one made for it."""
    require_sshd()
    for name in ("host_key", "client_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    (folder / "authorized_keys").write_text((folder / "client_key.pub").read_text())
    home = folder / "tmp"
    home.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sftp = next((path for path in SFTP_SERVERS if Path(path).exists()), "internal-sftp")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\n"
        f"HostKey {folder / 'host_key'}\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\n"
        f"PidFile none\n"
        f"SetEnv TMPDIR={home}\n"
        f"Subsystem sftp {sftp}\n"
        # pytest's folders lie below /tmp, which others may write to.
        "StrictModes no\n"
        "UsePAM no\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "PrintMotd no\n"
    )
    known = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {known[0]} {known[1]}\n")
    config = folder / "ssh_config"
    config.write_text(
        f"UserKnownHostsFile {folder / 'known_hosts'}\n"
        "GlobalKnownHostsFile /dev/null\n"
        f"IdentityFile {folder / 'client_key'}\n"
        "IdentitiesOnly yes\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd gives up its privileges
    log = folder / "sshd.log"
    process = subprocess.Popen(
        [str(SSHD), "-D", "-f", str(folder / "sshd_config"), "-E", str(log)],
        stdin=subprocess.DEVNULL,
    )
    try:
        _await_port(port, process, log)
        yield SshServer(
            port=port, user=getpass.getuser(), folder=folder, config=config, home=home,
            process=process,
        )  # fmt: skip
    finally:
        process.terminate()
        process.wait(10)


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"sshd ended: {log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not listen: {log.read_text()}")
