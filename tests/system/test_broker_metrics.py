"""What the broker tells of itself: every figure moves when what it counts happens, and none names a device."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.engines.amqtt.engine import IS_COMPILED
from broker.figures import BY_REASON, FIGURES, TOPIC_PREFIX
from fleet.layout import AdminHome, IdentityFiles
from tests import mqtt
from tests.fleets import new_home
from tests.mqtt import Peer
from tests.processes import run
from tests.system.brokers import (
    connected_once,
    enrol,
    mosquitto,
    operator,
    peer,
    revoke,
    start_broker,
    start_service,
    wait_ready,
)
from tests.system.metrics import PREFIX, Samples, Scraper, families, fetch

DISTINCTIVE = "zebra-quokka-77"
DEVICES = ("pump-07", "pump-08", "pump-09", "gone", DISTINCTIVE)
LIMITS = """
[broker.limits]
messages_per_second = 40
burst_seconds = 1
queued_messages_per_session = 10
inflight_per_session = 5
"""
STATUS = "devices/pump-07/up/status"
DOWN = "devices/pump-08/down/state"


@dataclass(frozen=True, slots=True)
class Scene:
    """A running broker and everyone's files."""

    home: AdminHome
    port: int
    scraper: Scraper
    files: dict[str, IdentityFiles]
    log: Callable[[], str]

    def peer(self, who: str) -> Peer:
        return peer(self.home, self.files[who], self.port)

    def join(self, who: str, frame: bytes | None = None) -> Peer:
        """A connection that was let in, in a clean session or a new one."""
        joined = self.peer(who)
        assert mqtt.ACCEPTED == joined.ask(frame or mqtt.connect(who))
        return joined


@pytest.fixture(scope="module")
def known_home(tmp_path_factory: pytest.TempPathFactory) -> AdminHome:
    """A home whose broker knows the devices, with narrow limits. Read only."""
    home = new_home(tmp_path_factory.mktemp("known") / "fleet")
    for device in DEVICES:
        enrol(home, device)
    revoke(home, "gone")
    home.config.write_text(home.config.read_text() + LIMITS)
    connected_once(home)
    return home


@pytest.fixture(scope="module")
def scene(known_home: AdminHome) -> Iterator[Scene]:
    """One broker for all tests that only look at what has changed; the service is away."""
    with start_broker(known_home, "--metrics", "127.0.0.1:0") as broker:
        url = broker.wait_for_line(r"broker: metrics (\S+)").group(1)
        folder = known_home.path / "test-devices"
        files = {device: IdentityFiles(folder / device / "cert.pem", folder / device / "key.pem") for device in DEVICES}
        files["admin"] = operator(known_home)
        yield Scene(known_home, wait_ready(broker), Scraper(url), files, lambda: broker.stderr)


def connects(scene: Scene) -> None:
    scene.join("pump-07").socket.close()


def publishes(scene: Scene) -> None:
    with scene.join("pump-07") as pump:
        pump.ask(mqtt.publish(STATUS, b"1", 1))


def is_told(scene: Scene) -> None:
    with scene.join("admin") as admin:
        admin.ask(mqtt.subscribe((STATUS, 0)))
        publishes(scene)
        assert admin.receive().endswith(b"1")


def publishes_elsewhere(scene: Scene) -> None:
    with scene.join("pump-07") as pump:
        pump.send(mqtt.publish("devices/valve-1/up/x"))
        pump.sync()


def publishes_elsewhere_for_sure(scene: Scene) -> None:
    with scene.join("pump-07") as pump:
        pump.send(mqtt.publish("devices/valve-1/up/x", b"", 1))
        assert pump.is_closed()


def sends_too_fast(scene: Scene) -> None:
    with scene.join("pump-09") as pump:
        pump.send(mqtt.publish("devices/pump-09/up/x") * 60)
        pump.sync()


def is_flooded_while_away(scene: Scene) -> None:
    with scene.peer("pump-08") as pump:
        pump.ask(mqtt.connect("pump-08", clean=False))
        pump.ask(mqtt.subscribe((DOWN, 1)))
    with scene.join("admin") as admin:
        for number in range(1, 31):
            admin.ask(mqtt.publish(DOWN, b"x" * 100, 1, number))
    with scene.join("pump-08") as pump:  # a clean session: what waited is gone
        pump.sync()


def shows_no_certificate(scene: Scene) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(scene.home.root.certificate)
    with suppress(OSError), Peer(("127.0.0.1", scene.port), context) as stranger:
        stranger.is_closed()


