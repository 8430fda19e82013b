"""Who may speak to whom: passwords, certificates, access lists, at a real mosquitto."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from ballast.mqtt.bridge import Bridge, bridged
from ballast.mqtt.config import make_config
from ballast_images.broker import Broker
from support.balloon_control import MIB, FakeBalloonControl
from support.fds import none_left_open
from support.mosquitto import Mosquitto, until


def bridge(url: str, **options: object) -> Bridge:
    fixed = {"host": "node1", "reconnect-delay": 0.05, "stats-interval": 0}
    config = make_config({"url": url, **fixed, **options})
    vm = FakeBalloonControl(name="vm1", extra_status={"state": "running"})
    return Bridge(config, [vm], version="1")


@asynccontextmanager
async def running(broker: Mosquitto) -> AsyncIterator[Mosquitto]:
    await broker.start()
    try:
        yield broker
    finally:
        await broker.kill()


def documented_access() -> str:
    """Return the access list in `docs/mqtt.md`, which is said to be enough."""
    text = (Path(__file__).parents[3] / "docs" / "mqtt.md").read_text()
    (block,) = re.findall(r"```\n(user ballast\n.*?)```", text, re.DOTALL)
    return str(block).replace("HOST", "node1")


@pytest.fixture
async def closed(programs: Broker, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """A broker that wants a password, and lets nobody publish below `secret`."""
    passwords, access = tmp_path / "passwords", tmp_path / "access"
    passwords.touch(mode=0o600)
    for user in ("ballast", "operator"):
        process = await asyncio.create_subprocess_exec(
            programs.passwd, "-b", passwords, user, f"{user}'s word"
        )
        assert await process.wait() == 0
    access.write_text(f"{documented_access()}user operator\ntopic #\n")
    broker = Mosquitto(
        programs,
        tmp_path,
        options=(f"password_file {passwords}", f"acl_file {access}"),
        client_options=("-u", "operator", "-P", "operator's word"),
    )
    async with running(broker):
        yield broker


async def test_a_password_from_a_file(closed: Mosquitto, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("wrong\n")
    options = {"username": "ballast", "password-file": str(password)}
    with none_left_open():
        async with bridged(bridge(closed.url, **options)) as ours:
            await until(lambda: "Not authorized" in str(ours.status()["last-error"]))
            assert "check username and password-file" in str(ours.status()["last-error"])
            # Renewed passwords count without a restart.
            password.write_text("ballast's word\n")
            await until(lambda: ours.is_connected)
            assert ours.status()["last-error"] == ""


async def test_what_the_broker_refuses_is_told(closed: Mosquitto, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("ballast's word\n")
    options = {"username": "ballast", "password-file": str(password)}
    async with bridged(bridge(closed.url, **options)) as ours, closed.subscriber("b/#") as inbox:
        await until(lambda: ours.is_connected)
        set_topic = "ballast/node1/vm1/target/set"
        await closed.publish(set_topic, "1G", response_topic="secret/results")
        await until(lambda: ours.status()["refused-by-broker"] == 1)
        # It is counted when the broker says so, and told when the one that has sent it goes on.
        told = "the broker refuses publishing: Not authorized"
        await until(lambda: ours.status()["last-error"] == told)
        assert ours.is_connected
        assert inbox.messages == []


async def test_the_access_list_of_the_page_is_enough(closed: Mosquitto, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("ballast's word\n")
    ours = bridge(
        closed.url,
        **{"username": "ballast", "password-file": str(password), "home-assistant": {}},
    )
    ours.event("vm1", b'{"event": "BALLOON_CHANGE"}')
    async with (
        closed.subscriber("ballast/#", "responses/#", "homeassistant/#") as inbox,
        bridged(ours),
    ):
        await inbox.message("ballast/node1/vm1/event")
        await inbox.message("ballast/node1/vm1/state")
        await inbox.message("homeassistant/device/ballast_node1_vm1/config")
        topic = "ballast/node1/vm1/target/set"
        await closed.publish(topic, "1G", response_topic="responses/a")
        await inbox.message("responses/a")
        await closed.publish(topic, "2G")
        await inbox.message("ballast/node1/vm1/target/result")
        assert (ours.status()["refused-by-broker"], ours.status()["last-error"]) == (0, "")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def encrypted(
    programs: Broker, authority: trustme.CA, tmp_path: Path
) -> AsyncIterator[Mosquitto]:
    """A broker that speaks TLS only, and only with clients that its authority knows."""
    ca, server = tmp_path / "ca.pem", authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(ca))
    server.private_key_pem.write_to_path(str(tmp_path / "server.key"))
    server.cert_chain_pems[0].write_to_path(str(tmp_path / "server.pem"))
    authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "client.pem")
    )
    client = str(tmp_path / "client.pem")
    broker = Mosquitto(
        programs,
        tmp_path,
        options=(
            f"cafile {ca}",
            f"certfile {tmp_path / 'server.pem'}",
            f"keyfile {tmp_path / 'server.key'}",
            "require_certificate true",
            "allow_anonymous true",
        ),
        client_options=("--cafile", str(ca), "--cert", client, "--key", client),
    )
    async with running(broker):
        yield broker


def tls_url(broker: Mosquitto) -> str:
    return broker.url.replace("mqtt:", "mqtts:")


async def test_both_sides_show_certificates(encrypted: Mosquitto, tmp_path: Path) -> None:
    options = {"ca": str(tmp_path / "ca.pem"), "cert": str(tmp_path / "client.pem")}
    with none_left_open():
        async with (
            bridged(bridge(tls_url(encrypted), **options)) as ours,
            encrypted.subscriber("me/#") as inbox,
        ):
            await until(lambda: ours.is_connected)
            topic = "ballast/node1/vm1/target/set"
            await encrypted.publish(topic, "1G", response_topic="me/results")
            assert (await inbox.payload("me/results"))["target-bytes"] == 1024 * MIB


async def test_a_broker_of_another_authority_is_refused(
    encrypted: Mosquitto, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with none_left_open():
        async with bridged(bridge(tls_url(encrypted), ca=str(other))) as ours:
            await until(lambda: "not to be trusted" in str(ours.status()["last-error"]))
            assert "with ca" in str(ours.status()["last-error"])


async def test_insecure_has_to_be_asked_for(encrypted: Mosquitto, tmp_path: Path) -> None:
    client = str(tmp_path / "client.pem")
    async with bridged(bridge(tls_url(encrypted), cert=client)) as ours:
        await until(lambda: "not to be trusted" in str(ours.status()["last-error"]))
    async with bridged(bridge(tls_url(encrypted), cert=client, insecure=True)) as ours:
        await until(lambda: ours.is_connected)


async def test_without_our_certificate_the_broker_refuses_us(
    encrypted: Mosquitto, tmp_path: Path
) -> None:
    with none_left_open():
        ours = bridge(tls_url(encrypted), ca=str(tmp_path / "ca.pem"))
        async with bridged(ours):
            await until(lambda: "a certificate of ours" in str(ours.status()["last-error"]))
            assert not ours.is_connected


async def test_tls_with_a_broker_that_does_not_speak_it(programs: Broker, tmp_path: Path) -> None:
    async with running(Mosquitto(programs, tmp_path)) as broker:
        with none_left_open():
            async with bridged(bridge(tls_url(broker))) as ours:
                await until(lambda: bool(ours.status()["last-error"]))
                assert not ours.is_connected
