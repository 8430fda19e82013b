"""Compose and Kubernetes: the same two containers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from ballast.cli import launch as cli_launch
from ballast.cli import serve as cli_serve
from ballast.cli.main import app
from ballast.daemon.config import VmConfig
from ballast.daemon.keeping import default_socket
from ballast.daemon.launch import LaunchPlan
from ballast.daemon.recipes import containers
from ballast.daemon.recipes.compose import compose
from ballast.daemon.recipes.kubernetes import KVM_RESOURCE, kubernetes
from ballast.daemon.recipes.model import Site, dns_label
from support.plans import AWKWARD, debian_files, plan

SITE = Site()
EVERY = [
    plan(),
    plan(*AWKWARD, target="512M"),
    plan(accelerator="tcg", transport="vfio-user", variant="intx"),
]
KUBERNETES = "1.31"
"""Sidecars have a field of their own since 1.29."""


def pod(vm: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(kubernetes(vm, SITE).files[0].text)
    return document


def project(vm: Any) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(compose(vm, SITE).files[0].text)
    return document


# What runs in them -----------------------------------------------------------------------------


@pytest.mark.parametrize("vm", EVERY)
def test_the_container_of_qemu_runs_the_plan(vm: LaunchPlan) -> None:
    planned: list[Any] = []

    async def beside(plan: LaunchPlan, timeout_seconds: float) -> int:
        planned.append(timeout_seconds)
        return 0

    def plan_here(*what: Any) -> LaunchPlan:
        planned.extend(what)
        return vm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_launch, "launch_beside", beside)
        patch.setattr(cli_launch, "_plan_here", plan_here)
        result = CliRunner().invoke(app, containers.vm_arguments(vm))
    assert result.exit_code == 0, result.output
    config, qemu, memory_bytes, cpus, accelerator, arguments, timeout_seconds = planned
    # What the balloon is to do, the worker is told.
    assert config == vm.config.model_copy(update={"target": None})
    assert (qemu, memory_bytes, cpus, accelerator) == (None, 1 << 30, 2, vm.accelerator)
    assert arguments == (("-display", "none", *vm.arguments) if vm.arguments else ())
    assert timeout_seconds == containers.WAIT_SECONDS


def test_the_worker_serves_the_plan_from_the_keeper() -> None:
    vm = plan(target="512M", transport="vfio-user", variant="intx")
    served: dict[str, Any] = {}

    def serve(load: Callable[[], list[VmConfig]], **options: Any) -> None:
        served.update(options, configs=load())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_serve, "serve_kept", serve)
        result = CliRunner().invoke(app, containers.worker_arguments(vm, SITE))
    assert result.exit_code == 0, result.output
    (config,) = served["configs"]
    assert config == vm.config.model_copy(update={"qemu_qmp": SITE.paths(vm).monitor})
    assert served["keeper"] == str(default_keeper(SITE))
    assert served["keeper_timeout_seconds"] == containers.WAIT_SECONDS


def default_keeper(site: Site) -> Path:
    """Where `ballast launch --keeper` has its keeper, in an image with this runtime directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALLAST_RUNTIME_DIR", str(site.runtime))
        return default_socket()


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
    words = [each.replace("$$", "$") for each in services["vm"]["command"]]
    assert words == containers.vm_arguments(vm)
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
    words = pod(plan(*AWKWARD))["spec"]["containers"][0]["args"]
    assert not any(re.search(r"(?<!\$)\$\(", each) for each in words)
    assert [each.replace("$$(", "$(") for each in words] == containers.vm_arguments(plan(*AWKWARD))


@pytest.mark.parametrize(
    ("name", "label"), [("web", "web"), ("Web.1_x", "web-1-x"), ("a-", "a"), ("a" * 64, "a" * 63)]
)
def test_names_are_made_what_containers_may_have(name: str, label: str) -> None:
    assert dns_label(name) == label
