"""`broker serve --metrics` as whoever runs the broker meets it: where it is served, and when it is not."""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fleet.layout import AdminHome
from tests import mqtt
from tests.fleets import new_home
from tests.processes import run
from tests.system.brokers import connected_once, operator, peer, start_broker, wait_ready
from tests.system.metrics import Scraper, fetch


@pytest.fixture(scope="module")
def known_home(tmp_path_factory: pytest.TempPathFactory) -> AdminHome:
    """A home whose broker has a snapshot. Read only."""
    home = new_home(tmp_path_factory.mktemp("known") / "fleet")
    connected_once(home)
    return home


def test_without_being_asked_nothing_is_served(known_home: AdminHome) -> None:
    """A port would be open that nobody knows of, and two brokers on a host would fight for it."""
    with start_broker(known_home) as broker:
        wait_ready(broker)
        assert "metrics" not in broker.stdout


def test_the_address_may_stand_in_the_configuration(known_home: AdminHome, tmp_path: Path) -> None:
    """A service file would have to be changed for it."""
    run("cp", "-a", known_home.path, tmp_path / "fleet").check()
    home = AdminHome(tmp_path / "fleet")
    home.config.write_text(re.sub(r"(?m)^\[broker\]$", '[broker]\nmetrics = "[::1]:0"', home.config.read_text()))
    with start_broker(home) as broker:
        url = broker.wait_for_line(r"broker: metrics (http://\[::1\]:\d+/metrics)$").group(1)
        assert "# HELP" in fetch(url)


def test_a_metrics_port_that_is_taken_is_named(known_home: AdminHome) -> None:
    """The broker would end with a riddle, or run without being watched."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run("broker", "serve", "--home", known_home.path, "--listen", "127.0.0.1:0", "--metrics", address)
    assert (1, "") == (ended.returncode, ended.stdout)
    assert f"error: cannot listen on {address} for metrics: " in ended.stderr
    assert "hint: choose another address" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wider_address_takes_a_word_on_the_command_line(known_home: AdminHome) -> None:
    """It could not be opened for a Prometheus elsewhere at all."""
    with start_broker(known_home, "--metrics", "0.0.0.0:0") as broker:
        port = int(broker.wait_for_line(r"broker: metrics http://0\.0\.0\.0:(\d+)/metrics$").group(1))
        assert "# HELP" in fetch(f"http://127.0.0.1:{port}/metrics")


def test_who_holds_a_scrape_open_holds_up_neither_clients_nor_the_end(known_home: AdminHome) -> None:
    """A forgotten telnet would stop the fleet, or the restart."""
    with start_broker(known_home, "--metrics", "127.0.0.1:0") as broker, ExitStack() as stack:
        url = broker.wait_for_line(r"broker: metrics (\S+)").group(1)
        port, metrics_port = wait_ready(broker), urlsplit(url).port
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", metrics_port))).sendall(b"GET /metr")
        with peer(known_home, operator(known_home), port) as admin:
            assert mqtt.ACCEPTED == admin.ask(mqtt.connect("admin"))
        assert 0 == broker.stop()
        assert "Traceback" not in broker.stderr


def test_a_waiting_broker_tells_that_it_waits(tmp_path: Path) -> None:
    """One that has never heard its service would be the one that tells nothing."""
    with start_broker(new_home(tmp_path / "fleet"), "--metrics", "127.0.0.1:0") as broker:
        scraper = Scraper(broker.wait_for_line(r"broker: metrics (\S+)").group(1))
        assert (0, 0) == tuple(scraper.scrape()[name] for name in ("directory_sequence", "directory_principals"))
