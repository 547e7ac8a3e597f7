"""The option of docs/adr/0010: a wheel with the broker's message path as machine code, and a broker from it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import mqtt
from tests.deadlines import within
from tests.fleets import new_home
from tests.processes import Program
from tests.system.brokers import enrol, mosquitto, operator, peer, start_service, wait_ready

ROOT = Path(__file__).resolve().parents[2]
TOPIC = "devices/pump-07/up/telemetry/climate"
_BUILD_SECONDS = 600  # fifteen of a CPU, which may have other things to do


@pytest.mark.timeout(within(_BUILD_SECONDS + 60))
def test_the_broker_of_a_compiled_wheel_is_compiled_and_carries_messages(tmp_path: Path) -> None:
    """Whoever set FLEET_COMPILE would run the interpreted broker, or one that does not come up."""
    wheel = build(tmp_path / "dist")
    assert not wheel.name.endswith("-none-any.whl")
    code = tmp_path / "code"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(code)
    home = new_home(tmp_path / "fleet")
    pump, admin = enrol(home, "pump-07"), operator(home)
    serve = ("serve", "--home", home.path, "--listen", "127.0.0.1:0")
    with start_service(home) as enroll, Program("broker", *serve, env={"PYTHONPATH": str(code)}) as broker:
        wait_ready(enroll)
        port = wait_ready(broker)
        version = mosquitto("mosquitto_sub", home, admin, port, "admin:v", "-t", "$SYS/broker/version", "-C", 1)
        assert "mqtt-fleet 0.1.0+compiled\n" == version.check().stdout
        with peer(home, admin, port) as reader, peer(home, pump, port) as writer:
            assert mqtt.ACCEPTED == reader.ask(mqtt.connect("admin"))
            assert mqtt.suback(1) == reader.ask(mqtt.subscribe((TOPIC, 1)))
            assert mqtt.ACCEPTED == writer.ask(mqtt.connect("pump-07"))
            assert mqtt.puback(7) == writer.ask(mqtt.publish(TOPIC, b"21.5", 1, 7))
            assert mqtt.publish(TOPIC, b"21.5", 1, 1) == reader.receive()
    assert 0 == broker.returncode


def build(directory: Path) -> Path:
    """The wheel that FLEET_COMPILE=1 asks for, built with what is installed here; not optimised: that takes longest."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    ended = subprocess.run(
        command,
        env={**os.environ, "FLEET_COMPILE": "1", "FLEET_COMPILE_LEVEL": "0"},
        capture_output=True,
        text=True,
        timeout=within(_BUILD_SECONDS),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (built,) = directory.glob("*.whl")
    return built
