"""systemd units: the balloon, with systemd as its keeper, and QEMU in the right order to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ballast.daemon.launch import LaunchPlan
from ballast.daemon.recipes.model import (
    Recipe,
    RecipeFile,
    Site,
    migration_steps,
    private_steps,
    serve_arguments,
)

UNITS = Path("/etc/systemd/system")
SYSUSERS = Path("/etc/sysusers.d/ballast.conf")

_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@+-]+")

_BALLOON = """\
[Unit]
Description=Memory balloon of VM {name}
Documentation=man:ballast-serve(1)
StartLimitIntervalSec=0

[Service]
Type=notify
User={user}
Environment=BALLAST_RUNTIME_DIR={runtime}
ExecStart={serve}
# systemd keeps what QEMU must not miss: a crash or `systemctl restart` costs the guest a moment.
FileDescriptorStoreMax=4096
Restart=always
RestartSec=0
LimitNOFILE=65536
RuntimeDirectory={directory}
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=restart
NoNewPrivileges=yes
CapabilityBoundingSet=
PrivateDevices=yes
PrivateTmp=yes
ProtectHome=read-only
ProtectSystem=strict
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""

_VM = """\
[Unit]
Description=VM {name}
# The order counts at both ends: the balloon is there before QEMU, and QEMU ends before it. Not
# Requires=, with which a restart of the balloon, which is its upgrade, would restart QEMU.
Wants={balloon}
After={balloon} network.target

[Service]
User={user}
{groups}ExecStart={qemu}
# The guest shuts down as at the press of its power button; QEMU is ended if it has not by then.
ExecStop=/bin/sh -c {stop}
TimeoutStopSec=120
Restart=on-failure
RestartSec=1

[Install]
WantedBy=multi-user.target
"""


def systemd(plan: LaunchPlan, site: Site) -> Recipe:
    """Return both units, and the user that they run as."""
    name = plan.config.name
    balloon, vm = f"ballast-{name}.service", f"vm-{name}.service"
    files = (
        RecipeFile(SYSUSERS, _sysusers(plan, site)),
        RecipeFile(UNITS / balloon, _balloon(plan, site)),
        RecipeFile(UNITS / vm, _vm(plan, site, balloon)),
    )
    steps = (
        f"systemd-sysusers && systemctl daemon-reload && systemctl enable --now {vm}",
        f"Upgrade: systemctl restart {balloon}. Stop {vm} before {balloon}: a QEMU without its "
        "balloon aborts.",
        f"The user {site.user} has to be able to read QEMU, Ballast and the disks.",
        f"Operate it as that user: sudo -u {site.user} BALLAST_RUNTIME_DIR={site.runtime} "
        "ballast status, or as root, whose runtime directory this is.",
        *private_steps(plan, site),
        *migration_steps(plan),
    )
    return Recipe(files, steps)


def _sysusers(plan: LaunchPlan, site: Site) -> str:
    member = f"m {site.user} kvm\n" if plan.accelerator == "kvm" else ""
    return f'u {site.user} - "Virtual machines with Ballast"\n{member}'


def _balloon(plan: LaunchPlan, site: Site) -> str:
    name, paths = plan.config.name, site.paths(plan)
    # systemd before 254 does not say that it keeps descriptors, but does.
    serve = [str(site.ballast), *serve_arguments(plan, paths), "--keeper", "systemd"]
    return _BALLOON.format(
        name=name,
        user=site.user,
        runtime=site.runtime,
        directory=paths.directory.relative_to("/run"),
        serve=command_line(serve),
    )


def _vm(plan: LaunchPlan, site: Site, balloon: str) -> str:
    paths = site.paths(plan)
    program, *arguments = plan.command(paths)
    qmp_shell = site.ballast.with_name("qmp-shell")
    stop = (
        f"echo system_powerdown | {qmp_shell} {paths.qemu_qmp} && "
        "exec tail --pid=$MAINPID -f /dev/null"
    )
    return _VM.format(
        name=plan.config.name,
        user=site.user,
        groups="SupplementaryGroups=kvm\n" if plan.accelerator == "kvm" else "",
        balloon=balloon,
        # What QEMU shows where nobody sees it; the plan may say something else after this.
        qemu=command_line([program, "-display", "none", *arguments]),
        stop=_quoted(stop),
    )


def command_line(words: Iterable[str]) -> str:
    """Return a command as `ExecStart=` takes it, each option on a line of its own.

    Nothing in it is expanded (systemd.service(5), COMMAND LINES).
    """
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith("-"):
            lines[-1] += f" {_quoted(word)}"
        else:
            lines.append(_quoted(word))
    return " \\\n    ".join(lines)


def _quoted(word: str) -> str:
    if _PLAIN.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'
