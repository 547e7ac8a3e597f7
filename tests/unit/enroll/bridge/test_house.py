"""What Home Assistant is told of the fleet."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from enroll.bridge import house as house_module
from enroll.bridge.entities import MAX_FIELD_CHARS, MAX_FIELDS, Kind, safe_key, values
from enroll.bridge.house import MAX_ENTITIES, House, Layout, Publication
from enroll.bridge.units import parse_told
from enroll.export.readings import Reading
from fleet import topics
from fleet.errors import InvalidInput
from fleet.identity import DeviceId
from fleet.messages import Envelope, Presence, StatusMessage
from tests.fleets import NOW
from tests.unit.enroll.bridge.home_assistant import DISCOVERY, TOPIC_LEVELS

PUMP, VALVE = DeviceId("pump-07"), DeviceId("valve-1")
CONFIG = "homeassistant/device/mqtt-fleet/pump-07/config"
BELOW = "homeassistant/mqtt-fleet/devices/pump-07"
DATA = {"temperature_celsius": 21.5, "pumps": [{"on": True}], "l1": 3, "mode": "auto", "none": None}


def new_house(**units: str) -> House:
    return House(Layout(), parse_told([f"{name.replace('__', '.')}={unit}" for name, unit in units.items()]), "0.1.0")


def hear(house: House, data: Any, device: DeviceId = PUMP, stream: str = "load") -> list[Publication]:
    return house.hear(Reading(device, stream, NOW, data=data), values(stream, data))


def says(house: House, presence: Presence, agent: str = "0.1.0", device: DeviceId = PUMP) -> list[Publication]:
    return house.presence(device, StatusMessage(Envelope(device, NOW, "b", 1), presence, "", agent))


def shown(publications: list[Publication]) -> dict[str, str]:
    return {each.topic: each.payload.decode() for each in publications}


def config_in(publications: list[Publication]) -> dict[str, Any]:
    (found,) = [each.payload for each in publications if each.topic.endswith("/config")]
    config: dict[str, Any] = json.loads(found)
    return config


def test_numbers_are_sensors_and_switches_binary_ones() -> None:
    """A temperature would be missing in the house, have no unit, or a text be taken for a number."""
    found = hear(new_house(load__l1="A"), DATA)
    config = config_in(found)
    Draft202012Validator(DISCOVERY).validate(config)
    assert {
        "load:temperature_celsius:sensor": ("sensor", "°C", "temperature"),
        "load:l1:sensor": ("sensor", "A", None),
        "load:pumps.0.on:binary_sensor": ("binary_sensor", None, None),
    } == {
        name: (each["platform"], each.get("unit_of_measurement"), each.get("device_class"))
        for name, each in config["components"].items()
    }
    states = {topic.removeprefix(BELOW): text for topic, text in shown(found).items() if topic != CONFIG}
    assert {
        "/availability": "online",
        "/load/temperature_celsius/sensor": "21.5",
        "/load/l1/sensor": "3",
        "/load/pumps.0.on/binary_sensor": "ON",
    } == states
    topics_of_states = {each["state_topic"] for each in config["components"].values()}
    assert topics_of_states == {each.topic for each in found[2:]}


def test_only_what_has_changed_is_published() -> None:
    """Ten thousand devices would have Home Assistant read the same again and again."""
    house = new_house()
    hear(house, {"a": 1, "b": True})
    assert [] == hear(house, {"a": 1, "b": True})
    assert {f"{BELOW}/load/b/binary_sensor": "OFF"} == shown(hear(house, {"a": 1, "b": False}))
    later = hear(house, {"c": 1})
    assert {"load:a:sensor", "load:b:binary_sensor", "load:c:sensor"} == config_in(later)["components"].keys()


def test_whoever_is_offline_is_not_available() -> None:
    """The last temperature of a device that burned down would stand for ever."""
    house = new_house()
    assert [] == says(house, Presence.OFFLINE)  # it has measured nothing that could be shown
    assert "offline" == shown(hear(house, {"a": 1}))[f"{BELOW}/availability"]
    assert {f"{BELOW}/availability": "online"} == shown(says(house, Presence.ONLINE))
    assert [] == says(house, Presence.ONLINE)
    updated = says(house, Presence.ONLINE, "0.2.0")
    assert "0.2.0" == config_in(updated)["device"]["sw_version"]
    assert {f"{BELOW}/availability", "homeassistant/mqtt-fleet/bridge/availability"} == {
        each["topic"] for each in config_in(updated)["availability"]
    }


def test_whoever_is_removed_leaves_nothing_behind() -> None:
    """A revoked device would be shown for ever, and retained messages stay in a broker for good."""
    house = new_house()
    published = {each.topic for each in hear(house, DATA)}
    removed = house.remove(PUMP)
    assert published == {each.topic for each in removed}
    assert {b""} == {each.payload for each in removed}
    assert CONFIG == removed[-1].topic  # or the next run would not know that something is left
    assert [] == list(house.everything())


def test_a_broker_that_lost_all_is_told_all() -> None:
    """Home Assistant would show nothing until each value changes."""
    house = new_house()
    said = shown(hear(house, DATA)) | shown(hear(house, {"a": 1}, VALVE)) | shown(says(house, Presence.OFFLINE))
    said |= shown(hear(house, {"later": 1}))
    assert said == shown(list(house.everything()))


def test_a_restart_takes_nothing_away() -> None:
    """An entity that is left out until it is heard again would vanish from dashboards, or lose its history."""
    before = new_house()
    first, second = hear(before, DATA), hear(before, {"x": 1}, stream="rare")
    after = new_house()
    after.recall(CONFIG, second[0].payload)
    assert [PUMP] == after.devices
    assert config_in(second)["components"].keys() == config_in(list(after.everything()))["components"].keys()
    again = hear(after, DATA)
    assert config_in(first)["components"].keys() <= config_in(list(after.everything()))["components"].keys()
    assert {each.topic for each in first} - {CONFIG, f"{BELOW}/availability"} <= {each.topic for each in again}
    assert {each.topic for each in (*first, *second)} == {each.topic for each in after.remove(PUMP)}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"[]",
        b'{"components": []}',
        b'{"components": {"a/b:c:sensor": {}, "a:b:light": {}, "a:b": {}, "a:b:c:d": {}, "a:b:sensor": 5}}',
        b'{"components": {"a:b+:sensor": {"state_topic": "homeassistant/status"}}}',
    ],
)
def test_what_others_put_there_is_not_believed(payload: bytes) -> None:
    """Another client of that broker could have the bridge publish where it likes, or end it."""
    house = new_house()
    house.recall(CONFIG, payload)
    house.recall("homeassistant/device/mqtt-fleet/../config", payload)
    house.recall("homeassistant/device/other/pump-07/config", payload)
    assert [] == list(house.everything())


def test_a_kept_component_gives_its_name_alone() -> None:
    """A template that somebody else has retained would be published by the bridge."""
    house = new_house()
    kept = {"platform": "button", "name": "load {{ states }}", "value_template": "{{ 1 }}", "state_topic": "other"}
    house.recall(CONFIG, json.dumps({"components": {"load:a:sensor": kept}}).encode())
    config = config_in(list(house.everything()))
    Draft202012Validator(DISCOVERY).validate(config)
    assert f"{BELOW}/load/a/sensor" == config["components"]["load:a:sensor"]["state_topic"]
    assert "{{" not in json.dumps(config)


HOSTILE = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ("../valve-1", "a/config", "+", "#", "", ".", "{{ states('x') }}", "{% raw %}", "config", "a:b", "\x00", "ON\n")
    ),
)
HOSTILE_DATA = st.dictionaries(
    HOSTILE, st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | HOSTILE, max_size=6
)


@given(HOSTILE_DATA, st.sampled_from(("load", "config", "availability")), st.text(max_size=100))
def test_no_device_can_publish_beyond_its_own_topics(data: dict[str, Any], stream: str, agent: str) -> None:
    """A hostile device would show itself as another, set its values, or run a template in somebody's house."""
    house = new_house()
    published = [*hear(house, data, stream=stream), *says(house, Presence.ONLINE, agent), *house.remove(PUMP)]
    for each in published:
        assert topics.is_topic_name(each.topic)
        if each.topic != CONFIG:
            assert each.topic.startswith(f"{BELOW}/")
            assert not each.topic.endswith("/config")
            assert re.fullmatch(r"|online|offline|ON|OFF|-?[0-9.]+(e[+-][0-9]+)?", each.payload.decode())
        elif each.payload:
            Draft202012Validator(DISCOVERY).validate(config := json.loads(each.payload))
            assert not re.search(r"\{\{|\{%", each.payload.decode())
            assert all(shown["name"].isprintable() for shown in config["components"].values())
    assert re.fullmatch(TOPIC_LEVELS, CONFIG.removeprefix("homeassistant/"))


