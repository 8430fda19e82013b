"""`docs/mqtt.md` says what the code does: no more, no less."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ballast.mqtt import payloads
from ballast.mqtt.bridge import Bridge
from ballast.mqtt.command import TargetCommand
from ballast.mqtt.config import HomeAssistantConfig, MqttConfig, make_config
from ballast.mqtt.discovery import SENSORS
from ballast.mqtt.topics import Topics
from ballast.policy.resize import GuestState, Outcome
from ballast.qmp.results import STATUS
from ballast.qmp.target_results import RESIZE_RESULT
from ballast_protocol.errors import OperatorError
from ballast_protocol.qmp.types import Choice
from support.balloon_control import FakeBalloonControl

DOCUMENT = (Path(__file__).parents[3] / "docs" / "mqtt.md").read_text()


def tables(heading: str) -> list[dict[str, list[str]]]:
    """Return the tables below a heading: each name in a first cell, with the other cells."""
    section = re.split(r"^#+ ", DOCUMENT.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    found: list[dict[str, list[str]]] = []
    is_inside = False
    for line in section.splitlines():
        if not line.startswith("|"):
            is_inside = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not is_inside:
            found.append({})
            is_inside = True
        elif not cells[0].startswith("-"):
            found[-1].update(dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1:]))
    return found


def keys(heading: str) -> set[str]:
    (table,) = tables(heading)
    return set(table)


def example(heading: str) -> set[str]:
    section = DOCUMENT.split(f"### {heading}\n", 1)[1]
    text = re.findall(r"```json\n(.*?)```", section, re.S)[0]
    return set(json.loads(text))


def test_topics() -> None:
    (table,) = tables("Topics")
    topics = Topics("PREFIX", "HOST")
    vm = topics.vm("VM")
    assert set(table) == {
        topics.availability,
        vm.availability,
        vm.state,
        vm.stats,
        vm.event,
        vm.command,
        vm.result,
    }


@pytest.mark.parametrize(
    ("heading", "value"),
    [
        ("State", payloads.state(FakeBalloonControl(), {})),
        ("Statistics", payloads.stats(FakeBalloonControl(), {}, 0.0, "")),
    ],
)
def test_messages(heading: str, value: dict[str, object]) -> None:
    assert keys(heading) == set(value) == example(heading)


def test_states() -> None:
    (table,) = tables("State")
    assert set(re.findall(r"`([^`]+)`", table["guest"][0])) == {each.value for each in GuestState}
    (declared,) = [each.type for each in STATUS.members if each.name == "state"]
    assert isinstance(declared, Choice)
    assert set(re.findall(r"`([^`]+)`", table["state"][0])) == set(declared.values)


def test_commands() -> None:
    assert keys("Targets") == {each.replace("_", "-") for each in TargetCommand.model_fields}


def test_results() -> None:
    documented = set(tables("Results")[0])
    failed = payloads.failure("vm", OperatorError(""))
    assert documented == {"vm", "error", *(each.name for each in RESIZE_RESULT.members)}
    assert documented >= set(failed)


def test_outcomes() -> None:
    results = {each.value for each in Outcome} | {"refused", "interrupted"}
    assert results == set(tables("Results")[1])


async def test_the_status() -> None:
    bridge = Bridge(make_config({"url": "mqtt://b"}), [], version="1")
    assert keys("While the broker is away") == set(bridge.status())


def shown_default(name: str, model: type[BaseModel]) -> str | None:
    """Return how the table should show a default; None if in words."""
    default = model.model_fields[name.replace("-", "_")].default
    if default is None or default is PydanticUndefined:
        return None
    return f"`{json.dumps(default).strip(chr(34))}`"


@pytest.mark.parametrize(
    ("heading", "model", "index"),
    [("Options", MqttConfig, 0), ("Home Assistant", HomeAssistantConfig, 0)],
)
def test_options(heading: str, model: type[BaseModel], index: int) -> None:
    table = tables(heading)[index]
    assert set(table) == {name.replace("_", "-") for name in model.model_fields}
    for name, cells in table.items():
        expected = shown_default(name, model)
        assert expected in (None, cells[0]), name


def test_entities() -> None:
    table = tables("Home Assistant")[1]
    assert set(table) == {"target", "problem", *(each.key for each in SENSORS)}


def test_the_configuration_that_is_shown_is_understood() -> None:
    text = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.S)[0]
    config = make_config(tomllib.loads(text)["mqtt"])
    assert config.home_assistant is not None
