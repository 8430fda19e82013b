from __future__ import annotations

import pytest

from ballast.mqtt.topics import Topics, check_level, check_prefix, is_topic_name, object_id

TOPICS = Topics("ballast", "node1")


def test_the_topics_of_a_host_and_its_vms() -> None:
    assert TOPICS.availability == "ballast/node1/availability"
    vm = TOPICS.vm("web")
    assert vm.availability == "ballast/node1/web/availability"
    assert vm.state == "ballast/node1/web/state"
    assert vm.stats == "ballast/node1/web/stats"
    assert vm.event == "ballast/node1/web/event"
    assert vm.command == "ballast/node1/web/target/set"
    assert vm.result == "ballast/node1/web/target/result"
    assert TOPICS.all_commands == "ballast/node1/+/target/set"


def test_a_prefix_may_have_levels() -> None:
    topics = Topics(check_prefix("site/hall-2"), "node1")
    assert topics.commanded_vm("site/hall-2/node1/web/target/set") == "web"


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("ballast/node1/web/target/set", "web"),
        ("ballast/node1/target/set", None),
        ("ballast/node1//target/set", None),
        ("ballast/node1/a/b/target/set", None),
        ("ballast/node2/web/target/set", None),
        ("ballast/node1/web/target/result", None),
        ("", None),
    ],
)
def test_whose_command_it_is(topic: str, name: str | None) -> None:
    assert TOPICS.commanded_vm(topic) == name


def test_the_hosts_availability_is_no_vms() -> None:
    assert TOPICS.available_vm("ballast/node1/availability") is None
    assert TOPICS.available_vm("ballast/node1/web/availability") == "web"


@pytest.mark.parametrize("text", ["", "a/b", "+", "a#", "a\0", "a\n", "\ud800"])
def test_what_cannot_be_a_level(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        check_level(text)


@pytest.mark.parametrize("text", ["", "/a", "a/", "a//b", "a/+/b", "$SYS/x"])
def test_what_cannot_be_a_prefix(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        check_prefix(text)


@pytest.mark.parametrize(
    ("text", "can"),
    [("a/b", True), ("/", True), ("", False), ("a/#", False), ("+", False), ("ä" * 40000, False)],
)
def test_where_a_response_can_go(text: str, can: bool) -> None:
    assert is_topic_name(text) is can


def test_identifiers_are_plain_and_distinct() -> None:
    assert object_id("ballast", "node1", "web") == "ballast_node1_web"
    dotted = [
        object_id("ballast", "n", "a.b"),
        object_id("ballast", "n", "a_b"),
        object_id("ballast", "n_a", "b"),
        object_id("ballast", "n", "a-b"),
    ]
    assert len(set(dotted)) == 4
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for each in dotted)
