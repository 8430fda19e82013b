"""Compose and Kubernetes: the same two containers."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ballast.daemon.recipes import containers
from ballast.daemon.recipes.compose import compose
from ballast.daemon.recipes.kubernetes import KVM_RESOURCE, kubernetes
from ballast.daemon.recipes.model import Site, dns_label
from support.plans import AWKWARD, debian_files, from_shell, plan

SITE = Site()
EVERY = [plan(), plan(*AWKWARD), plan(accelerator="tcg", transport="vfio-user")]
KUBERNETES = "1.31"
"""Sidecars have a field of their own since 1.29."""


def pod(vm: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(kubernetes(vm, SITE).files[0].text)
    return document


def project(vm: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(compose(vm, SITE).files[0].text)
    return document


# What runs in them -----------------------------------------------------------------------------


def qemu_of(script: str) -> list[str]:
    return from_shell(script.partition("exec ")[2])


def test_qemu_is_told_what_the_plan_says() -> None:
    vm = plan(*AWKWARD)
    program, *words = qemu_of(containers.vm_script(vm, SITE))
    assert program == "qemu-system-x86_64"
    expected = vm.command(SITE.paths(vm))[1 : -len(AWKWARD)]
    assert words == [*expected, "-display", "none", *AWKWARD]


def programs(directory: Path) -> dict[str, str]:
    """Return an environment in which keeper and QEMU are scripts that say what they were told."""
    for name in ("ballast", "qemu-system-x86_64"):
        script = directory / name
        script.write_text(
            f'#!/bin/sh\nfor each in "$@"; do printf "%s\\0" "$each"; done >{directory}/{name}.said'
            f"\nmv {directory}/{name}.said {directory}/{name}.told\n"
        )
        script.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


def told(directory: Path, name: str) -> Sequence[str]:
    return (directory / f"{name}.told").read_text().split("\0")[:-1]


def test_qemu_starts_when_the_worker_listens(tmp_path: Path) -> None:
    site, vm = Site(runtime=tmp_path / "run"), plan(*AWKWARD)
    site.paths(vm).directory.mkdir(parents=True)
    script = containers.vm_script(vm, site)
    process = subprocess.Popen(["/bin/sh", "-ec", script], env=programs(tmp_path))
    with socket.socket(socket.AF_UNIX) as listener:
        keeper, deadline = tmp_path / "ballast.told", time.monotonic() + 60
        while not keeper.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not (tmp_path / "qemu-system-x86_64.told").exists()
        listener.bind(str(site.paths(vm).vhost_user))
        assert process.wait(60) == 0
    assert told(tmp_path, "ballast") == ["keeper", "--socket", f"{tmp_path}/run/keeper.sock"]
    assert told(tmp_path, "qemu-system-x86_64") == qemu_of(script)[1:]


def test_both_speak_of_the_same_keeper() -> None:
    words = containers.worker_arguments(plan(), SITE)
    assert words[words.index("--keeper") + 1] in containers.vm_script(plan(), SITE)


# Compose ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose_program() -> list[str]:
    """What reads Compose files here; of no engine is anything asked."""
    installed = shutil.which("docker-compose")
    if installed is not None:
        return [installed]
    root = debian_files("compose", "docker-compose")
    return [str(root / "usr/libexec/docker/cli-plugins/docker-compose")]


def as_read(program: list[str], path: Path) -> subprocess.CompletedProcess[str]:
    command = [*program, "-f", str(path), "config", "--format", "json"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("vm", EVERY)
def test_compose_reads_what_was_meant(tmp_path: Path, compose_program: list[str], vm: Any) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(compose(vm, SITE).files[0].text)
    result = as_read(compose_program, path)
    assert (result.returncode, result.stderr) == (0, "")
    services = json.loads(result.stdout)["services"]
    # It prints what could be read again, `$` written twice.
    script = services["vm"]["command"][0].replace("$$", "$")
    assert script == containers.vm_script(vm, SITE)
    assert services["balloon"]["command"] == containers.worker_arguments(vm, SITE)
    assert list(services["vm"]["depends_on"]) == ["balloon"]


def test_compose_would_say_so(tmp_path: Path, compose_program: list[str]) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(compose(plan(), SITE).files[0].text.replace("cap_drop", "cap_dropped"))
    result = as_read(compose_program, path)
    assert result.returncode != 0
    assert "cap_dropped" in result.stderr


def test_nobody_is_root_in_compose() -> None:
    for service in project(plan())["services"].values():
        assert service["user"] == "65534:65534"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert project(plan())["services"]["vm"]["devices"] == ["/dev/kvm"]
    assert "devices" not in project(plan(accelerator="tcg"))["services"]["vm"]


# Kubernetes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vm", EVERY)
def test_kubernetes_knows_every_field(vm: Any) -> None:
    kubernetes_validate.validate(pod(vm), KUBERNETES, strict=True)


def test_kubernetes_would_not_accept_another() -> None:
    wrong = pod(plan())
    wrong["spec"]["containers"][0]["securityContext"]["readOnlyRoot"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_the_worker_is_a_sidecar_that_waits_for_the_keeper() -> None:
    (worker,) = pod(plan())["spec"]["initContainers"]
    assert worker["restartPolicy"] == "Always"
    assert "startupProbe" not in worker, "QEMU's container would wait for it, and it for that"
    assert worker["args"] == containers.worker_arguments(plan(), SITE)


def test_nobody_is_root_in_kubernetes() -> None:
    spec = pod(plan())["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    for each in (*spec["initContainers"], *spec["containers"]):
        security = each["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {"name": "run", "mountPath": "/run/ballast"} in each["volumeMounts"]
    assert {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}} in spec["volumes"]


def test_qemu_may_use_the_guests_memory_and_some_more() -> None:
    (qemu,) = pod(plan())["spec"]["containers"]
    assert qemu["resources"]["limits"] == {"memory": "1536Mi", KVM_RESOURCE: "1"}


def test_kubernetes_expands_nothing() -> None:
    (script,) = pod(plan(*AWKWARD))["spec"]["containers"][0]["args"]
    assert not re.search(r"(?<!\$)\$\(", script)
    assert script.replace("$$(", "$(") == containers.vm_script(plan(*AWKWARD), SITE)


@pytest.mark.parametrize(
    ("name", "label"), [("web", "web"), ("Web.1_x", "web-1-x"), ("a-", "a"), ("a" * 64, "a" * 63)]
)
def test_names_are_made_what_containers_may_have(name: str, label: str) -> None:
    assert dns_label(name) == label
