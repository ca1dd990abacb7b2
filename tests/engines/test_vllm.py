"""The vLLM engine; skipped where vLLM is not installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from hfray.completion import Prompt
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.engines.making import PROMPTS, assert_tokens_of_generate, make_engine, model_folder


@pytest.mark.parametrize("name", ["vllm-llama"])
def test_the_tokens_are_those_of_transformers(request, name):
    loop, folder = EngineLoop(make_engine(name, request, capacity=3)), model_folder(name, request)
    completions = loop.generate(PROMPTS, GenerationParams(max_new_tokens=16, temperature=0))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert_tokens_of_generate(folder, loop.engine, PROMPTS, completions, 16, model)
    loop.close()


def test_what_vllm_refuses_is_the_rows_error_and_prompts_beyond_a_step_wait(request):
    loop = EngineLoop(make_engine("vllm-llama", request, capacity=16, max_num_batched_tokens=128))
    prompts = [Prompt(f"row number {number} " * 3) for number in range(12)]  # more tokens than one step takes
    sampled = loop.generate(prompts, GenerationParams(max_new_tokens=8, temperature=1.0))
    assert sum(c.num_prompt_tokens for c in sampled) > 128
    assert all(c.error is None for c in sampled)
    hot = loop.generate(PROMPTS[:2], GenerationParams(max_new_tokens=8, temperature=50.0))
    assert all("vLLM refuses" in c.error and "temperature" in c.error for c in hot)
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=8, temperature=0))[0].error is None
    loop.close()


def test_vllm_chooses_as_for_its_own_class(request):
    """Also: no logging of statistics, and no CUDA in this process."""
    engine = make_engine("vllm-llama", request)
    scheduler = engine._vllm.vllm_config.scheduler_config
    assert engine.capacity == scheduler.max_num_seqs >= 256
    assert engine._vllm.log_stats is False
    assert not torch.cuda.is_initialized()
    assert engine.precision == "fp32"
    engine.close()


def test_tokens_that_may_wait_come_in_portions(request):
    loop = EngineLoop(make_engine("vllm-llama", request))
    counts, read = [], loop.engine._read

    def counted(given):
        output = read(given)
        counts.append(len(output.token_ids))
        return output

    loop.engine._read = counted
    params = GenerationParams(max_new_tokens=31, temperature=0, ignore_eos=True, logprobs=0)
    together = loop.generate(PROMPTS[:1], params)[0]
    assert sorted(counts) == [1, 10, 10, 10]
    assert len(together.logprobs) == 31
    counts.clear()
    handle = loop.submit(PROMPTS[0], params, stream=True)
    assert "".join(piece.text for piece in handle) == together.text
    assert counts == [1] * 31
    counts.clear()
    assert loop.generate(PROMPTS[:1], params.with_stop(["never in the text"]))[0].text == together.text
    assert counts == [1] * 31
    loop.close()


OWNER = """
import pathlib, sys, psutil
from hfray.engines.vllm import VLLMEngine
engine = VLLMEngine(pathlib.Path(sys.argv[1]), precision="exact", kv_cache_gib=0.25, enforce_eager=True)
print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
sys.stdin.read()
"""


def test_vllms_processes_end_with_their_owner(tiny_llama):
    pytest.importorskip("vllm", reason="vLLM is not installed: it takes an environment of its own")
    command = [sys.executable, "-c", OWNER, str(tiny_llama)]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    children = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
    assert any("EngineCore" in " ".join(child.cmdline()) for child in children)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left
