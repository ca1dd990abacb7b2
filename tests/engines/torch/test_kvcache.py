"""The KV cache of a left-padded batch: it grows in place, and rows join and leave."""

from __future__ import annotations

import pytest
import torch

from hfray.engines.torch.kvcache import GROW_BY, BatchCache, GrowingLayer


def states(rows, positions, start=0):
    """Keys and values [rows, 2 heads, positions, 3] in which every number is different."""
    keys = torch.arange(start, start + rows * 2 * positions * 3, dtype=torch.float32).reshape(rows, 2, positions, 3)
    return keys, -keys


def filled(mask, start=0):
    """A batch with two layers whose prompt has been computed."""
    batch = BatchCache(torch.tensor(mask))
    for layer in range(2):
        batch.cache.update(*states(len(mask), len(mask[0]), start + 1000 * layer), layer)
    return batch


def test_a_layer_appends_positions_without_copying_until_its_room_is_used_up():
    layer, whole = GrowingLayer(), states(2, 5)
    keys, values = layer.update(*(state[:, :, :4] for state in whole))
    assert torch.equal(keys, whole[0][:, :, :4])
    address = keys.data_ptr()
    keys, values = layer.update(*(state[:, :, 4:] for state in whole))
    assert torch.equal(keys, whole[0])
    assert torch.equal(values, whole[1])
    assert keys.data_ptr() == address
    more = states(2, GROW_BY, start=500)
    keys, values = layer.update(*more)
    assert torch.equal(keys, torch.cat([whole[0], more[0]], dim=2))
    assert torch.equal(values, torch.cat([whole[1], more[1]], dim=2))
    assert keys.data_ptr() != address
    assert layer.get_seq_length() == 5 + GROW_BY


def test_rows_that_leave_take_their_padding_with_them():
    batch = filled([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
    before = [(layer.keys, layer.values) for layer in batch.layers]
    batch.keep([1, 2])
    batch.trim(3)
    assert batch.mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    for layer, (keys, values) in zip(batch.layers, before, strict=True):
        assert torch.equal(layer.keys, keys[1:, :, 1:])
        assert torch.equal(layer.values, values[1:, :, 1:])


def test_trimming_copies_nothing_and_the_cache_still_grows():
    batch = filled([[0, 1, 1], [0, 0, 1]])
    layer, more = batch.layers[0], states(2, GROW_BY, start=900)
    keys, address = layer.keys, layer.keys.data_ptr()
    batch.trim(2)
    assert torch.equal(layer.keys, keys[:, :, 1:])
    assert layer.keys.data_ptr() == address + keys.stride(-2) * keys.element_size()
    assert layer.get_seq_length() == 2
    for i in range(GROW_BY):
        found, _ = layer.update(*(state[:, :, i : i + 1] for state in more))
    assert torch.equal(found, torch.cat([keys[:, :, 1:], more[0]], dim=2))


def test_new_rows_take_free_slots_without_a_copy_of_the_others():
    batch, new = filled([[1, 1, 1], [0, 1, 1], [1, 1, 1]]), filled([[0, 1], [1, 1]], start=100)
    address, kept = batch.layers[0].keys.data_ptr(), batch.layers[0].keys[1].clone()
    expected = [layer.keys.clone() for layer in new.layers]
    batch.put([0, 2], 3, new)
    assert batch.mask.tolist() == [[0, 0, 1], [0, 1, 1], [0, 1, 1]]
    assert batch.layers[0].keys.data_ptr() == address
    assert torch.equal(batch.layers[0].keys[1], kept)
    for layer, keys in zip(batch.layers, expected, strict=True):
        assert torch.equal(layer.keys[[0, 2], :, 1:], keys)
        assert torch.equal(layer.values[[0, 2], :, 1:], -keys)
        assert not layer.keys[[0, 2], :, 0].any()


@pytest.mark.parametrize("trimmed", [0, 1, 2])
def test_longer_rows_join_and_all_rows_are_padded_on_the_left(trimmed):
    batch, new = filled([[0] * trimmed + [1, 1], [0] * trimmed + [0, 1]]), filled([[1, 1, 1, 1]], start=100)
    batch.trim(2)
    expected = [(a.keys.clone(), b.keys.clone()) for a, b in zip(batch.layers, new.layers, strict=True)]
    for layer in batch.layers:  # buffers are not cleared: what is left of the rows must not matter
        layer._buffers[0][:, :, 2 + trimmed :] = float("nan")
        if trimmed:
            layer._buffers[0][:, :, :trimmed] = float("nan")
    batch.put([2], 3, new)
    assert batch.mask.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    for layer, (old, added) in zip(batch.layers, expected, strict=True):
        assert torch.equal(layer.keys[:2, :, 2:], old)
        assert torch.equal(layer.keys[2:], added)
        assert not layer.keys[:2, :, :2].any()
        assert layer.get_seq_length() == 4


def test_a_finished_row_sees_only_its_newest_position():
    batch = filled([[1, 1], [0, 1]])
    assert batch.extend().tolist() == [[2], [1]]
    batch.set_running([True, False])
    assert batch.extend().tolist() == [[3], [0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    assert batch.extend().tolist() == [[4], [0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
    batch.set_running([True, True])
    assert batch.extend().tolist() == [[5], [1]]
