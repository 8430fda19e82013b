"""What `ballast serve` can be told about a VM, on the command line or in a TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ballast.balloon.features import DEFAULT_FEATURES
from ballast.daemon.paths import check_name
from ballast.mqtt.config import PASSWORD_VARIABLE, MqttConfig, make_config
from ballast.policy.governor import Governor
from ballast.qmp.qom import BALLOON_ID
from ballast.sizes import parse_size
from ballast_protocol.errors import OperatorError
from ballast_protocol.guest_blocks import (
    BLOCK_BYTES,
    MAX_SWEEP_SECONDS,
    MIN_SWEEP_SECONDS,
    SetSweeps,
)
from ballast_protocol.virtio.balloon import BalloonFeature


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size), Field(gt=0, strict=True)]
"""Bytes, as a number or as people write them."""

Rate = Annotated[int, BeforeValidator(_size), Field(ge=0, strict=True)]
"""Bytes per second, as a number or as people write sizes."""


Transport = Literal["vhost-user", "vfio-user"]
"""What QEMU can speak to the device."""

VariantName = Literal["msix-mapped", "msix", "intx"]
"""The values of `virtio_pci.layout.Variant`."""


_OF_ANY_BALLOON = frozenset(
    ("name", "attach", "target", "inflate_rate", "stats_polling_interval", "mqtt")
)
"""What can be said of a VM whose balloon is QEMU's own."""


class VmConfig(BaseModel):
    """One VM to serve.

    Attributes:
        name: Its name, which is also its runtime directory's.
        target: The size that the guest should have from its start; all of its memory if absent.
        inflate_rate: How much the guest is asked to give up each second at most, in bytes; 0 for no
            limit. It may take memory back as fast as it can.
        inhibit: Give nothing back to the host, because something else has pinned the guest's memory
            (VFIO devices); QEMU does so for its own balloon, but cannot for one beside it.
        memory: The machine's size, if it is not that of the files behind the guest's memory.
        deflate_on_oom: Let the guest take memory back before it kills a process.
        free_page_hint: Offer free-page hints, which list free memory without giving it back.
        free_page_reporting: Let the guest's kernel give free memory back on its own.
        agent_blocks: Let the agent in the guest give up its part of the target, in whole blocks of
            2 MiB, and sweep.
        sweep_every: Seconds between two sweeps, in which the agent reports what is free so that
            the host gets it back; if absent, what the guest's administrator wants.
        sweep_when_free: Sweep when so much has become free since the last sweep.
        stats_polling_interval: Seconds between two polls for statistics; 0 to poll on demand only.
        transport: What QEMU speaks to the device: vhost-user or vfio-user.
        variant: With vfio-user, how interrupts and config reads reach the guest. `msix-mapped` is
            the fastest, and a guest cannot read nonsense from a dead server; `msix` does without
            the mapped page; `intx` can be unplugged, which QEMU 11.1 does not survive with MSI-X.
        socket_path: Where to listen instead of the runtime directory.
        fd: A socket that was inherited, instead of a path.
        mqtt: The broker that the VM is reported to; in a file it is given once for all.
        qemu_qmp: The socket of a QMP monitor of QEMU. The VM's own QMP socket then serves QEMU's
            commands as well as the balloon's.
        device_id: The id of the balloon's device in QEMU, under which `qom-get` finds it.
        attach: The socket of a QMP monitor of a QEMU that has a balloon of its own, which is
            managed in the place of one of ours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    target: Size | None = None
    inflate_rate: Rate = 0
    inhibit: bool = False
    memory: Size | None = None
    deflate_on_oom: bool = False
    free_page_hint: bool = False
    free_page_reporting: bool = True
    agent_blocks: bool = True
    sweep_every: Annotated[float, Field(ge=MIN_SWEEP_SECONDS, le=MAX_SWEEP_SECONDS)] | None = None
    sweep_when_free: Annotated[Size, Field(ge=BLOCK_BYTES)] | None = None
    stats_polling_interval: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    transport: Transport = "vhost-user"
    variant: VariantName = "msix-mapped"
    socket_path: Path | None = None
    fd: Annotated[int, Field(ge=0)] | None = None
    mqtt: MqttConfig | None = None
    qemu_qmp: Path | None = None
    device_id: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9._-]*$")] = BALLOON_ID
    attach: Path | None = None

    @model_validator(mode="after")
    def _check_attached(self) -> VmConfig:
        """Refuse what nobody can give a balloon that is not ours."""
        if self.attach is not None:
            fields = type(self).model_fields.items()
            said = [name for name, field in fields if getattr(self, name) != field.default]
            ours = [name for name in said if name not in _OF_ANY_BALLOON]
            if ours:
                names = ", ".join(name.replace("_", "-") for name in ours)
                raise ValueError(f"a VM with a balloon of QEMU's own (attach) takes no {names}")
        return self

    @model_validator(mode="after")
    def _check_transport(self) -> VmConfig:
        """Refuse what is not safe on the transport.

        A guest's config read that a dead server does not answer gives all ones, which a driver that
        accepted free-page hints takes for the order to hint without end; a mapped page answers by
        itself.
        """
        is_mapped = self.variant == "msix-mapped"
        if self.free_page_hint and self.transport == "vfio-user" and not is_mapped:
            raise ValueError("free-page hints over vfio-user need the variant msix-mapped")
        return self

    def governor(self) -> Governor:
        """Return a governor that begins with what this configuration says."""
        return Governor(
            target_bytes=self.target,
            own_rate_bytes=self.inflate_rate,
            inhibit_reason="the configuration says so" if self.inhibit else None,
        )

    @property
    def sweeps(self) -> SetSweeps | None:
        """When the agent is to sweep without being asked; None leaves it to the guest."""
        if self.sweep_every is None and self.sweep_when_free is None:
            return None
        return SetSweeps(self.sweep_every, self.sweep_when_free)

    @property
    def features(self) -> BalloonFeature:
        """The balloon's feature bits that this configuration offers."""
        features = DEFAULT_FEATURES
        if self.deflate_on_oom:
            features |= BalloonFeature.DEFLATE_ON_OOM
        if self.free_page_hint:
            features |= BalloonFeature.FREE_PAGE_HINT
        if not self.free_page_reporting:
            features &= ~BalloonFeature.PAGE_REPORTING
        return features


