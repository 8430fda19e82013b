from __future__ import annotations

from ballast.bench.report import scale_table
from ballast.bench.rows import summarise
from ballast.bench.scale import bench_scale
from ballast_images.progress import SilentReporter


async def test_busy_guests_are_busy_and_the_idle_one_is_answered() -> None:
    found, idle = await bench_scale([1, 3], 1, SilentReporter(), seconds=0.4)
    assert [(each.vms, each.work) for each in found] == [
        (vms, work) for vms in (1, 3) for work in ("inflate", "query-balloon", "config-change")
    ]
    alone, busy = found[0], found[3]
    assert alone.freed_bytes == 0
    assert busy.freed_bytes > 0
    assert busy.host_cpu_seconds > 0
    assert all(each.latency_p99_seconds for each in found if each.work != "inflate")
    assert [each.vms for each in idle] == [3]
    assert scale_table(summarise(found), idle).row_count == 2
