"""Where the brokers are."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.config_client import CONFIG_PATH, known_brokers, parse_config, save_brokers
from device_agent.renewal_client import CONFIRM_PATH
from device_agent.store import PosixDisk
from fleet import est
from fleet.config import Address
from fleet.errors import InvalidInput
from fleet.layout import AgentHome


def test_the_path_is_the_services() -> None:
    """`run` may not load fleet.est, so the path stands twice: they would drift apart."""
    assert est.CONFIG == CONFIG_PATH
    assert est.CONFIRM == CONFIRM_PATH


def test_brokers_are_read_with_their_ports() -> None:
    """The agent would connect elsewhere."""
    body = json.dumps({"v": 1, "brokers": ["mqtts://a.local", "mqtts://[::1]:1883", "mqtts://10.0.0.1:8884/"], "x": 1})
    assert (Address("a.local", 8883), Address("::1", 1883), Address("10.0.0.1", 8884)) == parse_config(body.encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"v": 2, "brokers": []},
        {"v": 1},
        {"v": 1, "brokers": "mqtts://a"},
        {"v": 1, "brokers": [1]},
        {"v": 1, "brokers": ["mqtt://a:1883"]},
        {"v": 1, "brokers": ["mqtts://a:99999"]},
        {"v": 1, "brokers": ["mqtts://a:0"]},
        {"v": 1, "brokers": ["mqtts://"]},
        {"v": 1, "brokers": ["mqtts://[::1"]},
        {"v": 1, "brokers": ["mqtts://a"] * 17},
    ],
)
def test_anything_else_is_refused(fields: object) -> None:
    """The agent would speak in the clear, or end with a traceback."""
    with pytest.raises(InvalidInput):
        parse_config(json.dumps(fields).encode())


_BROKERS = st.lists(
    st.builds(Address, st.sampled_from(["a.local", "10.0.0.1", "::1"]), st.integers(1, 65_535)), min_size=1, max_size=4
)


@given(_BROKERS)
def test_what_is_remembered_is_what_was_answered(brokers: list[Address]) -> None:
    """After a restart the agent would look for its broker elsewhere."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        home = AgentHome(Path(folder))
        save_brokers(PosixDisk(), home, tuple(brokers))
        assert tuple(brokers) == known_brokers(home)


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    """A device would stay offline for a file that it can ask for again."""
    home = AgentHome(tmp_path)
    assert () == known_brokers(home)
    (tmp_path / "config.json").write_bytes(b"{")
    assert () == known_brokers(home)
