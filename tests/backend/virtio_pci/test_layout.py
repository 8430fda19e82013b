"""Regions and what lies where in them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ballast.virtio_pci.layout import (
    CONFIG_REGION,
    MSIX_BAR,
    NOTIFY_MULTIPLIER,
    PAGE_SIZE,
    Variant,
    Window,
    make_layout,
)
from ballast_protocol.errors import InternalError
from ballast_protocol.virtio.pci.config_space import (
    MAX_VECTORS,
    VECTOR_ENTRY_SIZE,
    pending_array_size,
)


def test_the_balloon_gets_the_layout_that_stock_guests_bind() -> None:
    layout = make_layout(Variant.MSIX_MAPPED, queue_count=5, config_size=16)
    assert layout.bars == (0x4000, 0x1000, 0, 0, 0, 0)
    assert (layout.common, layout.isr) == (Window(0, 0, 0x1000), Window(0, 0x1000, 0x1000))
    assert (layout.device, layout.notify) == (Window(0, 0x2000, 0x1000), Window(0, 0x3000, 0x1000))
    assert (layout.vectors, layout.pending_offset) == (6, 0x800)
    assert layout.mapped == layout.device


def test_only_the_mapped_variant_has_something_to_map() -> None:
    for variant in (Variant.MSIX, Variant.INTX):
        assert make_layout(variant, queue_count=5, config_size=16).mapped is None


def test_intx_has_no_msix_at_all() -> None:
    layout = make_layout(Variant.INTX, queue_count=5, config_size=16)
    assert (layout.vectors, layout.bars[MSIX_BAR]) == (0, 0)


def test_a_device_without_configuration_has_no_place_for_it() -> None:
    layout = make_layout(Variant.MSIX_MAPPED, queue_count=1, config_size=0)
    assert (layout.device, layout.mapped) == (None, None)


def test_region_sizes() -> None:
    layout = make_layout(Variant.MSIX, queue_count=5, config_size=16)
    assert [layout.region_size(region) for region in range(-1, 10)] == [
        *(0, 0x4000, 0x1000, 0, 0, 0, 0, 0, 256, 0, 0)
    ]
    express = make_layout(Variant.MSIX, queue_count=5, config_size=16, has_function_reset=True)
    assert express.region_size(CONFIG_REGION) == 4096


@given(st.sampled_from(Variant), st.integers(1, 0xFFFF), st.integers(0, PAGE_SIZE))
def test_everything_fits_and_nothing_overlaps(variant: Variant, queues: int, config: int) -> None:
    layout = make_layout(variant, queue_count=queues, config_size=config)
    windows = [layout.common, layout.isr, layout.notify, *filter(None, [layout.device])]
    windows.sort(key=lambda window: window.offset)
    for window, following in pairwise(windows):
        assert window.offset + window.length <= following.offset
        assert window.offset % PAGE_SIZE == 0
    assert windows[-1].offset + windows[-1].length <= layout.bars[0]
    assert layout.notify.length >= queues * NOTIFY_MULTIPLIER
    assert layout.vectors <= MAX_VECTORS
    if layout.vectors:
        assert layout.vectors * VECTOR_ENTRY_SIZE <= layout.pending_offset
        pending_end = layout.pending_offset + pending_array_size(layout.vectors)
        assert pending_end <= layout.bars[MSIX_BAR]
        assert layout.pending_offset % 8 == 0
    for size in layout.bars:
        assert size & (size - 1) == 0
        assert size == 0 or size >= PAGE_SIZE


@pytest.mark.parametrize(("queues", "config"), [(0, 16), (0x10000, 16), (1, -1), (1, 4097)])
def test_what_does_not_fit_is_our_bug(queues: int, config: int) -> None:
    with pytest.raises(InternalError, match="no layout"):
        make_layout(Variant.MSIX, queue_count=queues, config_size=config)
