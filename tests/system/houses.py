"""The broker that Home Assistant uses: a real Mosquitto, plain or over mutual TLS, and who hears what is said there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enroll.bridge import second as bridge
from fleet.address import Address
from fleet.layout import IdentityFiles
from tests.processes import Program, run
from tests.unit.device_agent.authority import Authority

_PASSWORD = "correct horse"


class Second:
    """It has one user, and keeps all in memory. By an `authority` it is 127.0.0.1, and wants a certificate."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.password = folder / "password"
        self.password.write_text(f"{_PASSWORD}\n")
        self.ca: Path | None = None
        self.identity: IdentityFiles | None = None
        users, self._config = folder / "users", folder / "mosquitto.conf"
        run("mosquitto_passwd", "-b", "-c", users, "ha", _PASSWORD).check()
        lines = [f"listener {self.port} 127.0.0.1", "user root", f"password_file {users}"]
        if authority is not None:
            lines += self._secure(folder, authority)
        self._config.write_text("\n".join([*lines, ""]))

    def _secure(self, folder: Path, authority: Authority) -> list[str]:
        self.ca = folder / "ca.pem"
        self.ca.write_text(authority.roots_pem)
        self.identity = IdentityFiles(*authority.client("house").write(folder / "client"))
        certificate, key = authority.server("house").write(folder / "server")
        return [f"cafile {self.ca}", f"certfile {certificate}", f"keyfile {key}", "require_certificate true"]

    @contextmanager
    def running(self) -> Iterator[Program]:
        """The broker, and who hears all that is said there: lines of retained (0, 1), topic and payload."""
        with Program("mosquitto", "-c", self._config) as broker:
            broker.wait_for_line(r"mosquitto version \S+ running", stream="stderr")
            login = ("-h", "127.0.0.1", "-p", self.port, "-u", "ha", "-P", _PASSWORD, *self._tls("--cafile"))
            listen = ("mosquitto_sub", *login, "-d", "-q", 1, "-t", "#", "-F", "got %r %t %p")
            with Program("stdbuf", "-oL", *listen) as listener:
                listener.wait_for_line("^Subscribed")
                yield listener

    def options(self, password: Path, ca: Path | None) -> list[object]:
        """For `enroll bridge home-assistant`."""
        return [f"127.0.0.1:{self.port}", "--user", "ha", "--password-file", password, *self._tls("--ca", ca)]

    def login(self, host: str = "127.0.0.1", port: int = 0) -> bridge.Second:
        """For a connection of the bridge's."""
        at = Address(host, port or self.port)
        return bridge.Second(at, "test", "ha", _PASSWORD, self.ca is not None, self.ca, self.identity)

    def _tls(self, ca_option: str, ca: Path | None = None) -> list[object]:
        if self.identity is None:
            return []
        return [ca_option, ca or self.ca, "--cert", self.identity.certificate, "--key", self.identity.key]
