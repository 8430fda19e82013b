"""Says in every line of the log which VM it is about, without every line's author knowing.

What a VM does runs in callbacks and tasks that began with its start. They inherit the context in
which it was started, and in that the VM's name is set.
"""

from __future__ import annotations

import logging
from contextvars import Context, ContextVar, copy_context

_vm_name: ContextVar[str] = ContextVar("vm_name", default="")


def context_of(vm_name: str) -> Context:
    """Return a context for everything that is done for a VM."""
    context = copy_context()
    context.run(_vm_name.set, vm_name)
    return context


class VmNameFilter(logging.Filter):
    """Puts the VM's name before a message; to be added to a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, once with the name."""
        name = _vm_name.get()
        if name and not getattr(record, "has_vm_name", False):
            record.msg = f"{name}: {record.getMessage()}"
            record.args = ()
            record.has_vm_name = True
        return True
