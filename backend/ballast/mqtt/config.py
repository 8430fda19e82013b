"""What the bridge to an MQTT broker can be told, in a table `[mqtt]` or on the command line."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ballast.mqtt.topics import check_level, check_prefix
from ballast.sizes import parse_size
from ballast_protocol.errors import OperatorError

PASSWORD_VARIABLE = "BALLAST_MQTT_PASSWORD_FILE"
"""Names the file with the password where the configuration names none."""

MAX_PASSWORD_BYTES = 65535
"""What fits in a CONNECT packet (MQTT 5.0, 1.5.6)."""

PORTS = {"mqtt": 1883, "mqtts": 8883}
"""The schemes, and the ports registered for them."""


def default_host() -> str:
    """Return this machine's name, fit to be a level of a topic."""
    return re.sub(r"[/+#\0\s]", "-", socket.gethostname()) or "localhost"


def _known_scheme(url: str) -> str:
    Address.parse(url)
    return url


Url = Annotated[str, AfterValidator(_known_scheme)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Size = Annotated[
    int, BeforeValidator(lambda each: parse_size(each) if isinstance(each, str) else each)
]


class Address(BaseModel):
    """Where a broker is, and who we are to it.

    Attributes:
        hostname: A name, or an IPv4 or IPv6 address.
        port: Its TCP port.
        uses_tls: Whether the connection is encrypted.
        username: The user that the URL names.
    """

    model_config = ConfigDict(frozen=True)

    hostname: str
    port: int
    uses_tls: bool
    username: str | None

    @classmethod
    def parse(cls, url: str) -> Address:
        """Return what a URL like `mqtts://user@broker.example:8883` says.

        Raises:
            OperatorError: It is not one, or has a password in it.
        """
        hint = "Write mqtt://HOST[:PORT], or mqtts:// for TLS; USER@ may stand before HOST."
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise OperatorError(f"{url!r} is not a broker's address: {error}", hint=hint) from None
        if parts.password is not None:
            raise OperatorError(
                "a password does not belong into a broker's address, where every user can see it",
                hint=f"Put it into a file, and name that with password-file or {PASSWORD_VARIABLE}",
            )
        extra = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme not in PORTS or not parts.hostname or extra or port == 0:
            raise OperatorError(f"{url!r} is not a broker's address", hint=hint)
        return cls(
            hostname=parts.hostname,
            port=port or PORTS[parts.scheme],
            uses_tls=parts.scheme == "mqtts",
            username=unquote(parts.username) if parts.username else None,
        )

    def __str__(self) -> str:
        """Return the address without the user."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{'mqtts' if self.uses_tls else 'mqtt'}://{host}:{self.port}"


class HomeAssistantConfig(BaseModel):
    """Whether and how Home Assistant is told of the VMs.

    Attributes:
        enabled: Publish discovery documents.
        prefix: The topic prefix that Home Assistant listens to.
        minimum: The smallest target that its slider offers, in bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    prefix: Annotated[str, AfterValidator(check_prefix)] = "homeassistant"
    minimum: Annotated[Size, Field(gt=0, strict=True)] = 256 << 20


class MqttConfig(BaseModel):
    """A bridge to one broker.

    Attributes:
        url: The broker: `mqtt://HOST[:PORT]`, or `mqtts://` for TLS.
        host: This host's level in the topics; by default the machine's name. One daemon at a time
            may use a name.
        prefix: What all topics begin with.
        client_id: What the broker knows this daemon by; by default `ballast-HOST`. It has to stay
            the same for a session to be found again.
        username: Who we are to the broker; by default the user in `url`.
        password_file: A file whose first line is the password.
        ca: A file with the certificates that the broker's is checked against; by default the
            system's.
        cert: A file with our certificate, for brokers that ask for one.
        key: The file with its private key, if that is not in `cert`.
        insecure: Accept any certificate of the broker.
        keepalive: Seconds of silence after which either side asks whether the other is there.
        session_expiry: Seconds that the broker keeps commands for us while we are away.
        will_delay: Seconds that the broker waits for our return before it says that we are gone.
        reconnect_delay: Seconds before the first new attempt after a connection was lost.
        reconnect_delay_max: The longest time between two attempts, in seconds.
        state_interval: The shortest time between two state messages of a VM, in seconds.
        stats_interval: Seconds between two messages with statistics of a VM; 0 for none.
        queue_limit: How many results and events are kept while the broker is away.
        home_assistant: Discovery for Home Assistant; none if absent.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Url
    host: Annotated[str, AfterValidator(check_level)] = Field(default_factory=default_host)
    prefix: Annotated[str, AfterValidator(check_prefix)] = "ballast"
    client_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    username: str | None = None
    password_file: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure: bool = False
    keepalive: Annotated[int, Field(ge=5, le=3600)] = 30
    session_expiry: Annotated[int, Field(ge=0, lt=0xFFFF_FFFF)] = 3600
    will_delay: Annotated[int, Field(ge=0, le=3600)] = 5
    reconnect_delay: Seconds = 1.0
    reconnect_delay_max: Seconds = 60.0
    state_interval: Seconds = 1.0
    stats_interval: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 60.0
    queue_limit: Annotated[int, Field(ge=1, le=100_000)] = 1000
    home_assistant: HomeAssistantConfig | None = None

    @model_validator(mode="after")
    def _check_tls(self) -> MqttConfig:
        """Refuse what would not have the effect that it seems to have."""
        asks_tls = self.ca or self.cert or self.key or self.insecure
        if asks_tls and not self.address.uses_tls:
            raise ValueError("ca, cert, key and insecure go with mqtts://")
        if self.key and not self.cert:
            raise ValueError("key goes with cert")
        if self.password_file and not self.user:
            raise ValueError("password-file goes with a username")
        if self.ca and self.insecure:
            raise ValueError("ca checks the broker's certificate, insecure does not: choose one")
        return self

    @property
    def address(self) -> Address:
        """The broker."""
        return Address.parse(self.url)

    @property
    def user(self) -> str | None:
        """Who we are to the broker."""
        return self.username or self.address.username

    @property
    def identifier(self) -> str:
        """What the broker knows us by."""
        return self.client_id or f"ballast-{self.host}"

    def password(self) -> str | None:
        """Read the password; None if there is none.

        Raises:
            OperatorError: The file cannot be read, or holds nothing that can be a password.
        """
        return None if self.password_file is None else _read_password(self.password_file)

    def tls_context(self) -> ssl.SSLContext | None:
        """Read the certificates; None without TLS.

        Raises:
            OperatorError: A file cannot be read, or is not what it should be.
        """
        return _tls_context(self) if self.address.uses_tls else None


def _read_password(path: Path) -> str:
    try:
        text = path.read_bytes()[: MAX_PASSWORD_BYTES + 2].decode()
    except OSError as error:
        raise OperatorError(f"cannot read the password in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OperatorError(f"the password in {path} is not UTF-8") from error
    password = text.split("\n", 1)[0].rstrip("\r")
    if not password:
        raise OperatorError(f"the first line of {path} is empty", hint="Write the password there.")
    return password


def _tls_context(config: MqttConfig) -> ssl.SSLContext:
    for path in filter(None, (config.ca, config.cert, config.key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise OperatorError(f"cannot read {path}: {error.strerror}") from error
    try:
        context = ssl.create_default_context(cafile=config.ca)
    except ssl.SSLError as error:
        raise OperatorError(f"{config.ca} holds no certificates: {error.reason}") from error
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.cert is not None:
        try:
            # A key with a passphrase must not make a daemon ask at its terminal.
            context.load_cert_chain(config.cert, config.key, password=lambda: "")
        except (ssl.SSLError, ValueError) as error:
            raise OperatorError(
                f"{config.cert} and {config.key or 'its key'} are not a certificate and its "
                f"private key: {getattr(error, 'reason', None) or error}",
                hint="Both have to be PEM, and the key without a passphrase.",
            ) from error
    return context


def make_config(options: Mapping[str, object]) -> MqttConfig:
    """Check the options of a table `[mqtt]`, spelt as there.

    Raises:
        OperatorError: Something in them is not understood.
    """
    try:
        return MqttConfig.model_validate(_underscored(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part).replace("_", "-") for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise OperatorError(f"mqtt: {where}: {message}" if where else f"mqtt: {message}") from error
    except OperatorError as error:
        raise OperatorError(f"mqtt: {error}", hint=error.hint) from error


def _underscored(options: Mapping[str, object]) -> dict[str, object]:
    return {
        key.replace("-", "_"): _underscored(value) if isinstance(value, Mapping) else value
        for key, value in options.items()
    }
