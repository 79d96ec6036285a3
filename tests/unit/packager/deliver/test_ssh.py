"""Commands, files and failures over a real SSH connection; nothing stays on the device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from packager.deliver.ssh import Address, Remote
from packager.errors import (
    BackendMissing,
    DeviceUnreachable,
    ExternalToolError,
    InputOutputError,
    TargetError,
    UsageError,
)

if TYPE_CHECKING:
    from tests.sshd import SshServer

# Writes its number, then stays.
STAYS = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(90)"


def connect(server: SshServer, **query: str) -> Remote:
    address = Address.from_url(server.url(python=sys.executable, **query))
    return Remote(address, config=server.config)


def await_end(pid: int) -> None:
    for _ in range(300):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} lives on")


def await_empty(server: SshServer) -> None:
    for _ in range(300):
        if not server.left():
            return
        time.sleep(0.1)
    pytest.fail(f"left behind: {server.left()}")


def test_an_address_is_read() -> None:
    assert Address.from_url("ssh://bench@Orin.lan:2222?python=/opt/py/bin/python3") == Address(
        user="bench", host="Orin.lan", port=2222, python="/opt/py/bin/python3"
    )
    assert Address.from_url("ssh://reference-device") == Address(host="reference-device")
    assert Address.from_url("ssh://root@[fe80::1%eth0]:22/").host == "fe80::1%eth0"
    assert Address(host="h", user="u", port=7).command() == "ssh -p 7 u@h"


@pytest.mark.parametrize(
    "url",
    [
        "reference-device", "http://device", "ssh://", "ssh://-oProxyCommand=x", "ssh://a@-b",
        "ssh://-l@b", "ssh://a b", "ssh://device/folder", "ssh://device?shell=sh",
        "ssh://device?python=", "ssh://device?python=-c", "ssh://device:99999", "ssh://device#x",
        "ssh://$(id)@device", "ssh://device;id", "ssh://de%0Avice",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.from_url(url)
    assert url in caught.value.message
    assert "ssh://[USER@]HOST" in (caught.value.accepted or "")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        Address.from_url("ssh://me:secret@device")
    assert "secret" not in caught.value.message + str(caught.value.hint)
    assert caught.value.hint == "ssh-copy-id me@device"


def test_a_command_runs_in_a_folder_that_is_gone_afterwards(server: SshServer) -> None:
    words = ["a b", "$HOME", "it's", "*", "\\", "ü", 'say "x"', "two\nlines"]
    code = "import os, sys; print(os.getcwd()); print(sys.argv[1:]); print(os.environ['NEW'])"
    with connect(server) as remote:
        done = remote.run(
            [sys.executable, "-c", code, *words], timeout_s=60, environment={"NEW": "one two"}
        )
        folder, arguments, variable = done.stdout.splitlines()
        assert folder == str(remote.folder)
        assert arguments == str(words)
        assert variable == "one two"
        assert Path(folder).stat().st_mode & 0o777 == 0o700
        assert server.left() == [remote.folder.name]
    assert server.left() == []


def test_files_go_there_and_come_back(server: SshServer, tmp_path: Path) -> None:
    source, back = tmp_path / "with space: and colon", tmp_path / "back"
    source.write_bytes(os.urandom(3_000_001))
    with connect(server) as remote:
        assert remote.put(source, "thing") == str(remote.folder / "thing")
        remote.get("thing", back)
    assert back.read_bytes() == source.read_bytes()


def test_a_file_that_is_not_there_is_named(server: SshServer, tmp_path: Path) -> None:
    with connect(server) as remote, pytest.raises(InputOutputError) as caught:
        remote.get("engine", tmp_path / "engine")
    assert "`engine` cannot be fetched" in caught.value.message
    assert "no such file" in caught.value.message
    assert not (tmp_path / "engine").exists()


def test_a_file_that_the_device_does_not_take_is_named(server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "bundle").write_bytes(b"x")
    with connect(server) as remote, pytest.raises(InputOutputError) as caught:
        remote.put(tmp_path / "bundle", "absent/bundle")
    assert "`bundle` cannot be copied" in caught.value.message
    assert "df -h" in (caught.value.hint or "")


def test_lines_arrive_while_the_command_runs(server: SshServer) -> None:
    code = (
        "import pathlib, time; print('one', flush=True)\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.02)\n"
        "print('two')"
    )
    heard: list[str] = []
    with connect(server) as remote:
        here = Path(remote.folder)  # the device is this machine

        def hear(line: str) -> None:
            heard.append(line)
            (here / "go").touch()

        remote.run([sys.executable, "-c", code], timeout_s=60, on_line=hear)
    assert heard == ["one", "two"]


def test_a_failure_there_is_one_sentence(server: SshServer) -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('the last words')"
    with connect(server) as remote:
        with pytest.raises(ExternalToolError) as caught:
            remote.run([sys.executable, "-c", code], timeout_s=60)
        assert caught.value.message.endswith("(exit 1): the last words")
        done = remote.run(
            [sys.executable, "-c", "raise SystemExit(255)"], timeout_s=60, check=False
        )
        assert done.returncode == 254  # 255 is the connection's own
        killed = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        done = remote.run([sys.executable, "-c", killed], timeout_s=60, check=False)
        assert done.returncode == 128 + signal.SIGSEGV
        assert done.command().startswith(f"ssh -p {server.port} {server.user}@127.0.0.1 ")
        with pytest.raises(TargetError, match="cannot run `no-such-program`"):
            remote.run(["no-such-program"], timeout_s=60)


def test_a_command_that_takes_too_long_is_ended_there(server: SshServer) -> None:
    with connect(server) as remote:
        with pytest.raises(ExternalToolError, match="took longer than 2 s"):
            remote.run([sys.executable, "-c", STAYS], timeout_s=2)
        pid = int((Path(remote.folder) / "pid").read_text())
    await_end(pid)
    assert server.left() == []


def test_an_interruption_ends_what_runs_there_and_removes_the_folder(server: SshServer) -> None:
    seen: list[int] = []

    def interrupt(line: str) -> None:
        seen.append(int(line))
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(90)"
    with pytest.raises(KeyboardInterrupt), connect(server) as remote:
        remote.run([sys.executable, "-c", code], timeout_s=90, on_line=interrupt)
    await_end(seen[0])
    await_empty(server)


def test_nothing_stays_where_this_side_is_killed(server: SshServer, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\n"
        "from packager.deliver.ssh import Address, Remote\n"
        "url, config, stays = sys.argv[1:]\n"
        "with Remote(Address.from_url(url), config=pathlib.Path(config)) as remote:\n"
        "    print(remote.folder, flush=True)\n"
        "    remote.run([sys.executable, '-c', stays], timeout_s=90)\n"
    )
    url = server.url(python=sys.executable)
    with subprocess.Popen(
        [sys.executable, "-c", code, url, str(server.config), STAYS],
        stdout=subprocess.PIPE, text=True,
    ) as ours:  # fmt: skip
        assert ours.stdout is not None
        pid_file = Path(ours.stdout.readline().strip()) / "pid"
        for _ in range(600):
            if pid_file.exists() and pid_file.read_text():
                break
            time.sleep(0.05)
        pid = int(pid_file.read_text())
        ours.kill()
    await_end(pid)
    await_empty(server)


def test_a_device_that_does_not_listen_is_unreachable(server: SshServer) -> None:
    remote = Remote(Address(host="127.0.0.1", port=1), config=server.config)
    with pytest.raises(DeviceUnreachable) as caught, remote:
        pass
    assert caught.value.message == "`127.0.0.1` refuses connections: no SSH server listens there"
    assert caught.value.hint == "ssh -p 1 127.0.0.1"
    assert caught.value.exit_code == 9


def test_a_name_that_nobody_knows_is_unreachable(server: SshServer) -> None:
    remote = Remote(Address(host="no-such-host.invalid"), config=server.config)
    with pytest.raises(DeviceUnreachable, match=r"`no-such-host.invalid` has a name that cannot"):
        remote.__enter__()


def test_a_host_key_that_is_not_known_is_refused(server: SshServer, tmp_path: Path) -> None:
    config = _changed(server, tmp_path, "")
    with pytest.raises(DeviceUnreachable, match="has a host key that is not known here"):
        Remote(Address.from_url(server.url()), config=config).__enter__()


def test_a_host_key_that_changed_is_refused(server: SshServer, tmp_path: Path) -> None:
    other = (server.folder / "client_key.pub").read_text().split()
    line = f"[127.0.0.1]:{server.port} {other[0]} {other[1]}\n"
    with pytest.raises(DeviceUnreachable) as caught:
        Remote(Address.from_url(server.url()), config=_changed(server, tmp_path, line)).__enter__()
    assert "another host key than the known one" in caught.value.message
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in (caught.value.hint or "")


def _changed(server: SshServer, folder: Path, known: str) -> Path:
    """Return the server's client configuration with other known hosts."""
    (folder / "known").write_text(known)
    config = folder / "config"
    plain = server.config.read_text()
    config.write_text(plain.replace(str(server.folder / "known_hosts"), str(folder / "known")))
    return config