def load(path: Path) -> list[VmConfig]:
    """Read the VMs of a TOML file: a table `[vm.NAME]` for each.

    Raises:
        OperatorError: The file cannot be read, or says something that is not understood.
    """
    document = _document(path)
    tables = document.pop("vm", {})
    document.pop("mqtt", None)
    if document or not isinstance(tables, dict) or not tables:
        raise OperatorError(
            f"{path} should hold tables [vm.NAME], perhaps a table [mqtt], and nothing else"
        )
    return [_vm(path, name, table) for name, table in tables.items()]


def load_mqtt(
    path: Path | None, url: str | None, environment: Mapping[str, str] = os.environ
) -> MqttConfig | None:
    """Return how VMs are reached over MQTT: what the table `[mqtt]` of a TOML file says.

    Args:
        path: The file, if there is one.
        url: A broker that goes before the one in the file.
        environment: May name the file with the password.

    Raises:
        OperatorError: The file cannot be read, or says something that is not understood.
    """
    table = _document(path).get("mqtt") if path is not None else None
    if table is None and url is None:
        return None
    if not isinstance(table, dict | None):
        raise OperatorError(f"{path}: mqtt is not a table")
    options: dict[str, object] = {**(table or {})}
    if url is not None:
        options["url"] = url
    if PASSWORD_VARIABLE in environment:
        options.setdefault("password-file", environment[PASSWORD_VARIABLE])
    return make_config(options)


def at_broker(configs: Iterable[VmConfig], mqtt: MqttConfig | None) -> list[VmConfig]:
    """Return VMs as they are, but reported to a broker."""
    return [config.model_copy(update={"mqtt": mqtt}) for config in configs]


def _document(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path} is not TOML: {error}") from error


def _vm(path: Path, name: str, table: object) -> VmConfig:
    if not isinstance(table, dict):
        raise OperatorError(f"{path}: vm.{name} is not a table")
    options = {key.replace("-", "_"): value for key, value in table.items()}
    if "name" in options:
        raise OperatorError(f"{path}: vm.{name} has its name from its table already")
    if "mqtt" in options:
        raise OperatorError(f"{path}: vm.{name}: MQTT is for all VMs: use a table [mqtt]")
    try:
        return make_vm_config(name, options)
    except OperatorError as error:
        raise OperatorError(f"{path}: vm.{name}: {error}", hint=error.hint) from error


def make_vm_config(name: str, options: Mapping[str, object]) -> VmConfig:
    """Return the configuration of a VM.

    Raises:
        OperatorError: The name cannot be one, or an option makes no sense.
    """
    try:
        return VmConfig.model_validate({"name": check_name(name), **options})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise OperatorError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error
