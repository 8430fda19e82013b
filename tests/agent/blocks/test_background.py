from __future__ import annotations

import threading

from ballast_agent.blocks.background import Worker


def test_jobs_are_done_in_order_in_a_thread_and_reported_in_the_loop() -> None:
    awake = threading.Semaphore(0)
    worker = Worker(awake.release)
    told: list[object] = []
    assert not worker.collect()
    for number in range(3):
        worker.submit(
            lambda: told.append(threading.current_thread() is threading.main_thread()),
            lambda seconds, number=number: told.append((number, seconds >= 0.0)),  # type: ignore[misc]
        )
    for _ in range(3):
        assert awake.acquire(timeout=20)
    assert told == [False, False, False]
    assert worker.collect()
    assert told[3:] == [(0, True), (1, True), (2, True)]
    assert not worker.collect()
