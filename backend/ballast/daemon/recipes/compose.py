"""A Compose project: QEMU with its keeper, and the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ballast.daemon.launch import LaunchPlan
from ballast.daemon.recipes import containers
from ballast.daemon.recipes.model import Recipe, RecipeFile, Site, dns_label
from ballast.daemon.recipes.yaml_text import yaml_text

_COMMENT = "A VM whose balloon is in a container of its own, which may be replaced while it runs."


def compose(plan: LaunchPlan, site: Site) -> Recipe:
    """Return the project, for `docker compose` and `podman-compose`."""
    document = {
        "name": dns_label(plan.config.name),
        "services": {"balloon": _worker(plan, site), "vm": _vm(plan, site)},
        "volumes": {"run": {}},
    }
    text = yaml_text(_literal(document), _COMMENT)
    socket = site.paths(plan).qemu_qmp
    steps = (
        "docker compose up --detach",
        "docker compose exec balloon ballast status",
        "Shut the guest down before `docker compose down`, which only gives it the time to flush: "
        f"echo system_powerdown | docker compose exec -T vm qmp-shell {socket}",
        "Upgrade the balloon: docker compose up --detach --no-deps balloon",
        *_kvm_steps(plan),
        "The worker has no network; to report to an MQTT broker give it one, and --mqtt.",
        *containers.common_steps(plan),
    )
    return Recipe((RecipeFile(Path("compose.yaml"), text),), steps)


def _kvm_steps(plan: LaunchPlan) -> tuple[str, ...]:
    if plan.accelerator != "kvm":
        return ()
    return (
        "Where /dev/kvm is not for everybody, add group_add: with the number of its group to vm "
        "(stat --format=%g /dev/kvm).",
    )


def _service(image: str, site: Site, memory_bytes: int) -> dict[str, Any]:
    return {
        "image": image,
        "user": f"{containers.USER_ID}:{containers.USER_ID}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "tmpfs": ["/tmp"],
        "volumes": [f"run:{site.runtime}"],
        "mem_limit": memory_bytes,
    }


def _worker(plan: LaunchPlan, site: Site) -> dict[str, Any]:
    return {
        **_service(site.backend_image, site, containers.WORKER_MEMORY_BYTES),
        "command": containers.worker_arguments(plan, site),
        "network_mode": "none",
        "restart": "unless-stopped",
    }


def _vm(plan: LaunchPlan, site: Site) -> dict[str, Any]:
    kvm = {"devices": ["/dev/kvm"]} if plan.accelerator == "kvm" else {}
    return {
        **_service(site.vm_image, site, containers.vm_memory_bytes(plan)),
        # It starts after the worker, and so is ended before it.
        "depends_on": ["balloon"],
        "command": containers.vm_arguments(plan),
        "stop_grace_period": "30s",
        "restart": "on-failure",
        **kvm,
    }


def _literal(value: Any) -> Any:
    """Return a document of which nothing is taken for a variable: `$` is written twice."""
    if isinstance(value, dict):
        return {key: _literal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_literal(each) for each in value]
    return value.replace("$", "$$") if isinstance(value, str) else value
