"""What Home Assistant is told of a VM: one device, its entities, and where their values are.

https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery, the form for whole devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ballast.mqtt.topics import Topics, object_id

MIB = 1 << 20

Json = dict[str, object]
"""A JSON object."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """A value that Home Assistant shows.

    Attributes:
        key: Its identifier below the device.
        name: What people call it.
        path: Where it is in the message.
        from_stats: Whether the message is the statistics; else the state.
        is_size: Whether it is in bytes.
        is_diagnostic: Whether it is of interest only when something is wrong.
        is_total: Whether it only grows.
    """

    key: str
    name: str
    path: tuple[str, ...]
    from_stats: bool = False
    is_size: bool = True
    is_diagnostic: bool = False
    is_total: bool = False


SENSORS = (
    Sensor("actual", "Memory", ("actual-bytes",)),
    Sensor("ram", "Memory of the machine", ("ram-bytes",), is_diagnostic=True),
    Sensor("ledger", "Given up", ("ledger-bytes",)),
    Sensor("state", "State", ("state",), is_size=False),
    Sensor("agent", "Agent", ("agent",), is_size=False, is_diagnostic=True),
    Sensor("host", "Held by the host", ("host", "allocated-bytes"), from_stats=True),
    Sensor("free", "Free memory", ("stats", "stat-free-memory"), from_stats=True),
    Sensor("available", "Available memory", ("stats", "stat-available-memory"), from_stats=True),
    Sensor("total", "Total memory", ("stats", "stat-total-memory"), from_stats=True),
    Sensor("caches", "Disk caches", ("stats", "stat-disk-caches"), from_stats=True),
    Sensor("discarded", "Given back so far", ("discarded-bytes",), from_stats=True, is_total=True),
)
"""The sensors of a VM."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """How Home Assistant is told.

    Attributes:
        topics: The host's topics.
        prefix: The topic prefix that Home Assistant listens to.
        minimum_bytes: The smallest target that its slider offers.
        version: Ballast's version.
    """

    topics: Topics
    prefix: str
    minimum_bytes: int
    version: str

    @property
    def birth_topic(self) -> str:
        """Where Home Assistant says that it has started, and wants to be told again."""
        return f"{self.prefix}/status"

    def identifier(self, vm_name: str) -> str:
        """Return what identifies a VM among all that Home Assistant knows."""
        return object_id("ballast", self.topics.host, vm_name)

    def topic(self, vm_name: str) -> str:
        """Return where the document of a VM belongs."""
        return f"{self.prefix}/device/{self.identifier(vm_name)}/config"

    def document(self, vm_name: str, ram_bytes: int | None) -> Json:
        """Return the document of a VM; without a slider as long as its size is not known."""
        identifier = self.identifier(vm_name)
        entities = [*self._sensors(vm_name), ("problem", self._problem(vm_name))]
        if ram_bytes is not None and ram_bytes >= 2 * MIB:
            entities.append(("target", self._target(vm_name, ram_bytes)))
        components = {
            key: {"unique_id": f"{identifier}_{key}", **entity} for key, entity in entities
        }
        return {
            "device": {
                "identifiers": [identifier],
                "name": vm_name,
                "manufacturer": "Ballast",
                "model": f"Memory of a VM on {self.topics.host}",
                "sw_version": self.version,
            },
            "origin": {"name": "ballast", "sw_version": self.version},
            "availability": [
                {"topic": self.topics.availability},
                {"topic": self.topics.vm(vm_name).availability},
            ],
            "availability_mode": "all",
            "qos": 1,
            "components": components,
        }

    def _sensors(self, vm_name: str) -> Iterable[tuple[str, Json]]:
        topics = self.topics.vm(vm_name)
        for sensor in SENSORS:
            entity: Json = {
                "platform": "sensor",
                "name": sensor.name,
                "state_topic": topics.stats if sensor.from_stats else topics.state,
                "value_template": _value(sensor),
            }
            if sensor.is_size:
                entity |= {
                    "device_class": "data_size",
                    "unit_of_measurement": "MiB",
                    "suggested_display_precision": 0,
                    "state_class": "total_increasing" if sensor.is_total else "measurement",
                }
            if sensor.is_diagnostic:
                entity["entity_category"] = "diagnostic"
            yield sensor.key, entity

    def _problem(self, vm_name: str) -> Json:
        topic = self.topics.vm(vm_name).state
        return {
            "platform": "binary_sensor",
            "name": "Problem",
            "device_class": "problem",
            "entity_category": "diagnostic",
            "state_topic": topic,
            "value_template": "{{ 'ON' if value_json['problem'] else 'OFF' }}",
            "json_attributes_topic": topic,
        }

    def _target(self, vm_name: str, ram_bytes: int) -> Json:
        topics = self.topics.vm(vm_name)
        maximum = ram_bytes // MIB
        return {
            "platform": "number",
            "name": "Target",
            "device_class": "data_size",
            "unit_of_measurement": "MiB",
            "mode": "slider",
            "min": max(1, min(self.minimum_bytes // MIB, maximum - 1)),
            "max": maximum,
            "step": 1,
            "state_topic": topics.state,
            "value_template": (
                "{% set bytes = value_json['target-bytes'] or value_json['ram-bytes'] %}"
                "{{ (bytes / 1048576) | round | int if bytes is number else none }}"
            ),
            "command_topic": topics.command,
            "command_template": "{{ value | int }}M",
            "retain": False,
        }


def _value(sensor: Sensor) -> str:
    """Return a template for a sensor's value, or for `None`, which is shown as unknown."""
    value = "value_json" + "".join(f"['{key}']" for key in sensor.path)
    shown = f"({value} / {MIB}) | round(1)" if sensor.is_size else value
    return f"{{{{ {shown} if {value} is number or {value} is string else none }}}}"