def is_answered(frame: bytes, who: str = "pump-07") -> Callable[[Scene], None]:
    def cause(scene: Scene) -> None:
        with scene.peer(who) as pump, suppress(ConnectionError):
            pump.send(frame)
            pump.receive()

    return cause


def connects_twice(scene: Scene) -> None:
    with scene.join("pump-07") as first, scene.join("pump-07"):
        assert first.is_closed()


def breaks_the_protocol(scene: Scene) -> None:
    with scene.join("pump-07") as pump:
        pump.send(mqtt.connect("pump-07"))
        assert pump.is_closed()


def falls_silent(scene: Scene) -> None:
    with scene.join("pump-07", mqtt.connect("pump-07", keep_alive=1)) as pump:
        assert pump.is_closed()


def says_goodbye(scene: Scene) -> None:
    with scene.join("pump-07") as pump:
        pump.send(mqtt.DISCONNECT)
        assert pump.is_closed()


CAUSES: list[tuple[Callable[[Scene], None], str, int]] = [
    (connects, "connections_accepted_total", 1),
    (publishes, "messages_received_total", 1),
    (publishes, "packets_received_total", 2),
    (publishes, "packets_sent_total", 2),
    (publishes, "received_bytes_total", len(mqtt.connect("pump-07") + mqtt.publish(STATUS, b"1", 1))),
    (publishes, "sent_bytes_total", 8),
    (is_told, "messages_sent_total", 1),
    (publishes_elsewhere, "denied_total", 1),
    (publishes_elsewhere_for_sure, "connections_ended_total{publish-denied}", 1),
    (sends_too_fast, "slowed_total", 1),
    (is_flooded_while_away, "messages_dropped_total", 20),
    (shows_no_certificate, "connections_refused_total{handshake}", 1),
    (is_answered(mqtt.connect("pump-07", level=5)), "connections_refused_total{wrong-protocol-version}", 1),
    (is_answered(mqtt.connect("pump-08")), "connections_refused_total{foreign-client-id}", 1),
    (is_answered(mqtt.connect("")), "connections_accepted_total", 1),
    (is_answered(mqtt.PINGREQ), "connections_refused_total{protocol-violation}", 1),
    (
        is_answered(mqtt.connect("pump-07", will=("devices/valve-1/up/x", b"", 0, False))),
        "connections_refused_total{will-denied}",
        1,
    ),
    (is_answered(mqtt.connect("gone"), "gone"), "connections_refused_total{not-in-directory}", 1),
    (connects_twice, "connections_ended_total{taken-over}", 1),
    (breaks_the_protocol, "connections_ended_total{protocol-violation}", 1),
    (falls_silent, "connections_ended_total{keepalive}", 1),
    (says_goodbye, "connections_ended_total{disconnected}", 1),
    (connects, "connections_ended_total{connection-lost}", 1),
]


@pytest.mark.parametrize(("cause", "metric", "count"), CAUSES)
def test_what_happens_is_counted_once(scene: Scene, cause: Callable[[Scene], None], metric: str, count: int) -> None:
    """An operator would look for the trouble where it is not."""
    before = scene.scraper.wait(lambda samples: samples["connections"] == 0)
    cause(scene)
    after = scene.scraper.wait(lambda samples: samples["connections"] == 0 and samples[metric] > before[metric])
    assert count == after[metric] - before[metric]


def test_what_is_there_is_told(scene: Scene) -> None:
    """A queue would grow, or sessions pile up, with nobody to see it."""
    before = scene.scraper.wait(lambda samples: samples["connections"] == 0)
    with (
        socket.create_connection(("127.0.0.1", scene.port)),
        scene.peer("pump-08") as pump,
        scene.join("admin") as admin,
    ):
        pump.ask(mqtt.connect("pump-08", clean=False))
        pump.ask(mqtt.subscribe((DOWN, 1)))
        admin.ask(mqtt.publish("fleet/notices/x", b"12345", 1, retain=True))
        for number in range(1, 9):
            admin.ask(mqtt.publish(DOWN, b"12345", 1, number))
        now = scene.scraper.scrape()
        changed = {name: now[name] - before[name] for name in before if not name.endswith("_total")}
        assert (2, 1, 1) == (now["connections"], now["connections_pending"], changed["subscriptions"])
        assert (5, 3, 3) == tuple(now[n] for n in ("inflight_messages", "queued_messages", "queue_deepest_messages"))
        assert now["queued_bytes"] == 3 * len(mqtt.publish(DOWN, b"12345", 1))
        assert (1, len(mqtt.publish("fleet/notices/x", b"12345", 1))) == (
            changed["retained_messages"],
            changed["retained_bytes"],
        )
        admin.ask(mqtt.publish("fleet/notices/x", b"", 1, retain=True))
    absent = scene.scraper.wait(lambda samples: samples["connections"] == 0)
    assert (1, 1) == (absent["sessions"] - before["sessions"], absent["sessions_absent"])
    connects(scene)
    with scene.join("pump-08", mqtt.connect("pump-08")):
        scene.scraper.wait(lambda samples: samples["sessions_absent"] == 0)