def test_a_device_that_does_not_take_our_key_is_told(server: SshServer, tmp_path: Path) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True
    )
    config = tmp_path / "config"
    plain = server.config.read_text()
    config.write_text(plain.replace(str(server.folder / "client_key"), str(tmp_path / "other")))
    with pytest.raises(DeviceUnreachable) as caught:
        Remote(Address.from_url(server.url()), config=config).__enter__()
    assert "does not take any of our keys" in caught.value.message
    assert caught.value.hint == f"ssh-copy-id -p {server.port} {server.user}@127.0.0.1"


def test_a_device_without_that_python_is_told(server: SshServer) -> None:
    address = Address.from_url(server.url(python="/no/python3.99"))
    with pytest.raises(TargetError) as caught:
        Remote(address, config=server.config).__enter__()
    assert "cannot run `/no/python3.99`" in caught.value.message
    assert "?python=PATH" in (caught.value.hint or "")


def test_a_host_without_openssh_is_told(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendMissing) as caught:
        connect(server).__enter__()
    assert caught.value.hint == "apt install openssh-client"


def test_a_user_s_configuration_cannot_change_what_is_run(
    server: SshServer, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        server.config.read_text()
        + "RemoteCommand echo theirs\nRequestTTY yes\nControlMaster auto\n"
        + f"ControlPath {tmp_path}/%h\nLocalForward 1 127.0.0.1:2\n"
    )
    address = Address.from_url(server.url(python=sys.executable))
    with Remote(address, config=config) as remote:
        assert remote.run(["echo", "ours"], timeout_s=60).stdout == "ours\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config"]
