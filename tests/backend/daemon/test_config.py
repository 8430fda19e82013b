from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from ballast.balloon.features import DEFAULT_FEATURES
from ballast.daemon.config import VmConfig, load, load_mqtt
from ballast.mqtt.config import PASSWORD_VARIABLE
from ballast_protocol.errors import OperatorError
from ballast_protocol.virtio.balloon import BalloonFeature


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "vms.toml"
    path.write_text(text)
    return path


def test_a_table_for_each_vm(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [vm.web]
        target = "1.5G"
        memory = 4294967296
        deflate-on-oom = true
        stats-polling-interval = 10
        socket-path = "/tmp/web.sock"
        [vm.db-1]
        """,
    )
    web, database = load(path)
    assert web == VmConfig(
        name="web",
        target=3 << 29,
        memory=4 << 30,
        deflate_on_oom=True,
        stats_polling_interval=10,
        socket_path=Path("/tmp/web.sock"),
    )
    assert database == VmConfig(name="db-1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[vm.a", "is not TOML"),
        ("\xff", "is not TOML"),
        ("", "tables \\[vm.NAME\\]"),
        ("vm = 1", "tables \\[vm.NAME\\]"),
        ("[vm]", "tables \\[vm.NAME\\]"),
        ("[vm.a]\n[other]", "tables \\[vm.NAME\\]"),
        ("[vm]\na = 1", "vm.a is not a table"),
        ("[vm.a]\nsize = 1", "vm.a: size: Extra inputs"),
        ("[vm.a]\ntarget = 0", "vm.a: target: Input should be greater"),
        ("[vm.a]\ntarget = true", "vm.a: target: Input should be a valid integer"),
        ('[vm.a]\ntarget = "much"', "vm.a: 'much' is not a size"),
        ("[vm.a]\nfd = -1", "vm.a: fd: Input should be greater"),
        ("[vm.a]\nstats-polling-interval = -1", "stats_polling_interval: Input should be"),
        ('[vm.a]\nname = "b"', "has its name from its table"),
        ('[vm."../a"]', "cannot be a VM's name"),
    ],
)
def test_what_is_not_understood_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vms.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(OperatorError, match=message):
        load(path)


def test_a_broker_for_all_vms(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        [vm.web]
        [mqtt]
        url = "mqtt://me@broker.example"
        stats-interval = 10
        [mqtt.home-assistant]
        minimum = "512M"
        """,
    )
    assert [vm.name for vm in load(path)] == ["web"]
    config = load_mqtt(path, None, {})
    assert config is not None
    assert (str(config.address), config.user) == ("mqtt://broker.example:1883", "me")
    assert config.stats_interval == 10
    assert config.home_assistant is not None
    assert config.home_assistant.minimum == 512 << 20
    other = load_mqtt(path, "mqtts://other", {})
    assert other is not None
    assert (str(other.address), other.stats_interval) == ("mqtts://other:8883", 10)


def test_without_a_broker_there_is_no_mqtt(tmp_path: Path) -> None:
    assert load_mqtt(written(tmp_path, "[vm.web]"), None, {}) is None
    assert load_mqtt(None, None, {PASSWORD_VARIABLE: "/password"}) is None


def test_the_environment_names_the_password_where_the_file_does_not(tmp_path: Path) -> None:
    environment = {PASSWORD_VARIABLE: "/run/secrets/mqtt"}
    config = load_mqtt(None, "mqtt://me@broker", environment)
    assert config is not None
    assert config.password_file == Path("/run/secrets/mqtt")
    path = written(tmp_path, '[mqtt]\nurl = "mqtt://me@b"\npassword-file = "/mine"')
    config = load_mqtt(path, None, environment)
    assert config is not None
    assert config.password_file == Path("/mine")


def test_an_mqtt_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="mqtt is not a table"):
        load_mqtt(written(tmp_path, "mqtt = 1"), None)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot read"):
        load(tmp_path / "missing.toml")
    with pytest.raises(OperatorError, match="cannot read"):
        load(tmp_path)


def test_features_follow_the_options() -> None:
    assert VmConfig(name="a").features == DEFAULT_FEATURES
    everything = VmConfig(
        name="a", deflate_on_oom=True, free_page_hint=True, free_page_reporting=False
    ).features
    assert everything & BalloonFeature.DEFLATE_ON_OOM
    assert everything & BalloonFeature.FREE_PAGE_HINT
    assert not everything & BalloonFeature.PAGE_REPORTING
    assert everything & BalloonFeature.STATS_VQ


def test_a_configuration_does_not_change() -> None:
    config = VmConfig(name="a")
    with pytest.raises(ValidationError):
        config.name = "b"


@pytest.mark.parametrize("variant", ["msix", "intx"])
def test_hints_over_vfio_user_need_a_mapped_config_space(tmp_path: Path, variant: str) -> None:
    """A dead server's all ones would be taken for the order to hint without end."""
    path = tmp_path / "vms.toml"
    text = '[vm.a]\ntransport = "vfio-user"\nfree-page-hint = true\nvariant = "{}"\n'
    path.write_text(text.format(variant))
    with pytest.raises(OperatorError, match="msix-mapped"):
        load(path)
    path.write_text(text.format("msix-mapped"))
    assert load(path)[0].features & BalloonFeature.FREE_PAGE_HINT
