"""`ballast-agent install`: puts the agent where the guest's service manager finds it.

The service must see, and leave, the mount of hugetlbfs that the agent makes: options that give a
service a mount namespace of its own would hide from the next agent what this one holds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from shlex import join as shell_words

from ballast_protocol.errors import OperatorError

PROGRAM = "usr/local/sbin/ballast-agent"
SYSTEMD_UNIT = "etc/systemd/system/ballast-agent.service"
OPENRC_SCRIPT = "etc/init.d/ballast-agent"

_UNIT = """\
[Unit]
Description=Ballast guest agent: lends the host memory that this guest does not need
# It waits for its port by itself, and is worth most when memory is short at boot.
DefaultDependencies=yes

[Service]
ExecStart={command}
Restart=always
RestartSec=1
# To give everything back it may have to wait for the host.
TimeoutStopSec=15
OOMScoreAdjust=-1000
Nice=-10
LimitMEMLOCK=infinity
MemoryMin=64M
NoNewPrivileges=yes
CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_RESOURCE CAP_IPC_LOCK CAP_SYS_NICE CAP_DAC_OVERRIDE
RestrictAddressFamilies=AF_UNIX AF_VSOCK
# Nothing here may give it a mount namespace of its own (ProtectSystem=, ProtectHome=, PrivateTmp=,
# PrivateMounts= and the like): its successor must find the hugetlbfs that it mounts.

[Install]
WantedBy=multi-user.target
"""

_SCRIPT = """\
#!/sbin/openrc-run
# Ballast guest agent: lends the host memory that this guest does not need

description="Ballast guest agent"
supervisor=supervise-daemon
command={program}
command_args={arguments}
respawn_delay=1
respawn_max=0
# To give everything back it may have to wait for the host.
retry="TERM/15/KILL/5"
output_log=/var/log/ballast-agent.log
error_log=/var/log/ballast-agent.log

depend() {{
    need localmount
    after bootmisc
}}
"""


class Installer:
    """Installs below a root directory, which is `/` but for tests and images."""

    def __init__(self, root: Path, init: str) -> None:
        """Find out which service manager there is.

        Args:
            root: Where to install.
            init: `systemd`, `openrc`, or `auto` for the one that is there.

        Raises:
            OperatorError: If it is neither, or cannot be told.
        """
        self.root = root
        self.init = self._find() if init == "auto" else init

    def _find(self) -> str:
        if (self.root / "run/systemd/system").is_dir() or (self.root / "lib/systemd").is_dir():
            return "systemd"
        if (self.root / "sbin/openrc-run").exists():
            return "openrc"
        raise OperatorError(
            "no systemd and no OpenRC was found here",
            hint="choose with --init, or start `ballast-agent run` from your own service",
        )

    @property
    def service(self) -> Path:
        """The unit or the script."""
        return self.root / (SYSTEMD_UNIT if self.init == "systemd" else OPENRC_SCRIPT)

    def install(self, arguments: Sequence[str]) -> list[Path]:
        """Write program and service, and return what was written.

        Args:
            arguments: What to start the agent with, after `run`.

        Raises:
            OperatorError: If something cannot be written.
        """
        try:
            program, written = self._install_program()
            self.service.parent.mkdir(parents=True, exist_ok=True)
            self.service.write_text(self._service_text(program, ["run", *arguments]))
            self.service.chmod(0o644 if self.init == "systemd" else 0o755)
        except OSError as error:
            hint = "run as root" if isinstance(error, PermissionError) else ""
            raise OperatorError(f"{error.filename}: {error.strerror}", hint=hint) from error
        return [*written, self.service]

    def _install_program(self) -> tuple[str, list[Path]]:
        """Return the program that the service starts, and its copy if one was made."""
        source = Path(sys.argv[0])
        if not zipfile.is_zipfile(source):
            # Installed as a package: the command that is there will do.
            return shutil.which("ballast-agent") or str(source.resolve()), []
        target = self.root / PROGRAM
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = target.with_name(f".{target.name}.new")
        shutil.copyfile(source, copy)
        copy.chmod(0o755)
        os.replace(copy, target)
        return f"/{PROGRAM}", [target]

    def _service_text(self, program: str, arguments: Sequence[str]) -> str:
        if self.init == "systemd":
            words = [program, *arguments]
            # systemd expands these two in commands.
            command = shell_words(words).replace("%", "%%").replace("$", "$$")
            return _UNIT.format(command=command)
        return _SCRIPT.format(
            program=shell_words([program]), arguments=shell_words([shell_words(arguments)])
        )

    def start(self) -> None:
        """Have the service started, now and at every boot.

        Raises:
            OperatorError: If the service manager refuses.
        """
        name = "ballast-agent"
        commands = {
            "systemd": [
                ["systemctl", "daemon-reload"],
                ["systemctl", "enable", name],
                ["systemctl", "restart", name],
            ],
            "openrc": [["rc-update", "add", name, "default"], ["rc-service", name, "restart"]],
        }
        try:
            for command in commands[self.init]:
                subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise OperatorError(f"the service was not started: {error}") from error

    def remove(self) -> list[Path]:
        """Take away what `install` has written, and return it.

        Raises:
            OperatorError: If something cannot be removed.
        """
        found = [path for path in (self.service, self.root / PROGRAM) if path.exists()]
        try:
            for path in found:
                path.unlink()
        except OSError as error:
            raise OperatorError(
                f"{error.filename}: {error.strerror}", hint="run as root"
            ) from error
        return found