def test_the_event_loop_is_measured(scene: Scene) -> None:
    """A broker that is late to everything would look well."""
    first = scene.scraper.scrape()["event_loop_delay_seconds_count"]
    now = scene.scraper.wait(lambda samples: samples["event_loop_delay_seconds_count"] >= first + 2)
    assert now["event_loop_delay_seconds_count"] == now["event_loop_delay_seconds_bucket{+Inf}"]
    assert 0 <= now["event_loop_delay_max_seconds"] < 60


def test_the_directory_grows_older_until_the_service_is_heard(known_home: AdminHome, tmp_path: Path) -> None:
    """Revocations would not arrive, and nobody would know until operators are locked out."""
    run("cp", "-a", known_home.path, tmp_path / "fleet").check()
    home = AdminHome(tmp_path / "fleet")
    with start_broker(home, "--metrics", "127.0.0.1:0") as broker:
        scraper = Scraper(broker.wait_for_line(r"broker: metrics (\S+)").group(1))
        wait_ready(broker)
        old = scraper.wait(lambda samples: samples["directory_age_seconds"] > 0.5)
        with start_service(home) as enroll:
            wait_ready(enroll)
            enrol(home, "pump-10")
            young = scraper.wait(lambda samples: samples["directory_age_seconds"] < old["directory_age_seconds"])
            newer = scraper.wait(lambda s: s["directory_principals"] == old["directory_principals"] + 1)
        assert newer["directory_sequence"] > old["directory_sequence"]
    assert young["start_time_seconds"] == old["start_time_seconds"]


def everything_happens_to(scene: Scene, who: str) -> None:
    """As much as one device can bring about."""
    with scene.join(who, mqtt.connect(who, will=(f"devices/{who}/up/status", b"gone", 1, True))) as first:
        first.ask(mqtt.subscribe((f"devices/{who}/down/#", 1), (f"devices/{who}-x/#", 1)))
        first.send(mqtt.publish(f"devices/{who}/up/{who}", who.encode()), mqtt.publish(f"devices/x/up/{who}"))
        first.sync()
    with scene.peer(who) as foreign:
        foreign.ask(mqtt.connect(f"{who}-y"))


def test_no_figure_names_a_device(scene: Scene) -> None:
    """Whoever may see how the broker does would see who is in the fleet, and each id would cost a time series."""
    everything_happens_to(scene, DISTINCTIVE)
    serial = re.search(rf"client={DISTINCTIVE} .*serial=(\w+)", scene.log())
    assert serial
    with scene.join("admin") as admin:
        text = fetch(scene.scraper.url)
        told = system_topics(admin)
    for forbidden in (DISTINCTIVE, "zebra", serial.group(1), "pump", "127.0.0.1"):
        assert forbidden not in text
        assert not [line for line in told.items() if forbidden in "".join(line)]
    labels = {name for family in families(text).values() for sample in family.samples for name in sample.labels}
    assert {"reason", "le", "version"} == labels


