from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme

from ballast.mqtt.config import Address, default_host, make_config
from ballast_protocol.errors import OperatorError


@pytest.mark.parametrize(
    ("url", "hostname", "port", "uses_tls", "username"),
    [
        ("mqtt://broker", "broker", 1883, False, None),
        ("mqtts://broker", "broker", 8883, True, None),
        ("mqtt://me@10.0.0.1:1884/", "10.0.0.1", 1884, False, "me"),
        ("mqtts://a%40b@[::1]:1", "::1", 1, True, "a@b"),
    ],
)
def test_addresses(
    url: str, hostname: str, port: int, uses_tls: bool, username: str | None
) -> None:
    assert Address.parse(url) == Address(
        hostname=hostname, port=port, uses_tls=uses_tls, username=username
    )


def test_an_address_is_shown_without_the_user() -> None:
    assert str(Address.parse("mqtts://me@[::1]")) == "mqtts://[::1]:8883"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("broker", "is not a broker's address"),
        ("http://broker", "is not a broker's address"),
        ("mqtt://", "is not a broker's address"),
        ("mqtt://broker:0", "is not a broker's address"),
        ("mqtt://broker:99999", "is not a broker's address"),
        ("mqtt://broker:x", "is not a broker's address"),
        ("mqtt://broker/path", "is not a broker's address"),
        ("mqtt://[::1", "is not a broker's address"),
        ("mqtt://me:secret@broker", "a password does not belong"),
    ],
)
def test_what_is_no_address(url: str, message: str) -> None:
    with pytest.raises(OperatorError, match=message) as caught:
        make_config({"url": url})
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_names_come_from_the_machine() -> None:
    config = make_config({"url": "mqtt://broker"})
    assert config.host == default_host()
    assert config.identifier == f"ballast-{default_host()}"
    assert "/" not in config.host


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "mqtt: url: Field required"),
        ({"url": "mqtt://b", "hots": "x"}, "mqtt: hots: Extra inputs"),
        ({"url": "mqtt://b", "host": "a/b"}, "mqtt: host: .* cannot be a level"),
        ({"url": "mqtt://b", "prefix": "a//b"}, "mqtt: prefix: .* cannot be"),
        ({"url": "mqtt://b", "keepalive": 1}, "mqtt: keepalive: "),
        ({"url": "mqtt://b", "state-interval": 0}, "mqtt: state-interval: "),
        ({"url": "mqtt://b", "state-interval": float("nan")}, "mqtt: state-interval: "),
        ({"url": "mqtt://b", "ca": "/ca"}, "mqtt: ca, cert, key and insecure go with mqtts"),
        ({"url": "mqtt://b", "insecure": True}, "go with mqtts"),
        ({"url": "mqtts://b", "key": "/k"}, "mqtt: key goes with cert"),
        ({"url": "mqtts://b", "ca": "/c", "insecure": True}, "choose one"),
        ({"url": "mqtt://b", "password-file": "/p"}, "mqtt: password-file goes with a username"),
        ({"url": "mqtt://b", "home-assistant": {"min": 1}}, "mqtt: home-assistant.min: Extra"),
        ({"url": "mqtt://b", "home-assistant": {"minimum": "x"}}, "mqtt: 'x' is not a size"),
    ],
)
def test_what_is_not_understood_says_where(options: dict[str, object], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        make_config(options)


def test_the_password_is_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "password"
    config = make_config({"url": "mqtt://me@b", "password-file": str(file)})
    with pytest.raises(OperatorError, match="cannot read the password"):
        config.password()
    file.write_text("secret word\r\nnot this\n")
    assert config.password() == "secret word"
    file.write_text("\nlate\n")
    with pytest.raises(OperatorError, match=r"first line .* is empty"):
        config.password()
    file.write_bytes(b"\xff\n")
    with pytest.raises(OperatorError, match="not UTF-8"):
        config.password()
    assert make_config({"url": "mqtt://me@b"}).password() is None


def test_tls_checks_the_broker_unless_asked_not_to() -> None:
    assert make_config({"url": "mqtt://b"}).tls_context() is None
    context = make_config({"url": "mqtts://b"}).tls_context()
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    context = make_config({"url": "mqtts://b", "insecure": True}).tls_context()
    assert context is not None
    assert context.verify_mode == ssl.CERT_NONE


def test_tls_files_that_cannot_be_used(tmp_path: Path) -> None:
    authority = trustme.CA()
    good, other = tmp_path / "good.pem", tmp_path / "other.pem"
    authority.issue_cert("me").private_key_and_cert_chain_pem.write_to_path(str(good))
    authority.issue_cert("you").private_key_pem.write_to_path(str(other))
    nothing = tmp_path / "nothing"
    nothing.write_text("nothing\n")
    for options, message in (
        ({"ca": "/nonexistent"}, "cannot read /nonexistent"),
        ({"ca": str(nothing)}, "holds no certificates"),
        ({"cert": str(nothing)}, "are not a certificate and its private key"),
        ({"cert": str(good), "key": str(other)}, "are not a certificate and its private key"),
    ):
        with pytest.raises(OperatorError, match=message):
            make_config({"url": "mqtts://b", **options}).tls_context()
    assert make_config({"url": "mqtts://b", "cert": str(good)}).tls_context() is not None
