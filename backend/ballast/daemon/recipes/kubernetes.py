"""A Kubernetes pod: QEMU with its keeper, and the worker as a sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ballast.daemon.launch import LaunchPlan
from ballast.daemon.recipes import containers
from ballast.daemon.recipes.model import Recipe, RecipeFile, Site, dns_label
from ballast.daemon.recipes.yaml_text import yaml_text

KVM_RESOURCE = "devices.kubevirt.io/kvm"
"""How a pod that needs not be privileged gets /dev/kvm: by KubeVirt's device plugin, or another."""

_COMMENT = """\
A VM with its balloon as a sidecar (Kubernetes 1.29 or later): it is there before QEMU, and ended
after it. It may be killed and restarted while the VM runs."""

_MIB = 1 << 20


def kubernetes(plan: LaunchPlan, site: Site) -> Recipe:
    """Return the pod."""
    name = dns_label(plan.config.name)
    text = yaml_text(_pod(plan, site, name), _COMMENT)
    steps = (
        "Push both images where the cluster pulls from, and name them in the pod.",
        f"kubectl apply -f {name}.yaml",
        f"kubectl exec {name} -c balloon -- ballast status",
        "Guest memory is charged to the container qemu; as the balloon inflates the charge falls.",
        *_kvm_steps(plan),
        *containers.common_steps(plan),
    )
    return Recipe((RecipeFile(Path(f"{name}.yaml"), text),), steps)


def _kvm_steps(plan: LaunchPlan) -> tuple[str, ...]:
    if plan.accelerator != "kvm":
        return ()
    return (
        f"{KVM_RESOURCE} is a device plugin's: your cluster's may have another name. Where "
        "/dev/kvm is not for everybody, add its group to supplementalGroups.",
    )


def _pod(plan: LaunchPlan, site: Site, name: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "ballast", "app.kubernetes.io/instance": name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            # A guest that has shut down has ended well.
            "restartPolicy": "OnFailure",
            "terminationGracePeriodSeconds": 120,
            "securityContext": _pod_security(),
            "initContainers": [_worker(plan, site)],
            "containers": [_qemu(plan, site)],
            "volumes": [
                {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


def _pod_security() -> dict[str, Any]:
    user = containers.USER_ID
    return {
        "runAsNonRoot": True,
        **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), user),
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(name: str, image: str, site: Site) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "env": [{"name": "BALLAST_RUNTIME_DIR", "value": str(site.runtime)}],
        "securityContext": {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "run", "mountPath": str(site.runtime)},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _worker(plan: LaunchPlan, site: Site) -> dict[str, Any]:
    return {
        **_container("balloon", site.backend_image, site),
        # This makes it a sidecar. It must not have a startup probe: it waits for the keeper, which
        # begins after it.
        "restartPolicy": "Always",
        "args": containers.worker_arguments(plan, site),
        "resources": _resources(containers.WORKER_MEMORY_BYTES),
        # A worker that hangs is replaced, and the guest goes on. It serves as soon as QEMU's
        # container is there, which may have to be pulled.
        "livenessProbe": {
            "exec": {"command": ["ballast", "status", "--check"]},
            "initialDelaySeconds": containers.WAIT_SECONDS,
            "periodSeconds": 30,
            "timeoutSeconds": 20,
        },
    }


def _qemu(plan: LaunchPlan, site: Site) -> dict[str, Any]:
    devices = {KVM_RESOURCE: "1"} if plan.accelerator == "kvm" else {}
    power_down = ["/bin/sh", "-ec", containers.power_down_script(plan, site)]
    return {
        **_container("qemu", site.vm_image, site),
        "args": [_not_expanded(each) for each in containers.vm_arguments(plan)],
        "resources": _resources(containers.vm_memory_bytes(plan), **devices),
        "lifecycle": {"preStop": {"exec": {"command": power_down}}},
    }


def _resources(memory_bytes: int, **devices: str) -> dict[str, Any]:
    memory = {"memory": f"{-(-memory_bytes // _MIB)}Mi"}
    return {"requests": memory | {"cpu": "100m"}, "limits": memory | devices}


def _not_expanded(word: str) -> str:
    """Return an argument in which Kubernetes sees no `$(VARIABLE)`."""
    return word.replace("$(", "$$(")
