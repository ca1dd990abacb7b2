"""The engine on a GPU that is not there: no hidden wait for the device, no tensor on the wrong device, few operations."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from hfray.engines.base import Request
from hfray.params import GenerationParams
from tests.engines.torch.fakecuda import Operations, fake_cuda, fake_engine

MODELS = ["bloom", "gpt2", "llama"]
ROWS = 256
SETTINGS = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8},
    "top_k": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    "top_p": {"temperature": 0.8, "top_p": 0.9},
    "penalties": {
        "temperature": 0.8,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 2,
    },
    "greedy, penalties": {"temperature": 0, "repetition_penalty": 1.2},
    "logprobs": {"temperature": 0, "logprobs": 3},
}


def add(engine, count, start=0, length=9, new=6, **params):
    params = GenerationParams(max_new_tokens=new, ignore_eos=True, **(params or {"temperature": 0}))
    for i in range(start, start + count):
        ids = [1 + (i + j) % 300 for j in range(length + i % 5)]
        engine.add(Request(id=i, prompt_ids=ids, max_new_tokens=new + i % 3, params=params, seed=i))


def run(engine):
    finished = {}
    while engine.num_unfinished:
        for output in engine.step():
            if output.finish_reason is not None or output.error is not None:
                finished[output.request_id] = output.error
    return finished


def test_the_fake_gpu_raises_where_a_real_one_would_wait():
    with FakeTensorMode():
        tensor = torch.ones(3, device="cuda").cumsum(0)
        with pytest.raises(DataDependentOutputException):
            tensor.tolist()
        with pytest.raises(Exception, match="device"):
            tensor + torch.ones(3)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("settings", list(SETTINGS))
def test_prefill_decode_refill_and_drop_read_the_gpu_once_in_a_step(model, settings, monkeypatch):
    with fake_cuda(monkeypatch) as reads:
        engine = fake_engine(model, capacity=16)
        add(engine, 40, **SETTINGS[settings])
        steps = 0
        with Operations() as operations:
            while engine.num_unfinished:
                engine.step()
                steps += 1
        assert steps >= len(reads)
        assert operations.counts["from GPU"] == 0  # `reads` are the only ones
        assert operations.counts["to GPU, with a wait"] == 0


def step_counts(model, settings, monkeypatch):
    """Counts of one decoding step of 256 rows, and of the model's forward alone."""
    with fake_cuda(monkeypatch) as reads:
        engine = fake_engine(model)
        add(engine, ROWS, new=20, **SETTINGS[settings])
        while engine.num_running < ROWS or engine._waiting:
            engine.step()
        engine.step()
        reads.clear()
        with Operations() as whole:
            engine.step()
        assert engine.num_running == ROWS
        assert len(reads) == 1
        batch = engine._batch
        with Operations() as forward, torch.inference_mode():
            positions = batch.cache.extend()
            with Operations() as forward:
                engine._forward(batch.last[:, None], positions, batch.cache)
    return whole.counts, forward.counts


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("settings", "operations", "copies"), [("greedy", 6, 0), ("sampled", 60, 2), ("top_k", 95, 2)])
def test_a_step_of_256_rows_has_few_operations_and_copies(model, settings, operations, copies, monkeypatch):
    whole, forward = step_counts(model, settings, monkeypatch)
    assert whole["operations"] - forward["operations"] <= operations
    assert whole["to GPU"] <= copies
    assert whole["to GPU, with a wait"] == whole["from GPU"] == 0