def test_names_and_units_are_as_prometheus_wants_them(scene: Scene) -> None:
    """Its rules, its linters and other people's dashboards would not understand them."""
    for family in families(fetch(scene.scraper.url)).values():
        assert re.fullmatch(rf"(?:{PREFIX}|process_)[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name


# $SYS


def system_topics(client: Peer) -> dict[str, str]:
    """What a new subscription to all of `$SYS/broker/` finds."""
    client.send(mqtt.subscribe(("$SYS/broker/#", 0)), mqtt.PINGREQ)
    assert mqtt.suback(0) == client.receive()
    found: dict[str, str] = {}
    while (frame := client.receive()) != mqtt.PINGRESP:
        assert 0x31 == frame[0]  # QoS 0, retained
        begin = 4 if frame[1] < 128 else 5
        length = int.from_bytes(frame[begin - 2 : begin], "big")
        found[frame[begin : begin + length].decode()] = frame[begin + length :].decode()
    return found


def system_topics_when(scene: Scene, is_it: Callable[[dict[str, str]], bool]) -> dict[str, str]:
    """What a subscription finds, once that is true of it: it may find what is up to a second old."""
    found: dict[str, str] = {}

    def has_come(_: Samples) -> bool:
        with scene.join("admin") as admin:
            found.update(system_topics(admin))
        return is_it(found)

    scene.scraper.wait(has_come)
    return found


def test_an_operator_reads_the_counters_at_once(scene: Scene) -> None:
    """`mosquitto_sub -t '$SYS/broker/#'` is what an operator types first."""
    publishes(scene)
    received = int(scene.scraper.scrape()["messages_received_total"])
    told = system_topics_when(scene, lambda told: told["$SYS/broker/publish/messages/received"] == str(received))
    wanted = {TOPIC_PREFIX + figure.topic for figure in FIGURES if figure.topic}
    plain = {topic for topic in told if not topic.startswith(tuple(TOPIC_PREFIX + f.topic for f in BY_REASON))}
    assert wanted | {TOPIC_PREFIX + "version", TOPIC_PREFIX + "uptime"} == plain
    assert "1" == told["$SYS/broker/clients/connected"]
    assert re.fullmatch(r"\d+ seconds", told["$SYS/broker/uptime"])


def test_refusals_are_told_by_reason(scene: Scene) -> None:
    """An operator would know that somebody is refused, and not why."""
    is_answered(mqtt.connect("pump-08"))(scene)
    refused = int(scene.scraper.scrape()["connections_refused_total{foreign-client-id}"])
    topic = "$SYS/broker/clients/refused/foreign-client-id"
    assert str(refused) == system_topics_when(scene, lambda told: told.get(topic) == str(refused))[topic]


def test_mosquitto_sub_shows_them(scene: Scene) -> None:
    """The documented command would show nothing."""
    shown = mosquitto(
        "mosquitto_sub", scene.home, scene.files["admin"], scene.port, "admin", "-t", "$SYS/broker/version", "-C", 1
    )
    assert f"mqtt-fleet 0.1.0{'+compiled' if IS_COMPILED else ''}\n" == shown.check().stdout


@pytest.mark.parametrize("topic_filter", ["$SYS/#", "$SYS/broker/uptime", "#", "+/broker/uptime"])
def test_a_device_reads_none_of_them(scene: Scene, topic_filter: str) -> None:
    """It would see how many others there are, and when the broker is weak."""
    with scene.join("pump-07") as pump:
        assert mqtt.suback(0x80) == pump.ask(mqtt.subscribe((topic_filter, 0)))
        pump.sync()


# docs/operations.md

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def documented() -> tuple[set[str], set[str]]:
    """The metrics and the topics in the table of docs/operations.md."""
    section = OPERATIONS.read_text(encoding="utf-8").partition("| metric | topic | what |\n")[2].partition("\n\n")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:3]] for line in section.splitlines()[1:]]
    return {metric for metric, _ in rows if metric}, {topic for _, topic in rows if topic}


def test_the_documented_metrics_are_those_that_are_served(scene: Scene) -> None:
    """An alert that was written from the documentation would never fire."""
    served = set()
    for name, family in families(fetch(scene.scraper.url)).items():
        if name.startswith(PREFIX):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            suffix = ("_total" if family.type == "counter" else "") + (f"{{{','.join(labels)}}}" if labels else "")
            served.add(name.removeprefix(PREFIX) + suffix)
    assert served == documented()[0]


def test_the_documented_topics_are_those_that_are_published(scene: Scene) -> None:
    """An operator would wait for a topic that never comes."""
    is_answered(mqtt.connect("pump-08"))(scene)  # a refusal, so that there is one with a reason
    is_any = re.compile("|".join(f.topic + "/[a-z-]+" for f in BY_REASON))
    told = system_topics_when(scene, lambda found: any("/refused/" in topic for topic in found))
    plain = {topic.removeprefix(TOPIC_PREFIX) for topic in told}
    reasons = {re.sub("/[a-z-]+$", "/REASON", topic) for topic in plain if is_any.fullmatch(topic)}
    assert {topic for topic in plain if not is_any.fullmatch(topic)} | reasons == documented()[1]


def test_the_documented_rules_name_metrics_that_are_served(scene: Scene) -> None:
    """An alert would be silent for ever."""
    text = OPERATIONS.read_text(encoding="utf-8")
    used = set(re.findall(rf"expr: .*?({PREFIX}\w+)", text))
    assert 3 == len(used)
    assert used <= {PREFIX + name for name in scene.scraper.scrape()}
