"""What a worker must not forget when it is killed, in shared memory that outlives it.

A `StateFile` is one memory file of one VM. It holds *records*, which are replaced as a whole, and
*cells*, single 32-bit numbers for what changes with every buffer. A worker may be killed at any
instruction: who opens the file next finds of each record the old contents or the new, never a
mixture.

How a session uses it::

    file = StateFile.create()                    # a fresh VM ...
    store.put("VM/state", file.fd)               # ... whose state the keeper holds from here on
    file = StateFile.open(left["VM/state"])      # or that of a predecessor; StateError if unusable

    sessions = Document(file.record("session"), SessionState)
    sessions.save(SessionState(...))             # after each change, as a whole
    state = sessions.load()                      # None if nothing was ever saved

    file.cells[3] = position                     # one store; never half of it

One record per thing that must be consistent in itself: two records are two moments. What a field
means is its owner's matter. `Document` makes JSON of dataclasses: fields may be added with a
default at any time, and an older version skips what it does not know; a change that an older
version would misread needs a higher format.
"""
