"""Takes memory out of the guest's hands in blocks of 2 MiB, reports it, and gives it back in time.

The kernel's pool of huge pages is what does it: to grow the pool takes free blocks out of the page
allocator without touching them, a file on hugetlbfs reserves them beyond the agent's own death, and
`/proc/kpageflags` tells where they are. `docs/agent.md` has the whole argument.

From top to bottom: `manager` decides what happens next; `book`, `limits`, `plan`, `sweeps` and
`freemap` are values and rules without any I/O; `pool` works on a `kernel`; `linux` is the real one.
"""
