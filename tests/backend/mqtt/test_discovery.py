"""What Home Assistant is told, and whether its templates find what is published."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from ballast.mqtt import payloads
from ballast.mqtt.command import parse_command
from ballast.mqtt.discovery import MIB, SENSORS, Discovery
from ballast.mqtt.topics import Topics
from support.balloon_control import FakeBalloonControl, FakeStats

DISCOVERY = Discovery(Topics("ballast", "node1"), "homeassistant", 256 * MIB, "1.2.3")
GIB = 1024 * MIB


def entities(ram_bytes: int | None = 4 * GIB) -> dict[str, Any]:
    document: Any = DISCOVERY.document("web", ram_bytes)
    components = document["components"]
    assert isinstance(components, dict)
    return components


def render(template: str, **variables: object) -> str:
    return jinja2.Environment(autoescape=True).from_string(template).render(**variables)


def test_a_document_is_one_device_with_its_availability() -> None:
    document: Any = DISCOVERY.document("web", 4 * GIB)
    assert DISCOVERY.topic("web") == "homeassistant/device/ballast_node1_web/config"
    assert document["device"]["identifiers"] == ["ballast_node1_web"]
    assert document["origin"]["name"] == "ballast"
    assert [each["topic"] for each in document["availability"]] == [
        "ballast/node1/availability",
        "ballast/node1/web/availability",
    ]
    assert document["availability_mode"] == "all"


def test_every_entity_has_a_platform_and_an_identifier_of_its_own() -> None:
    found = entities()
    assert set(found) == {each.key for each in SENSORS} | {"problem", "target"}
    assert all(each["platform"] for each in found.values())
    identifiers = {each["unique_id"] for each in found.values()}
    assert len(identifiers) == len(found)
    other: Any = DISCOVERY.document("web2", GIB)
    assert not identifiers & {each["unique_id"] for each in other["components"].values()}


def test_a_machine_whose_size_is_unknown_has_no_slider() -> None:
    assert "target" not in entities(None)
    assert "target" not in entities(4096)


@pytest.mark.parametrize(
    ("ram_bytes", "minimum", "maximum"), [(4 * GIB, 256, 4096), (128 * MIB, 127, 128)]
)
def test_the_slider_reaches_from_the_minimum_to_all(
    ram_bytes: int, minimum: int, maximum: int
) -> None:
    target = entities(ram_bytes)["target"]
    assert (target["min"], target["max"]) == (minimum, maximum)


def test_what_the_slider_sends_is_understood() -> None:
    target = entities()["target"]
    assert target["command_topic"] == "ballast/node1/web/target/set"
    command = render(target["command_template"], value=1536.0)
    assert parse_command(command.encode()).value == 1536 * MIB


STATUS: dict[str, object] = {
    "state": "running",
    "problem": "",
    "ledger": {"bytes": 3 * MIB},
    "host": {"allocated-bytes": 5 * MIB},
    "counters": {"discarded-bytes": 7 * MIB},
    "agent": {"state": "no-agent"},
}


def test_templates_find_their_values() -> None:
    everything = {4: 4 * MIB, 5: 5 * MIB, 6: 6 * MIB, 7: 7 * MIB}
    vm = FakeBalloonControl(name="web", guest_stats=FakeStats(everything, 1))
    state = payloads.state(vm, STATUS)
    stats = payloads.stats(vm, STATUS, 2.0, "")
    values = {}
    for key, entity in entities().items():
        value = stats if entity["state_topic"].endswith("/stats") else state
        values[key] = render(entity["value_template"], value_json=value)
    assert values == {
        "actual": "2048.0",
        "ram": "2048.0",
        "ledger": "3.0",
        "state": "running",
        "agent": "no-agent",
        "host": "5.0",
        "free": "4.0",
        "total": "5.0",
        "available": "6.0",
        "caches": "7.0",
        "discarded": "7.0",
        "problem": "OFF",
        "target": "2048",
    }


def test_templates_show_the_unknown_as_unknown() -> None:
    vm = FakeBalloonControl(name="web", ram_bytes=None, actual_bytes=None)
    state, stats = payloads.state(vm, {}), payloads.stats(vm, {}, 2.0, "no")
    for key, entity in entities().items():
        value = stats if entity["state_topic"].endswith("/stats") else state
        expected = "OFF" if key == "problem" else "None"
        assert render(entity["value_template"], value_json=value) == expected, key


def test_a_problem_is_shown() -> None:
    problem = entities()["problem"]
    assert render(problem["value_template"], value_json={"problem": "no memory"}) == "ON"
