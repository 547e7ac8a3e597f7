"""Cuts the power of a device at every system call that touches its files, over real processes: `main` is the long form.

Four lives of a device are cut: its first enrolment, a renewal, an outage (the spool is filled), and its end (the spool
is emptied while commands come in). What is true after each cut is said where it is checked.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from device_agent.core.effects import OpenSpool, ReadSpool
from device_agent.core.events import SpoolOpened, SpoolRead
from device_agent.outbox import Class
from device_agent.spool import SpoolFile
from enroll import service
from enroll.registry import Registry
from enroll.tokens import TokenOrder
from fleet.identity import DeviceId
from fleet.join import JoinCode
from fleet.layout import AgentHome
from tests.deadlines import within
from tests.faults.cutting import Point, Traced, calls_of, lose_unsynced, paths_below, points_of
from tests.mqtt import ACCEPTED, Peer, connect
from tests.processes import Program
from tests.processes import run as run_command
from tests.system.agents import Agent, Application, LiveFleet, Operator, join, live_fleet, status_of

_SPOOLED: Final = 120
_ALL: Final = set(range(_SPOOLED))
_NOWHERE: Final = "127.0.0.1:1"


@dataclass
class Cuts:
    """One series of cuts on one fleet. `count` how many were made, `torn` how many sectors were lost with them."""

    fleet: LiveFleet
    folder: Path
    chance: random.Random
    count: int = 0
    torn: int = 0
    code: JoinCode | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.folder / "strace.log"

    def new_home(self) -> AgentHome:
        return AgentHome(self.folder / f"home-{secrets.token_hex(4)}")

    def invite(self, device: str) -> JoinCode:
        """As `LiveFleet.invite`, and many times faster."""
        self.code = self.code or self.fleet.invite(device)
        order = TokenOrder(device=DeviceId(device))
        with Registry.open(self.fleet.home.registry) as registry:
            invitation = service.invite(
                registry, order, by="test", now=datetime.now(UTC), token_bytes=secrets.token_bytes
            )
        return replace(self.code, token=invitation.token)


def cut_joins(cuts: Cuts, step: int) -> None:
    """`device-agent join`: the same command again succeeds, and the broker lets the device in."""
    home = cuts.new_home()
    with _joining(cuts, home, cuts.invite(home.path.name), [], None) as whole:
        assert 0 == whole.wait(), whole.describe()
    check_connects(cuts, home)
    paths = paths_below(home.path, calls_of(cuts.log))
    for point in points_of(cuts.log, paths)[::step]:
        _cut_join(cuts, [path.relative_to(home.path) for path in paths], point)


def _joining(cuts: Cuts, home: AgentHome, code: JoinCode, paths: Sequence[Path], point: Point | None) -> Traced:
    return Traced(
        cuts.log,
        paths,
        point.kill if point else "",
        "device-agent",
        "join",
        code,
        "--id",
        home.path.name,
        "--home",
        home.path,
    )


def _cut_join(cuts: Cuts, names: Sequence[Path], point: Point) -> None:
    home = cuts.new_home()
    code = cuts.invite(home.path.name)
    with _joining(cuts, home, code, [home.path / name for name in names], point) as killed:
        assert killed.was_cut(), point
        cuts.count += 1
    cuts.torn += lose_unsynced(cuts.log, [home.path / name for name in names if name.suffix], cuts.chance)
    again = join(home, code, home.path.name)
    if "is enrolled already" not in again.stderr:
        again.check()
    check_connects(cuts, home)
    shutil.rmtree(home.path)


def check_connects(cuts: Cuts, home: AgentHome) -> None:
    """The device is not lost: key, certificate and trust fit together, and the broker accepts them."""
    context = ssl.create_default_context(cafile=home.trust)
    context.load_cert_chain(home.identity.certificate, home.identity.key)
    with Peer(cuts.fleet.broker_address, context) as peer:
        assert ACCEPTED == peer.ask(connect(home.path.name))


def enrolled(cuts: Cuts) -> AgentHome:
    """A device that is offline for good: nothing answers where it looks for its fleet."""
    home = cuts.new_home()
    join(home, cuts.invite(home.path.name), home.path.name).check()
    return home


def cut_renewals(cuts: Cuts, step: int) -> None:
    """`device-agent renew`: the device connects as it is, and the same command again succeeds."""
    _cut_renewals(cuts, step, enrolled, connects=True)


def cut_recoveries(cuts: Cuts, step: int, asleep: Callable[[], AgentHome]) -> None:
    """The same of a device whose certificate has expired: it connects once the command has succeeded."""
    _cut_renewals(cuts, step, lambda _: asleep(), connects=False)


def _cut_renewals(cuts: Cuts, step: int, make: Callable[[Cuts], AgentHome], *, connects: bool) -> None:
    home = make(cuts)
    with _renewing(cuts, home, [], None) as whole:
        assert 0 == whole.wait(), whole.describe()
    paths = paths_below(home.path, calls_of(cuts.log))
    for point in points_of(cuts.log, paths)[::step]:
        _cut_renewal(cuts, make(cuts), [path.relative_to(home.path) for path in paths], point, connects=connects)


def _renewing(cuts: Cuts, home: AgentHome, paths: Sequence[Path], point: Point | None) -> Traced:
    return Traced(cuts.log, paths, point.kill if point else "", "device-agent", "renew", "--home", home.path)


def _cut_renewal(cuts: Cuts, home: AgentHome, names: Sequence[Path], point: Point, *, connects: bool) -> None:
    with _renewing(cuts, home, [home.path / name for name in names], point) as killed:
        assert killed.was_cut(), point
        cuts.count += 1
    cuts.torn += lose_unsynced(cuts.log, [home.path / name for name in names if name.suffix], cuts.chance)
    if connects:
        check_connects(cuts, home)
    run_command("device-agent", "renew", "--home", home.path).check()
    check_connects(cuts, home)
    shutil.rmtree(home.path)


def go_offline(home: AgentHome) -> str:
    """Nothing answers where it looks for its fleet from now on; the real address."""
    fields = json.loads(home.meta.read_bytes())
    home.meta.write_text(json.dumps(fields | {"enroll_url": f"https://{_NOWHERE}"}))
    (home.path / "config.json").write_text(json.dumps({"v": 1, "brokers": [f"mqtts://{_NOWHERE}"]}))
    return str(fields["enroll_url"])


def spool_paths(home: AgentHome) -> list[Path]:
    names = ("spool.db", "spool.db-wal", "spool.db-journal", "commands.json", "commands.json.new", "config.json.new")
    return [home.path, *(home.path / name for name in names)]


def cut_outages(cuts: Cuts, step: int) -> None:
    """An agent that fills its spool: what its status said was on disk is there, in its order."""
    template = enrolled(cuts)
    go_offline(template)
    _cut_outage(cuts, template, None)
    for point in points_of(cuts.log, spool_paths(AgentHome(cuts.folder / "outage")))[::step]:
        _cut_outage(cuts, template, point)


def _cut_outage(cuts: Cuts, template: AgentHome, point: Point | None) -> None:
    home = AgentHome(cuts.folder / "outage")
    shutil.copytree(template.path, home.path, symlinks=True)
    promised = 0
    with Traced(
        cuts.log, spool_paths(home), point.kill if point else "", "device-agent", "run", "--home", home.path
    ) as agent:
        try:
            agent.wait_for_line("connection.failed", stream="stderr")
            with Application(home) as app:
                for number in range(_SPOOLED):
                    app.say(type="telemetry", stream="load", data={"n": number})
                    if number % 10 == 9:
                        app.say(type="status")
                        promised = int(app.next("status")["spool"]["messages"])
        except (OSError, AssertionError):
            assert agent.was_cut(), agent.describe()
        agent.stop()
        was_cut = agent.was_cut()
    if was_cut:
        cuts.count += 1
        cuts.torn += lose_unsynced(cuts.log, [home.path / "spool.db", home.path / "spool.db-wal"], cuts.chance)
    kept = check_spool(home)
    assert list(range(len(kept))) == kept, "a message is missing, or two have changed places"
    assert len(kept) >= (promised if was_cut else _SPOOLED), "what was on disk is lost"
    shutil.rmtree(home.path)


def check_spool(home: AgentHome) -> list[int]:
    """The numbers of the messages on disk; the file is not damaged."""
    spool = SpoolFile(home, DeviceId(home.path.name))
    try:
        opened = spool.perform(OpenSpool())
        assert isinstance(opened, SpoolOpened), opened
        assert "" == opened.problem
        return list(_read(spool, opened))
    finally:
        spool.close()


def _read(spool: SpoolFile, opened: SpoolOpened) -> Iterator[int]:
    after = opened.telemetry.loaded
    while after < opened.telemetry.last:
        page = spool.perform(ReadSpool(Class.TELEMETRY, after, 50, 1 << 20))
        assert isinstance(page, SpoolRead), page
        assert 0 == page.damaged
        yield from (json.loads(each.payload)["data"]["n"] for each in page.messages)
        after = page.upto


def cut_returns(cuts: Cuts, step: int) -> None:
    """An agent that empties its spool and gets a command.

    Each message is on disk still or the fleet has it; no command begins twice, and each has an answer in the end.
    """
    template = enrolled(cuts)
    url = go_offline(template)
    with Agent(template) as agent:
        agent.wait_for_line("connection.failed", stream="stderr")
        with Application(template) as app:
            for number in range(_SPOOLED):
                app.say(type="telemetry", stream="load", data={"n": number})
            app.say(type="status")
            app.next("status")  # all that was said before is accepted
    template.meta.write_text(json.dumps(json.loads(template.meta.read_bytes()) | {"enroll_url": url}))
    (template.path / "config.json").unlink()
    _cut_return(cuts, template, None)
    for point in points_of(cuts.log, spool_paths(AgentHome(cuts.folder / "return")))[::step]:
        _cut_return(cuts, template, point)


def _cut_return(cuts: Cuts, template: AgentHome, point: Point | None) -> None:
    home, device = AgentHome(cuts.folder / "return"), template.path.name
    shutil.copytree(template.path, home.path, symlinks=True)
    command, was_told = secrets.token_hex(8), False
    with Operator(cuts.fleet) as operator:
        with Traced(
            cuts.log, spool_paths(home), point.kill if point else "", "device-agent", "run", "--home", home.path
        ) as agent:
            try:
                agent.wait_for_line("connection.ready", stream="stderr")
                with Application(home, ("echo",)) as app:
                    operator.send(device, "echo", command)
                    was_told = bool(app.next("command"))
                    app.say(type="result", command_id=command, state="done", output={"life": 1})
                    operator.final_result(device, command, lambda: agent.returncode is not None)
            except (OSError, AssertionError):
                assert agent.was_cut(), agent.describe()
            agent.stop()
        was_cut = agent.was_cut()
        if was_cut:
            cuts.count += 1
            cuts.torn += lose_unsynced(cuts.log, [home.path / "spool.db", home.path / "spool.db-wal"], cuts.chance)
        answer = _after_return(operator, home, device, command)
    assert not was_told or answer["state"] == "failed" or answer["output"] == {"life": 1}, "a command was begun twice"
    shutil.rmtree(home.path)


def _after_return(operator: Operator, home: AgentHome, device: str, command: str) -> dict[str, Any]:
    """Run it again, uncut: all arrives. The answer to the command."""
    topic = f"devices/{device}/up/telemetry/load"
    firmware = Program("firmware-stub", "--socket", home.path / "run" / "app.sock")
    with Agent(home).wait_ready() as agent, firmware:
        operator.send(device, "echo", command)
        answer = operator.final_result(device, command)
        operator.until(lambda heard: {fields["data"]["n"] for name, fields in heard if name == topic} == _ALL)
        deadline = time.monotonic() + within(20)  # the fleet may have had all before the cut: the agent sends it again
        while status_of(home)["spool"]["messages"]:
            assert time.monotonic() < deadline, "the spool does not become empty"
        agent.stop()
    assert [] == check_spool(home), "what the broker has is on disk still"
    return answer


def run(step: int, seed: int) -> str:
    """All four series, every `step`-th call; what was done."""
    with tempfile.TemporaryDirectory() as folder, live_fleet(Path(folder), with_broker=True) as fleet:
        cuts = Cuts(fleet, Path(folder) / "cuts", random.Random(seed))
        cuts.folder.mkdir()
        counts = []
        for series in (cut_joins, cut_renewals, cut_outages, cut_returns):
            before = cuts.count
            series(cuts, step)
            counts.append(f"{series.__name__} {cuts.count - before}")
        return f"{cuts.count} power cuts ({', '.join(counts)}), {cuts.torn} sectors lost with them, 0 devices lost"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="dev soak power-cut", description=__doc__)
    parser.add_argument("--step", type=int, default=1, help="cut at every STEP-th system call (default: at every one)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="which sectors are lost")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    print(run(options.step, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
