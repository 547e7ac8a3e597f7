"""A registry of a million devices: look-ups, pages, redemption, the directory's snapshot, the start of the service.

The rows are written as enrolments would have left them (one certificate's DER for all); everything measured is the
real code over the real file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from enroll import authority, service
from enroll.bookkeeping import Books
from enroll.commits import Commits
from enroll.directory import DirectoryFeed, Position
from enroll.initialise import Plan, initialise
from enroll.registry import Registry, Transaction, feed, identity, overview
from enroll.registry import tokens as token_rows
from enroll.registry.overview import Filter
from enroll.service import Enrolment, Issued
from enroll.tokens import TokenOrder
from fleet import pki
from fleet.config import parse_address
from fleet.est import Csr
from fleet.identity import DeviceId, Role, State, TrustDomain
from fleet.layout import AdminHome

_DOMAIN = TrustDomain("bench.example")
_CRL_URL = "http://127.0.0.1:8080/crl"
_BATCH = 20_000
_TRIES = 1000


def main(arguments: Sequence[str]) -> int:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(prog="bench registry", description=__doc__)
    parser.add_argument("--devices", type=int, default=1_000_000, help="devices, and tokens (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the home here, or use the one that is there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = AdminHome((options.keep or Path(folder) / "fleet").absolute())
        if not home.config.exists():
            began = time.monotonic()
            fill(home, options.devices)
            print(f"filled in {time.monotonic() - began:.0f} s", file=sys.stderr)
        measure(home, options.devices)
    return 0


# Filling -----------------------------------------------------------------------------------------------------------


def fill(home: AdminHome, count: int) -> None:
    """A home whose registry has `count` devices and as many tokens."""
    plan = Plan(
        _DOMAIN, ("127.0.0.1",), _CRL_URL, b"correct horse", parse_address("127.0.0.1:0"), parse_address("127.0.0.1:0")
    )
    now = datetime.now(UTC)
    initialise(home, plan, now=now, token_bytes=secrets.token_bytes)
    with Registry.open(home.registry) as registry:
        with registry.read() as transaction:
            [sample] = identity.certificates_of(transaction, DeviceId("admin"))
        for start in range(0, count, _BATCH):
            with registry.write() as transaction:
                for number in range(start, min(start + _BATCH, count)):
                    add_device(transaction, number, sample.der, now)


def device_id(number: int) -> DeviceId:
    return DeviceId(f"pump-{number:07d}")


def add_device(transaction: Transaction, number: int, der: bytes, now: datetime) -> None:
    """What an enrolment leaves, and a token that was not used."""
    name, micros = device_id(number), int(now.timestamp() * 1e6) + number
    state = "suspended" if number % 5000 == 0 else "active"
    groups = '["cellar"]' if number % 1000 == 0 else "[]"
    key, serial = random.Random(number).randbytes(32), f"{number + (1 << 150):x}"
    run = transaction.connection.cursor().execute
    run("INSERT INTO principals VALUES (?, 'device', ?, 1, ?, ?)", (name, state, groups, micros))
    if groups != "[]":
        run("INSERT INTO memberships VALUES ('cellar', ?)", (name,))
    run("INSERT INTO keys VALUES (?, ?, ?)", (key, name, micros))
    columns = "serial, issuer, profile, principal, key, epoch, generation, state, shard, not_before, not_after, der"
    values = (serial, name, key, 1 + number // 10_000, micros, micros + 7_776_000_000_000, der, micros)
    run(
        f"INSERT INTO certificates ({columns}, created_at)"
        " VALUES (?, 'devices', 'client', ?, ?, 1, 1, 'confirmed', ?, ?, ?, ?, ?)",
        values,
    )
    run("INSERT INTO outbox (principal) VALUES (?)", (name,))
    run("INSERT INTO presence VALUES (?, ?, '', '0.1.0', ?, ?)", (name, number % 100 != 0, micros, micros))
    fields = json.dumps({"principal": f"device/{name}", "serial": serial})
    run("INSERT INTO audit (at, event, fields, digest) VALUES (?, 'certificate.issued', ?, ?)", (micros, fields, key))
    token = f"t{number:07d}"
    columns = "id, digest, device, role, groups, profile, replace, uses, uses_left, created_at, expires_at"
    run(
        f"INSERT INTO tokens ({columns}) VALUES (?, ?, ?, 'device', '[]', 'client', 0, 1, 1, ?, ?)",
        (token, key, f"valve-{number:07d}", micros, micros + 86_400_000_000),
    )


# Measuring ---------------------------------------------------------------------------------------------------------


def measure(home: AdminHome, count: int) -> None:
    """Print every figure, one a line."""
    say("registry", f"{home.registry.stat().st_size / 1e9:.2f} GB, {count} devices, {count} tokens")
    with Registry.open(home.registry) as registry:
        measure_look_ups(registry, count)
        measure_pages(registry)
        measure_redemption(home, registry)
        measure_snapshot(home, registry)
        measure_agenda(registry)
    measure_commands(home)
    measure_start(home)


def say(name: str, words: str) -> None:
    print(f"{name:42}{words}", flush=True)


def timed(name: str, tries: int, run: Callable[[int], object]) -> None:
    """The middle and the 99th of `tries` times, in milliseconds."""
    spent = []
    for number in range(tries):
        began = time.perf_counter()
        run(number)
        spent.append(1000 * (time.perf_counter() - began))
    spent.sort()
    say(name, f"{spent[len(spent) // 2]:8.3f} ms   p99 {spent[min(len(spent) - 1, len(spent) * 99 // 100)]:8.3f} ms")


def measure_look_ups(registry: Registry, count: int) -> None:
    chosen = random.Random(1).choices(range(count), k=_TRIES)
    with registry.read() as transaction:
        serials = [identity.live_certificates_of(transaction, device_id(number))[0].serial for number in chosen]

        def by_serial(number: int) -> object:
            return service.admit(transaction, serials[number]) if chosen[number] % 5000 else None

        timed("look up a principal", _TRIES, lambda n: identity.find_principal(transaction, device_id(chosen[n])))
        timed("admit by serial", _TRIES, by_serial)
        timed("directory entry by serial", _TRIES, lambda n: feed.entry_of_serial(transaction, serials[n]))
        timed("look up a token", _TRIES, lambda n: token_rows.find_token(transaction, f"t{chosen[n]:07d}"))
        timed("the last 500 changes", 100, lambda _: feed.changes(transaction, feed.head(transaction) - 500, 500))


def measure_pages(registry: Registry) -> None:
    """Pages of 100, in the middle of the list and with each filter."""
    middle = DeviceId("pump-0500000")
    filters = {
        "all": Filter(),
        "role device": Filter(role=Role.DEVICE),
        "role operator": Filter(role=Role.OPERATOR),
        "suspended (200 in a million)": Filter(state=State.SUSPENDED),
        "group (1,000 in a million)": Filter(group="cellar"),
        "offline (10,000 in a million)": Filter(is_online=False),
        "online and suspended": Filter(is_online=True, state=State.SUSPENDED),
        "--match 'pump-07*'": Filter(pattern="pump-07*"),
        "revoked (none)": Filter(state=State.REVOKED),
    }
    with registry.read() as transaction:
        for name, wanted in filters.items():
            for after in (None, middle):
                where = "first" if after is None else "middle"
                timed(f"page of 100, {where}: {name}", 20, lambda _: overview.page(transaction, wanted, after, 100))  # noqa: B023


def measure_redemption(home: AdminHome, registry: Registry) -> None:
    """The use case without HTTP: token, certificate, outbox, audit, one commit each."""
    cas = authority.load(home, _DOMAIN, _CRL_URL)
    enrolment, now = Enrolment(registry, cas.devices, _DOMAIN, secrets.token_bytes), datetime.now(UTC)
    run_id = secrets.token_hex(4)
    devices = [DeviceId(f"new-{run_id}-{number}") for number in range(200)]
    invited = service.invite_all(
        registry, [TokenOrder(device) for device in devices], by="bench", now=now, token_bytes=secrets.token_bytes
    )
    asked = [Csr(device, ec.generate_private_key(ec.SECP256R1()).public_key()) for device in devices]

    def redeem(number: int) -> None:
        outcome = enrolment.enrol(invited[number].token, lambda: asked[number], now)
        assert isinstance(outcome, Issued)

    timed("redeem a token, durable, with signing", 200, redeem)
    timed("revoke a device", 50, lambda n: service.revoke(registry, devices[n], by="bench", now=now))
    again = [TokenOrder(device_id(number), replace=True, ttl=timedelta(hours=1)) for number in range(50)]
    timed(
        "create a token",
        50,
        lambda n: service.invite(registry, again[n], by="bench", now=now, token_bytes=secrets.token_bytes),
    )


def measure_snapshot(home: AdminHome, registry: Registry) -> None:
    """A broker without any snapshot of its own: all of the directory, and what the service's memory grows by."""
    pem = home.broker_client.certificate.read_bytes()
    serial = pki.serial_of(x509.load_pem_x509_certificate(pem))

    async def follow() -> tuple[int, int, float]:
        size, largest, first = 0, 0, 0.0
        with ThreadPoolExecutor(1) as executor:
            async with Commits(registry) as commits:
                began = time.monotonic()
                async for chunk in DirectoryFeed(registry, commits, executor).follow(serial, Position("", 0)):
                    first = first or time.monotonic() - began
                    size, largest = size + len(chunk), max(largest, len(chunk))
                    if chunk.rstrip().rpartition(b"\n")[2].startswith(b'{"type": "current"') or b'"current"' in chunk:
                        break
        return size, largest, first

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    size, largest, first = asyncio.run(follow())
    seconds = time.monotonic() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    say("directory snapshot", f"{seconds:.1f} s, {size / 1e6:.0f} MB, first bytes after {1000 * first:.0f} ms")
    say("  largest chunk; peak memory grew by", f"{largest / 1e3:.0f} KB; {grown:.0f} MB")