@given(HOSTILE, HOSTILE)
def test_different_fields_have_different_keys(one: str, other: str) -> None:
    """Two measurements would be shown as one, changing between them."""
    assert (one == other) == (safe_key(one) == safe_key(other))
    assert safe_key(safe_key(one)) != safe_key(one) or safe_key(one) == one
    assert topics.check_name(safe_key(one))


def test_a_device_may_have_so_many_entities_and_a_fleet_so_many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One device that makes up names would fill Home Assistant's database and this host's memory."""
    house = new_house()
    for start in range(0, MAX_ENTITIES + 64, 64):
        hear(house, {f"n{number}": 1 for number in range(start, start + 64)})
    assert MAX_ENTITIES == len(config_in(list(house.everything()))["components"])
    assert 64 == house.ignored
    monkeypatch.setattr(house_module, "MAX_DEVICES", 1)
    assert [] == hear(house, {"a": 1}, VALVE)
    assert 64 == len(values("load", {f"n{number}": 1 for number in range(100)}))


def test_of_a_message_so_much_is_looked_at() -> None:
    """A name of 65,000 characters over 30,000 values keeps the bridge from all other devices for half a minute."""
    assert [] == values("load", {"a" * (MAX_FIELD_CHARS + 1): [0] * 30_000})
    shown = values("load", {"a": list(range(30_000))})
    assert [f"a.{number}" for number in range(MAX_FIELDS)] == [each.field for each in shown]


def test_one_field_may_be_a_number_and_a_switch() -> None:
    """Firmware that changes its mind would have `true` shown as a number."""
    found = hear(new_house(), {"a": 1})[0].payload, hear(new_house(), {"a": True})[0].payload
    assert found[0] != found[1]
    assert [Kind.NUMBER, Kind.SWITCHED] == [values("s", {"a": each})[0].entity.kind for each in (1, True)]


@pytest.mark.parametrize("prefix", ["", "a//b", "/a", "a/", "$SYS", "a/+", "#"])
def test_a_prefix_is_a_topic(prefix: str) -> None:
    """The bridge would start, and show nothing."""
    with pytest.raises(InvalidInput):
        Layout(prefix)
    with pytest.raises(InvalidInput):
        Layout(name=f"a{prefix}/b")


@pytest.mark.parametrize("text", ["l1=A", "load.l1", "load.l1=", "=A", f"load.l1={'x' * 17}", "load.l1=\n"])
def test_a_unit_is_told_of_a_field_of_a_stream(text: str) -> None:
    """A typing error would be a unit of nothing."""
    with pytest.raises(InvalidInput):
        parse_told([text])
