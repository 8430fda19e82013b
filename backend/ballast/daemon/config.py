"""What `ballast serve` can be told about a VM, on the command line or in a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ballast.balloon.device import DEFAULT_FEATURES
from ballast.daemon.paths import check_name
from ballast.sizes import parse_size
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import BalloonFeature


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size), Field(gt=0, strict=True)]
"""Bytes, as a number or as people write them."""


class VmConfig(BaseModel):
    """One VM to serve.

    Attributes:
        name: Its name, which is also its runtime directory's.
        target: The size that the guest should have from its start; all of its memory if absent.
        memory: The machine's size, if it is not that of the files behind the guest's memory.
        deflate_on_oom: Let the guest take memory back before it kills a process.
        free_page_hint: Offer free-page hints, which list free memory without giving it back.
        free_page_reporting: Let the guest's kernel give free memory back on its own.
        stats_polling_interval: Seconds between two polls for statistics; 0 to poll on demand only.
        socket_path: Where to listen instead of the runtime directory.
        fd: A socket that was inherited, instead of a path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    target: Size | None = None
    memory: Size | None = None
    deflate_on_oom: bool = False
    free_page_hint: bool = False
    free_page_reporting: bool = True
    stats_polling_interval: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    socket_path: Path | None = None
    fd: Annotated[int, Field(ge=0)] | None = None

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
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise OperatorError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OperatorError(f"{path} is not TOML: {error}") from error
    tables = document.pop("vm", {})
    if document or not isinstance(tables, dict) or not tables:
        raise OperatorError(f"{path} should hold tables [vm.NAME] and nothing else")
    return [_vm(path, name, table) for name, table in tables.items()]


def _vm(path: Path, name: str, table: object) -> VmConfig:
    if not isinstance(table, dict):
        raise OperatorError(f"{path}: vm.{name} is not a table")
    options = {key.replace("-", "_"): value for key, value in table.items()}
    if "name" in options:
        raise OperatorError(f"{path}: vm.{name} has its name from its table already")
    try:
        return VmConfig.model_validate({"name": check_name(name), **options})
    except OperatorError as error:
        raise OperatorError(f"{path}: vm.{name}: {error}", hint=error.hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OperatorError(f"{path}: vm.{name}: {where}: {first['msg']}") from error
