"""`broker serve` as whoever runs the broker meets it: ready lines, signals, and words for what is wrong."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleet.identity import Server
from fleet.layout import AdminHome
from tests import mqtt
from tests.fleets import new_home
from tests.processes import Program, run
from tests.system.brokers import connected_once, operator, peer, start_broker, start_service, wait_ready


@pytest.fixture(scope="module")
def known_home(tmp_path_factory: pytest.TempPathFactory) -> AdminHome:
    """A home whose broker has a snapshot. Read only."""
    home = new_home(tmp_path_factory.mktemp("known") / "fleet")
    connected_once(home)
    return home


@pytest.fixture
def home(known_home: AdminHome, tmp_path: Path) -> AdminHome:
    """A copy of it that a test may spoil."""
    run("cp", "-a", known_home.path, tmp_path / "fleet").check()
    return AdminHome(tmp_path / "fleet")


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield int(listening.getsockname()[1])


def test_it_is_ready_without_the_service_when_it_has_a_snapshot(home: AdminHome) -> None:
    """A site would stand still whenever the service is away."""
    with start_broker(home) as broker:
        port = wait_ready(broker)
        with peer(home, operator(home), port) as admin:
            assert mqtt.ACCEPTED == admin.ask(mqtt.connect("admin"))
    assert 0 == broker.returncode
    assert f"broker: ready mqtts://127.0.0.1:{port}\n" == broker.stdout


def test_a_wrong_command_line_is_said_in_two_lines() -> None:
    """Whoever mistypes an option reads a library's own words, unlike those of every other program of the fleet."""
    for words, error in (
        (("serve", "--engin", "x"), "error: no such option: --engin"),
        (("join",), "error: no such command 'join'"),
    ):
        done = run("broker", *words)
        assert (2, "") == (done.returncode, done.stdout)
        assert done.stderr.startswith(f"{error}\nhint: broker")
    assert 0 == run("broker", "--help").returncode
    assert 0 == run("broker", "serve", "--help").returncode


def test_the_run_file_tells_the_advertised_name_and_the_real_port(home: AdminHome) -> None:
    """`/v1/config` and dispatch would look for the broker in the wrong place."""
    with start_broker(home) as broker:
        port = wait_ready(broker)
        assert {"v": 1, "url": f"mqtts://localhost:{port}"} == json.loads(home.run_file(Server.BROKER).read_bytes())
    with start_broker(home, "--public-url", "mqtts://gateway.example:8883") as broker:
        wait_ready(broker)
        told = json.loads(home.run_file(Server.BROKER).read_bytes())
    assert "mqtts://gateway.example:8883" == told["url"]


def test_without_a_snapshot_it_waits_for_the_service_and_says_so(tmp_path: Path) -> None:
    """It would refuse everyone, or hang without a word."""
    home = new_home(tmp_path / "fleet")
    with start_broker(home) as broker:
        broker.wait_for_line("waiting for the enrollment service", stream="stderr")
        assert "" == broker.stdout
        with start_service(home) as enroll:
            wait_ready(enroll)
            wait_ready(broker)


def test_it_can_be_stopped_while_it_waits(tmp_path: Path) -> None:
    """SIGTERM would have to wait, too."""
    home = new_home(tmp_path / "fleet")
    with start_broker(home) as broker:
        broker.wait_for_line("waiting for the enrollment service", stream="stderr")
        assert 0 == broker.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_its_connections(home: AdminHome, number: signal.Signals) -> None:
    """A restart would hang, or look like a crash."""
    with start_broker(home) as broker, peer(home, operator(home), wait_ready(broker)) as admin:
        admin.ask(mqtt.connect("admin"))
        broker.send_signal(number)
        assert admin.is_closed()
        assert 0 == broker.wait()
    assert "Traceback" not in broker.stderr


def test_sighup_takes_new_certificates_or_keeps_the_old(home: AdminHome) -> None:
    """Renewed certificates would need a restart, and a damaged one would end the broker."""
    certificate = home.broker_server.certificate
    with start_broker(home) as broker:
        port = wait_ready(broker)
        broker.send_signal(signal.SIGHUP)
        broker.wait_for_line("trust.replaced", stream="stderr")
        good = certificate.read_bytes()
        certificate.write_bytes(b"damaged")
        broker.send_signal(signal.SIGHUP)
        broker.wait_for_line("trust.not_replaced", stream="stderr")
        certificate.write_bytes(good)
        with peer(home, operator(home), port) as admin:
            assert mqtt.ACCEPTED == admin.ask(mqtt.connect("admin"))


