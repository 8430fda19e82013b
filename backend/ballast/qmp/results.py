"""What the commands return, as types: for introspection, for the reference, and for tests."""

from __future__ import annotations

from ballast.qmp.target_results import RESIZING
from ballast_protocol.qmp.types import (
    ANY,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    UNSIGNED,
    Choice,
    ListOf,
    Member,
    Record,
    optional,
)
from ballast_protocol.virtio.balloon import STATISTICS

VERSION = Record(
    (
        Member(
            "qemu",
            Record(
                (
                    Member("major", INTEGER, "The first part."),
                    Member("minor", INTEGER, "The second."),
                    Member("micro", INTEGER, "The third."),
                ),
                "VersionTriple",
            ),
            "The version of Ballast; the name of this member is the protocol's.",
        ),
        Member("package", STRING, "`ballast-` and the version."),
    ),
    "VersionInfo",
)

COMMAND_INFO = Record((Member("name", STRING, "The command."),), "CommandInfo")

SCHEMA_INFO = Record(
    (
        Member("name", STRING, "The command's, event's or type's name. Types' names mean nothing."),
        Member(
            "meta-type",
            Choice(("builtin", "enum", "array", "object", "alternate", "command", "event")),
            "What it is, and with that which of the other members are there.",
        ),
        Member("json-type", STRING, "Of a builtin type.", is_optional=True),
        Member("element-type", STRING, "Of an array.", is_optional=True),
        Member("members", ListOf(ANY), "Of an object, enum or alternate.", is_optional=True),
        Member("values", ListOf(STRING), "Of an enum.", is_optional=True),
        Member("arg-type", STRING, "Of a command or event.", is_optional=True),
        Member("ret-type", STRING, "Of a command.", is_optional=True),
    ),
    "SchemaInfo",
)

NAME_INFO = Record((Member("name", STRING, "The VM's name."),), "NameInfo")

BALLOON_INFO = Record(
    (Member("actual", INTEGER, "The logical size that the guest says it has, in bytes."),),
    "BalloonInfo",
)

PROPERTY_INFO = Record(
    (
        Member("name", STRING, "The property's name."),
        Member("type", STRING, "Its type; that of a child object is `child<...>`."),
    ),
    "ObjectPropertyInfo",
)

PROPERTY_VALUES = Record(
    (
        Member(
            "properties",
            ListOf(
                Record(
                    (*PROPERTY_INFO.members, Member("value", ANY, "Its value.")),
                    "ObjectPropertyValue",
                )
            ),
            "The object's properties.",
        ),
    ),
    "ObjectPropertiesValues",
)

STATISTICS_BY_NAME = Record(
    tuple(
        Member(each.name, UNSIGNED, f"{each.meaning[0].upper()}{each.meaning[1:]}.")
        for each in STATISTICS
    ),
    "GuestStatistics",
)

BALLAST_STATS = Record(
    (
        Member("stats", STATISTICS_BY_NAME, "All statistics; 2⁶⁴-1 for what was not sent."),
        Member("last-update", INTEGER, "When they came, in Unix seconds; 0: never."),
        Member("age-seconds", optional(NUMBER), "How old they are; null: they never came."),
        Member("fresh", BOOLEAN, "Whether the guest was asked for them by this command."),
    ),
    "BallastStats",
)

LEDGER = Record(
    (
        Member(
            "runs",
            ListOf(ListOf(INTEGER)),
            "Runs of pages of 4 KiB, as `[first page frame, count]`, in ascending order.",
        ),
        Member("block-runs", ListOf(ListOf(INTEGER)), "The same of the agent's blocks."),
    ),
    "BallastLedger",
)

QMP_STATUS = Record(
    (
        Member("clients", INTEGER, "Clients that are connected."),
        Member("connections", INTEGER, "Clients that ever were."),
        Member("dropped", INTEGER, "Clients that were disconnected because they did not read."),
        Member("rejected", INTEGER, "Clients that were sent away because there were too many."),
        Member("malformed", INTEGER, "Documents that were not JSON, or too big, or too deep."),
        Member("commands", INTEGER, "Commands that were executed, refused ones included."),
    ),
    "QmpSocketStatus",
)

KEEPER_STATUS = Record(
    (
        Member("mode", Choice(("none", "parent", "service", "systemd")), "Who keeps."),
        Member("keeper-pid", optional(INTEGER), "The keeper's process; null: there is none."),
        Member("worker-pid", INTEGER, "The process that serves the VM."),
        Member("restarts", INTEGER, "How often a process was replaced because it had ended."),
        Member("upgrades", INTEGER, "How often one was replaced on purpose."),
        Member("last-reason", STRING, "Why this process took over; empty if it is the first."),
        Member("last-gap-seconds", optional(NUMBER), "How long nobody served QEMU before it did."),
        Member("upgrade-attempts", INTEGER, "How often an upgrade was asked for."),
        Member("upgrade-error", STRING, "Why the last one failed; empty if it did not."),
    ),
    "KeeperStatus",
)

QEMU_STATUS = Record(
    (
        Member("socket", STRING, "Where QEMU's own monitor is."),
        Member("connected", BOOLEAN, "Whether it answers."),
        Member("version", optional(STRING), "QEMU's version."),
        Member("run-state", optional(STRING), "QEMU's run state: `running`, `paused`, ..."),
        Member("pid", optional(INTEGER), "QEMU's process."),
        Member("problem", STRING, "Why it does not answer; empty if it does."),
    ),
    "QemuStatus",
)

STATUS = Record(
    (
        Member("name", STRING, "The VM's name."),
        Member("ram-bytes", optional(INTEGER), "The guest's RAM; null before QEMU shared it."),
        Member("target-bytes", optional(INTEGER), "The size asked for; null: all of it."),
        Member("actual-bytes", optional(INTEGER), "The size that the guest says it has."),
        Member(
            "state",
            Choice(("waiting-for-qemu", "waiting-for-driver", "running", "paused")),
            "How far things are.",
        ),
        Member("problem", STRING, "What to look at first; empty if nothing is wrong."),
        Member("settled", BOOLEAN, "Whether the guest has the size that was asked for."),
        Member("resizing", RESIZING, "What is asked of the guest, and what comes of it."),
        Member("ledger", ANY, "Our books: pages given up, and the difference to `actual-bytes`."),
        Member("blocks", ANY, "What the agent in the guest has taken, and how well that works."),
        Member("host", ANY, "What the host holds of the guest's memory, measured in two ways."),
        Member("features", ListOf(STRING), "Features that the guest's driver accepted."),
        Member("features-offered", ListOf(STRING), "Features that it could accept."),
        Member("hinting", ANY, "The round of free-page hints."),
        Member("counters", ANY, "What has happened since the daemon started; its workers go on."),
        Member("transport", ANY, "The connection to QEMU."),
        Member("agent", ANY, "The agent in the guest, with its last report."),
        Member("mqtt", ANY, "The connection to an MQTT broker; null if there should be none."),
        Member("qemu", optional(QEMU_STATUS), "QEMU's own QMP; null if we were not given it."),
        Member("qmp", QMP_STATUS, "The VM's QMP socket."),
        Member("keeper", KEEPER_STATUS, "Who holds QEMU's connection, and what has happened."),
    ),
    "BallastStatus",
)
