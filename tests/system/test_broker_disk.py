"""A full disk under the broker: a small file system of its own, really full."""

from __future__ import annotations

from pathlib import Path

from fleet.layout import AdminHome
from tests import mqtt
from tests.fleets import new_home
from tests.processes import run
from tests.system.brokers import connected_once, enrol, operator, peer, start_broker, wait_ready
from tests.system.test_enrolment_disk import fill
from tests.system.test_enrolment_disk import small_disk as small_disk  # noqa: PLC0414 - a fixture

UP = "devices/pump-07/up/x"


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """A device would drop what the broker could not keep; or the broker would end, and take every device with it."""
    made = new_home(tmp_path / "fleet")
    device = enrol(made, "pump-07")
    connected_once(made)
    run("cp", "-a", made.path, small_disk / "fleet").check()
    home = AdminHome(small_disk / "fleet")
    with start_broker(home) as broker:
        port = wait_ready(broker)
        with peer(home, operator(home), port) as reader:
            assert mqtt.ACCEPTED == reader.ask(mqtt.connect("admin", clean=False))
            assert mqtt.suback(1) == reader.ask(mqtt.subscribe((UP, 1)))
        with peer(home, device, port) as pump:
            assert mqtt.ACCEPTED == pump.ask(mqtt.connect("pump-07", clean=False))
            filler = fill(small_disk)
            acknowledged = 0
            while "store.failed" not in broker.stderr:  # the journal has some room left that was freed inside it
                pump.send(mqtt.publish(UP, bytes(20_000), 1, acknowledged + 1), mqtt.PINGREQ)
                answers = [pump.receive()]
                if answers == [mqtt.puback(acknowledged + 1)]:
                    acknowledged += 1
                    answers.append(pump.receive())
                assert mqtt.PINGRESP == answers[-1]
            assert "disk is full" in broker.wait_for_line("store.failed.*", stream="stderr").group()
            pump.sync()
            filler.unlink()
            assert mqtt.puback(acknowledged + 1) == pump.receive()
        broker.wait_for_line("store.recovered", stream="stderr")
        with peer(home, operator(home), port) as reader:
            assert mqtt.ACCEPTED_PRESENT == reader.ask(mqtt.connect("admin", clean=False))
            frames = [reader.receive() for _ in range(acknowledged + 1)]
            assert [mqtt.publish(UP, bytes(20_000), 1, n + 1) for n in range(acknowledged + 1)] == frames
        assert "Traceback" not in broker.stderr
    assert 0 == broker.returncode