def measure_agenda(registry: Registry) -> None:
    """What each turn of dispatch asks, while a hundred commands wait for each device that is away."""
    now = datetime.now(UTC)
    micros = int(now.timestamp() * 1e6)
    with registry.write() as transaction:
        transaction.exec_driver_sql(
            "WITH RECURSIVE each (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM each WHERE n < 99)"
            " INSERT OR IGNORE INTO commands"
            " (id, device, epoch, name, args, state, created_at, deadline, changed_at, error)"
            " SELECT p.principal || '-' || n, p.principal, 1, 'echo', '{}', 'queued', ?, ?, ?, ''"
            " FROM presence p, each WHERE NOT p.online",
            (micros, micros + 604_800_000_000, micros),
        )
        count = transaction.exec_driver_sql("SELECT count(*) FROM commands").scalar_one()
    books = Books(registry)
    timed(f"agenda, {count} commands wait", 100, lambda _: books.agenda(now))


def measure_commands(home: AdminHome) -> None:
    """What an admin waits for, whole processes."""
    for words in (
        "device list --limit 100",
        "device list --state suspended --limit 100 -o name",
        "device show pump-0500000",
        "token list --limit 100",
        "cert list --limit 100",
        "log list -n 100",
        "status",
    ):
        began = time.monotonic()
        command = [str(Path(sys.executable).parent / "enroll"), *words.split(), "--home", str(home.path)]
        process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert process.wait() in (0, 5), words  # `status` says 5: nothing is running
        say(f"enroll {words}", f"{time.monotonic() - began:.2f} s")


def measure_start(home: AdminHome) -> None:
    """From nothing to the ready line, and the memory then."""
    began = time.monotonic()
    command = [str(Path(sys.executable).parent / "enroll"), "serve", "--home", str(home.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("enroll: ready"), "it did not start: enroll serve tells why"
        seconds = time.monotonic() - began
        memory = psutil.Process(process.pid).memory_info().rss / 1e6
        process.terminate()
    say("enroll serve: ready", f"{seconds:.2f} s, {memory:.0f} MB resident")