def test_a_broker_that_lets_a_revoked_identity_in_does_not_start(home: AdminHome) -> None:
    """Nobody would notice that it keeps nobody out."""
    for one, other in (
        (home.broker_revoked.certificate, home.broker_client.certificate),
        (home.broker_revoked.key, home.broker_client.key),
    ):
        one.write_bytes(other.read_bytes())
    ended = run("broker", "serve", "--home", home.path, "--listen", "127.0.0.1:0")
    assert 1 == ended.returncode
    assert "error: the broker admits a client of its own that is revoked: broker\n" in ended.stderr
    assert "" == ended.stdout


def test_a_home_without_a_revoked_identity_is_served_and_said_to_be_incomplete(home: AdminHome) -> None:
    """A home made by an earlier version could not be served; or nobody would know what is not tried."""
    home.broker_revoked.certificate.unlink()
    with start_broker(home) as broker:
        broker.wait_for_line("canary.incomplete", stream="stderr")
        wait_ready(broker)


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_the_home_is_taken_before_and_after_the_verb_and_from_the_environment(home: AdminHome, place: str) -> None:
    """DESIGN section 9 promises it."""
    before = ["--home", home.path] if place == "before" else []
    after = ["--home", home.path] if place == "after" else []
    env = {"FLEET_HOME": str(home.path)} if place == "environment" else {}
    with Program("broker", *before, "serve", "--listen", "127.0.0.1:0", *after, env=env) as broker:
        wait_ready(broker)


def no_home(home: AdminHome) -> None:
    home.path.rename(home.path.with_name("elsewhere"))


def open_home(home: AdminHome) -> None:
    home.path.chmod(0o755)


def readable_key(home: AdminHome) -> None:
    home.broker_server.key.chmod(0o644)


def unknown_key(home: AdminHome) -> None:
    home.config.write_text(home.config.read_text() + "\n[limits]\nclients = 3\n")


def broken_config(home: AdminHome) -> None:
    home.config.write_text("hosts = [")


def damaged_snapshot(home: AdminHome) -> None:
    home.broker_directory.write_bytes(home.broker_directory.read_bytes()[:-40] + b"\n{}\n")


def no_server_certificate(home: AdminHome) -> None:
    home.broker_server.certificate.unlink()


def wrong_client_identity(home: AdminHome) -> None:
    home.broker_client.certificate.write_bytes(home.broker_server.certificate.read_bytes())


@pytest.mark.parametrize(
    ("spoil", "words", "status"),
    [
        (no_home, "there is no fleet at", 3),
        (open_home, "can be entered by others", 4),
        (readable_key, "can be read by others", 1),
        (unknown_key, "unknown key limits", 2),
        (broken_config, "fleet.toml is not TOML", 2),
        (damaged_snapshot, "is damaged", 2),
        (no_server_certificate, "is missing", 3),
        (wrong_client_identity, "is not the key of", 2),
    ],
)
def test_a_home_that_is_wrong_is_named_with_what_to_do(
    home: AdminHome, spoil: Callable[[AdminHome], None], words: str, status: int
) -> None:
    """An admin would read a traceback, or nothing."""
    spoil(home)
    ended = run("broker", "serve", "--home", home.path, "--listen", "127.0.0.1:0")
    assert (status, "") == (ended.returncode, ended.stdout)
    assert re.search(rf"^error: .*{re.escape(words)}", ended.stderr, re.MULTILINE), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_named(home: AdminHome, taken_port: int) -> None:
    """The most usual mistake would be a riddle."""
    ended = run("broker", "serve", "--home", home.path, "--listen", f"127.0.0.1:{taken_port}")
    assert (1, "") == (ended.returncode, ended.stdout)
    assert f"error: cannot listen on 127.0.0.1:{taken_port}" in ended.stderr
    assert "hint: " in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:99999", ":::", "no-such-host.invalid:0"])
def test_an_address_that_is_none_is_named(home: AdminHome, listen: str) -> None:
    """So would be a typing error."""
    ended = run("broker", "serve", "--home", home.path, "--listen", listen)
    assert ended.returncode in (1, 2)
    assert "error: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_connections_are_bounded_by_the_files_that_may_be_open(home: AdminHome) -> None:
    """Connections that say nothing would take all there are, the kernel refuse the rest, and no line tell."""
    connected_once(home)
    serve = (Path(sys.executable).with_name("broker"), "serve", "--home", home.path, "--listen", "127.0.0.1:0")
    with Program("prlimit", "--nofile=512:512", *serve) as broker:
        wait_ready(broker)
        broker.wait_for_line("limits.lowered open_files=512 max_connections=384", stream="stderr")
    with Program("prlimit", "--nofile=512:4096", *serve) as broker:
        wait_ready(broker)
        limits = Path(f"/proc/{broker.pid}/limits").read_text()
        assert re.search(r"Max open files +4096 +4096 ", limits)
