from __future__ import annotations

import stat

from hypothesis import given
from hypothesis import strategies as st

from ballast_images.cpio import Entry, archive

HEADER_BYTES = 110


def read(data: bytes) -> dict[str, tuple[dict[str, int], bytes]]:
    """Read an archive the way the kernel does (init/initramfs.c): field by field, padded to 4."""
    names = "ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize"
    found: dict[str, tuple[dict[str, int], bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        words = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        fields = dict(zip(names.split(), words, strict=False))
        name_end = at + HEADER_BYTES + fields["namesize"]
        name = data[at + HEADER_BYTES : name_end - 1].decode()
        assert data[name_end - 1] == 0
        start = -(-name_end // 4) * 4
        end = start + fields["filesize"]
        if name == "TRAILER!!!":
            assert len(data) == -(-end // 4) * 4
            return found
        found[name] = fields, data[start:end]
        at = -(-end // 4) * 4


def test_files_links_and_directories_come_back() -> None:
    entries = read(
        archive(
            [
                Entry.file("usr/bin/tool", b"#!", is_executable=True),
                Entry.file("etc/text", b"abc"),
                Entry.link("bin", "usr/bin"),
                Entry.directory("proc"),
            ]
        )
    )
    assert list(entries) == ["bin", "etc", "etc/text", "proc", "usr", "usr/bin", "usr/bin/tool"]
    modes = {name: fields["mode"] for name, (fields, _) in entries.items()}
    assert modes["usr/bin/tool"] == stat.S_IFREG | 0o755
    assert modes["etc/text"] == stat.S_IFREG | 0o644
    assert modes["bin"] == stat.S_IFLNK | 0o777
    assert modes["usr"] == modes["proc"] == stat.S_IFDIR | 0o755
    assert entries["bin"][1] == b"usr/bin"
    assert entries["etc/text"][1] == b"abc"


def test_nothing_of_the_builder_gets_in() -> None:
    for fields, _ in read(archive([Entry.file("a/b", b"x")])).values():
        assert (fields["uid"], fields["gid"], fields["mtime"]) == (0, 0, 0)


def test_the_later_entry_counts() -> None:
    entries = read(archive([Entry.file("a", b"1"), Entry.file("a", b"2")]))
    assert entries["a"][1] == b"2"


paths = st.lists(st.text("abc.-é", min_size=1, max_size=6), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(paths, st.binary(max_size=20)))
def test_order_does_not_matter_and_contents_survive(files: dict[str, bytes]) -> None:
    # A file cannot also be a directory above another one.
    usable = {
        path: data
        for path, data in files.items()
        if not any(other.startswith(f"{path}/") for other in files)
    }
    entries = [Entry.file(path, data) for path, data in usable.items()]
    first = archive(entries)
    assert archive(reversed(entries)) == first
    found = read(first)
    assert {path: found[path][1] for path in usable} == usable
    numbers = [fields["ino"] for fields, _ in found.values()]
    assert len(set(numbers)) == len(numbers)
