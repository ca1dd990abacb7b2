"""The KV cache of a left-padded batch: it grows in place, and rows join and leave."""

from __future__ import annotations

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
    assert batch.mask.tolist() == [[0, 1, 1], [1, 1, 1]]
    for layer, (keys, values) in zip(batch.layers, before, strict=True):
        assert torch.equal(layer.keys, keys[1:, :, 1:])
        assert torch.equal(layer.values, values[1:, :, 1:])


def test_batches_of_different_length_merge_into_one_that_is_padded_on_the_left():
    long, short = filled([[1, 1, 1]]), filled([[0, 1], [1, 1]], start=100)
    expected = [(a.keys, b.keys) for a, b in zip(long.layers, short.layers, strict=True)]
    long.merge(short)
    assert long.mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    for layer, (first, second) in zip(long.layers, expected, strict=True):
        assert torch.equal(layer.keys[:1], first)
        assert torch.equal(layer.keys[1:, :, 1:], second)
        assert not layer.keys[1:, :, 0].any()
    other = filled([[1]], start=300)
    other.merge(long)  # the batch in memory is the shorter one
    assert other.mask.tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 1], [0, 1, 1]]


def test_a_finished_row_stays_masked_while_the_others_run():
    batch = filled([[1, 1], [0, 1]])
    assert batch.extend_mask([True, False]).tolist() == [[1, 1, 1], [0, 1, 0]]
