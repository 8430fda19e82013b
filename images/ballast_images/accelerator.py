"""Whether KVM runs guests here, proved by running one; a device file that opens proves nothing.

Under nested virtualization `/dev/kvm` may open and even start a BIOS, and then die on the first
instruction that its emulator does not know. So the proof boots a sector that does what a kernel's
first instructions do: it turns on paging and long mode, asks CPUID over and over, and uses a
VEX-encoded instruction (SHLX) where the processor offers it. Kernels that were seen to fail, fail
on exactly that.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ballast_images.cache import cache_dir, write_whole
from ballast_images.qemu import Qemu

KVM_DEVICE = Path("/dev/kvm")

PROOF_TIMEOUT_S = 10.0
"""How long the sector may take; KVM needs a tenth of a second for it."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_EXIT_PORT = 0xF4
_EXIT_VALUE = 0x20
_EXIT_STATUS = _EXIT_VALUE << 1 | 1  # isa-debug-exit ends QEMU with this
_DISK_BYTES = 1440 << 10  # SeaBIOS does not read disks that are too small to have a geometry
_KVM_FAILED = "KVM internal error"

_LISTING = """
fa 31c0 8ed8 8ec0 8ed0 bc007c       cli; ds = es = ss = 0; sp = 0x7c00
bf0010 b90018 fc f3ab               zero 0x1000-0x3fff, for three levels of page tables
c70600100320                        PML4[0] = 0x2000, present, writable
c70600200330                        PDPT[0] = 0x3000, present, writable
c70600308300                        PD[0] = 0, present, writable, 2 MiB
66b800100000 0f22d8                 cr3 = 0x1000
66b820000000 0f22e0                 cr4.PAE = 1
66b9800000c0 0f32 0d0001 0f30       EFER.LME = 1
0f0116b87c                          lgdt [0x7cb8]
0f20c0 660d01000080 0f22c0          cr0.PE = cr0.PG = 1
ea5c7c0800                          jump to 0x7c5c, 64-bit
b810000000 8ed8 8ed0 bd64000000     ds = ss = 0x10; 100 rounds of
31c0 0fa2 83f807 721e                 CPUID leaf 0; no leaf 7: next round
b807000000 31c9 0fa2 0fbae308 730f    CPUID leaf 7; no BMI2: next round
ba03000000 c4e269f7c2 83f818 7508     SHLX: 3 << 3 has to be 24, else halt
ffcd 75d5                             next round
b020 e6f4                           outb(0xf4, 0x20): QEMU ends
f4 ebfd 0f1f4000                    halt
0000000000000000                    GDT at 0x7ca0: null
00000000009a2000                    64-bit code
0000000000920000                    data
1700 a07c0000                       GDT pointer at 0x7cb8: 23 bytes + 1 at 0x7ca0
"""
"""The sector's code at 0x7c00: machine code, and after two spaces or more what it does."""


@dataclass(frozen=True)
class Accelerator:
    """What runs a guest's instructions.

    Attributes:
        name: `kvm`, or `tcg`, which emulates and works everywhere.
        reason: Why not KVM, or how it was proved.
    """

    name: Literal["kvm", "tcg"]
    reason: str


def boot_sector() -> bytes:
    """Return the 512 bytes that prove an accelerator."""
    code = "".join(line.partition("  ")[0] for line in _LISTING.splitlines())
    return bytes.fromhex(code).ljust(510, b"\0") + b"\x55\xaa"


def accelerator(qemu: Qemu) -> Accelerator:
    """Return the best accelerator that has really run something under `qemu` on this machine.

    A proof holds until the machine boots again; it is kept in the cache.
    """
    if not KVM_DEVICE.exists():
        return Accelerator("tcg", f"this machine has no {KVM_DEVICE}")
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Accelerator("tcg", f"no permission to use {KVM_DEVICE}")
    proofs = cache_dir() / "accelerator.json"
    key = f"{_BOOT_ID.read_text().strip()} {qemu.command} {qemu.version}"
    try:
        known = json.loads(proofs.read_text())
        return Accelerator(**known[key])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = _prove(qemu)
    write_whole(proofs, json.dumps({key: asdict(found)}).encode())
    return found


def _prove(qemu: Qemu) -> Accelerator:
    failure = run_proof(qemu, "kvm")
    if failure is None:
        return Accelerator("kvm", "a boot sector ran under KVM")
    return Accelerator("tcg", f"KVM cannot run a guest here: {failure}")


def run_proof(qemu: Qemu, name: str, *, timeout_s: float = PROOF_TIMEOUT_S) -> str | None:
    """Boot the sector under one accelerator; return why that failed, or None if it did not."""
    with tempfile.TemporaryDirectory(prefix="ballast-proof-") as directory:
        disk = Path(directory) / "disk"
        disk.write_bytes(boot_sector().ljust(_DISK_BYTES, b"\0"))
        command = [
            *(str(qemu.command), "-no-user-config", "-nodefaults", "-display", "none"),
            *("-machine", "q35", "-accel", name, "-cpu", "max", "-m", "64M", "-no-reboot"),
            *("-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=1"),
            *("-drive", f"file={disk},format=raw,if=ide"),
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            timer = threading.Timer(timeout_s, process.kill)
            timer.start()
            said = _listen(process)
            timer.cancel()
    if process.returncode == _EXIT_STATUS:
        return None
    return said or f"the sector did not end within {timeout_s:g} s"


def _listen(process: subprocess.Popen[bytes]) -> str:
    """Return QEMU's first complaint; end QEMU if it has given up on the guest."""
    said = ""
    for line in process.stderr or ():
        said = said or line.decode(errors="replace").strip()
        if _KVM_FAILED in said:
            process.kill()
            break
    return said
