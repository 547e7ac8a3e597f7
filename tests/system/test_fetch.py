"""Logs and files of a device, over real processes: asked for, sent in pieces, gone on with after a cut."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from enroll.registry import Registry, log
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.faults.relay import Relay
from tests.processes import Finished, Program, run
from tests.system.agents import Agent, LiveFleet, live_fleet

_DATA = random.Random(7).randbytes(3_000_000)


@dataclass
class Site:
    """A fleet with one device that shares a folder, and whose way to the service is a relay."""

    fleet: LiveFleet
    relay: Relay
    home: AgentHome
    shared: Path
    stack: ExitStack

    def __post_init__(self) -> None:
        self.agent = self.start()

    def start(self) -> Agent:
        return self.stack.enter_context(Agent(self.home, "--share", str(self.shared))).wait_ready()

    def fetch(self, *args: object) -> Finished:
        return run("enroll", "fetch", *args, "--home", self.fleet.home.path)

    def fetching(self, *args: object) -> Program:
        return Program("enroll", "fetch", *args, "--home", self.fleet.home.path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("fetch")
    with ExitStack() as stack:
        fleet = stack.enter_context(live_fleet(folder, with_broker=True))
        service = urlsplit(fleet.url)
        relay = stack.enter_context(Relay((str(service.hostname), int(service.port or 0))))
        home = fleet.joined("pump-07")
        meta = json.loads(home.meta.read_bytes())
        home.meta.write_text(json.dumps(meta | {"enroll_url": f"https://localhost:{relay.port}"}))
        shared = folder / "logs"
        shared.mkdir()
        (shared / "big.bin").write_bytes(_DATA)
        (shared / "way out").symlink_to(home.identity.key)
        yield Site(fleet, relay, home, shared, stack)


def test_the_last_lines_of_the_log_are_fetched(site: Site) -> None:
    """An admin has to travel to a device to read what it says of itself."""
    shown = site.fetch("log", "pump-07", "--lines", "1000").check().stdout
    site.agent.wait_for_line(re.escape(shown.splitlines()[-1]), stream="stderr")
    logged = site.agent.stderr.splitlines()
    assert shown.splitlines() == logged[: len(shown.splitlines())]
    assert "agent.started device=pump-07" in shown
    assert "command=agent.upload" in shown


def test_a_file_arrives_whole_over_a_link_that_breaks(site: Site, tmp_path: Path) -> None:
    """A long file never arrives over a link that does not last as long as it takes, or arrives with a hole in it."""
    target = tmp_path / "big.bin"
    mark = site.agent.line_count("stderr")
    site.relay.cut_after(1_000_000)
    with site.fetching("file", "pump-07", site.shared / "big.bin", "--out", target) as fetching:
        upload = fetching.wait_for_line(r"^upload (\S+) of pump-07", stream="stderr")[1]
        part = site.fleet.home.uploads / f"{upload}.part"
        cut = site.agent.wait_for_line(r"upload.interrupted .*offset=(\d+)", stream="stderr", after=mark)
        assert 0 < int(cut[1]) < len(_DATA)
        assert 0 == fetching.wait(60)
    assert not part.exists()
    assert _DATA == target.read_bytes()
    assert hashlib.sha256(_DATA).hexdigest() in fetching.stderr
    with Registry.open(site.fleet.home.registry) as registry, registry.read() as transaction:
        done = [entry.event for entry in log.newest(transaction, 100) if upload in entry.fields]
    assert ["command.given", "upload.asked", "upload.finished"] == done


def test_a_file_arrives_whole_from_an_agent_that_was_killed_amid_it(site: Site, tmp_path: Path) -> None:
    """A power cut in the middle of a long file, and the admin has to notice and ask again."""
    target, asked = tmp_path / "big.bin", site.shared / "big.bin"
    is_frozen = site.relay.freeze_after(1_000_000)
    with site.fetching("file", "pump-07", asked, "--out", target) as fetching:
        upload = fetching.wait_for_line(r"^upload (\S+) of pump-07", stream="stderr")[1]
        assert is_frozen.wait(within(20))
        site.agent.kill()
        site.relay.thaw()
        site.relay.cut()
        assert 0 < (site.fleet.home.uploads / f"{upload}.part").stat().st_size < len(_DATA)
        before = site.relay.bytes_read
        site.agent = site.start()
        site.agent.wait_for_line(rf"command.resumed .*command_id={upload} run=2", stream="stderr")
        site.agent.wait_for_line(rf"command.finished .*command_id={upload} state=done", stream="stderr")
        assert 0 == fetching.wait()
    assert site.relay.bytes_read - before < len(_DATA), "it was sent from its beginning"
    assert _DATA == target.read_bytes()
    assert hashlib.sha256(_DATA).hexdigest() in fetching.stderr


def test_what_is_not_shared_stays_on_the_device(site: Site, tmp_path: Path) -> None:
    """Whoever may fetch a log may fetch the device's key."""
    asked = site.fetch("file", "pump-07", site.shared / "way out", "--out", tmp_path / "stolen")
    assert 1 == asked.returncode, asked
    assert "error: pump-07 does not send it: it is a link" in asked.stderr
    assert not (tmp_path / "stolen").exists()


def test_what_is_shared_is_listed(site: Site) -> None:
    """An admin has to know a path by heart."""
    assert f"{site.shared / 'big.bin'}\n" == site.fetch("listing", "pump-07", "-o", "name").check().stdout
    assert site.fleet.home.uploads.is_dir()
