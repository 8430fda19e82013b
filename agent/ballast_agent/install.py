"""Installs the agent as a service of the guest: a systemd unit or an OpenRC script."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ballast_protocol.errors import OperatorError

SYSTEMD, OPENRC = "systemd", "openrc"

PROGRAM = "usr/local/lib/ballast/ballast-agent.pyz"
UNIT = "etc/systemd/system/ballast-agent.service"
SCRIPT = "etc/init.d/ballast-agent"

_UNIT = """\
[Unit]
Description=Ballast guest agent
Documentation=man:ballast-agent(1)
ConditionVirtualization=vm

[Service]
ExecStart={command}
# What it holds stays isolated until it is back.
Restart=always
RestartSec=1
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
"""

_SCRIPT = """\
#!/sbin/openrc-run
name="Ballast guest agent"
supervisor=supervise-daemon
command="{program}"
command_args="{arguments}"
respawn_delay=1
# What it holds stays isolated until it is back, so it is started again without end.
respawn_max=0
output_logger="logger -t ballast-agent"
error_logger="logger -t ballast-agent"
"""

log = logging.getLogger(__name__)


def find_init(root: Path) -> str:
    """Return which kind of service manager runs the guest.

    Raises:
        OperatorError: Neither of those that are known.
    """
    if (root / "run/systemd/system").is_dir():
        return SYSTEMD
    if (root / "sbin/openrc-run").exists():
        return OPENRC
    raise OperatorError(
        "neither systemd nor OpenRC runs here",
        hint="Have what starts your services run `ballast-agent.pyz run`, and restart it.",
    )


def service_text(init: str, arguments: Sequence[str]) -> str:
    """Return the service file for a service manager.

    Args:
        init: `SYSTEMD` or `OPENRC`.
        arguments: More for `ballast-agent run`.
    """
    words = [f"/{PROGRAM}", "run", *arguments]
    if init == SYSTEMD:
        return _UNIT.format(command=" ".join([sys.executable, *map(_systemd_word, words)]))
    return _SCRIPT.format(program=sys.executable, arguments=" ".join(map(shlex.quote, words)))


def _systemd_word(word: str) -> str:
    """Return a word as systemd reads it: a percent sign begins a specifier there."""
    return shlex.quote(word).replace("%", "%%").replace("$", "$$")


def install(init: str | None, arguments: Sequence[str], root: Path, *, start: bool) -> None:
    """Copy the agent, write its service file, and start it.

    Args:
        init: Which service manager; None to look.
        arguments: More for `ballast-agent run`.
        root: The root of the file system; not `/` only to prepare an image.
        start: Whether to enable and start the service too.

    Raises:
        OperatorError: It cannot be installed here.
    """
    source = Path(sys.argv[0])
    if not zipfile.is_zipfile(source):
        raise OperatorError(
            "only the packed agent can install itself", hint="Run `make agent`, and that file."
        )
    init = init or find_init(root)
    try:
        _copy(source, root / PROGRAM)
        _write(root / (UNIT if init == SYSTEMD else SCRIPT), service_text(init, arguments), init)
    except OSError as error:
        raise OperatorError(f"cannot write {error.filename}: {error.strerror}") from error
    if start:
        _run_all(_starting(init))
    log.info("installed as a service of %s", init)


def uninstall(root: Path) -> None:
    """Stop the service, which gives everything back to the guest, and remove its files.

    Raises:
        OperatorError: It cannot be removed.
    """
    for init, file in ((SYSTEMD, root / UNIT), (OPENRC, root / SCRIPT)):
        if file.exists():
            if root == Path("/"):
                _run_all(_stopping(init))
            file.unlink()
    (root / PROGRAM).unlink(missing_ok=True)
    log.info("removed")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(".new")
    shutil.copyfile(source, draft)
    os.replace(draft, target)


def _write(file: Path, text: str, init: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755 if init == OPENRC else 0o644)


def _starting(init: str) -> Sequence[Sequence[str]]:
    if init == SYSTEMD:
        return [
            ["systemctl", "daemon-reload"],
            ["systemctl", "enable", "ballast-agent"],
            ["systemctl", "restart", "ballast-agent"],
        ]
    return [["rc-update", "add", "ballast-agent"], ["rc-service", "ballast-agent", "restart"]]


def _stopping(init: str) -> Sequence[Sequence[str]]:
    if init == SYSTEMD:
        return [["systemctl", "disable", "--now", "ballast-agent"]]
    return [["rc-service", "ballast-agent", "stop"], ["rc-update", "del", "ballast-agent"]]


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        _run(command)


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise OperatorError(f"`{' '.join(command)}` failed: {error}") from error
