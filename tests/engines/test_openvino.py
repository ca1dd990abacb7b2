"""The OpenVINO engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfray.engines.openvino import PrefixIndex
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.engines.making import PROMPTS, assert_tokens_of_generate, make_engine, model_folder


@pytest.mark.parametrize("name", ["openvino-gpt2"])
def test_the_tokens_are_those_of_transformers(request, name):
    loop, folder = EngineLoop(make_engine(name, request, capacity=3)), model_folder(name, request)
    completions = loop.generate(PROMPTS, GenerationParams(max_new_tokens=16, temperature=0))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert_tokens_of_generate(folder, loop.engine, PROMPTS, completions, 16, model)
    loop.close()


@pytest.mark.parametrize("values", [{"top_p": 0, "temperature": 1}, {"no_repeat_ngram_size": 2, "temperature": 0}])
def test_what_openvino_refuses_is_the_rows_error(request, values):
    loop = EngineLoop(make_engine("openvino-gpt2", request))
    assert next(iter(values)) in loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, **values))[0].error
    assert loop.generate(PROMPTS[:1], GenerationParams(max_new_tokens=4, temperature=0))[0].error is None
    loop.close()


def test_prefixes_are_found_in_whole_blocks_and_the_oldest_forgotten():
    index = PrefixIndex(tokens=8 * 32)
    head = list(range(64))
    assert index.add([*head, 1, 2, 3]) == 0
    assert index.add([*head, 4, 5, 6]) == 64
    assert index.add([9, *head]) == 0  # a beginning, not a part
    assert index.add(head) == 63  # the last token is computed in any case
    index.add(list(range(1000, 1000 + 8 * 32)))
    assert index.add([*head, 1, 2, 3]) == 0


def test_engines_side_by_side_do_not_pin_their_threads_to_the_same_cores(tiny_gpt2_ir):
    """With OpenVINO's default, every process takes the first cores of the machine."""
    code = (
        "import os, pathlib; from hfray.engines.load import load_engine; from hfray.inference.loop import *;"
        "from hfray.params import GenerationParams; from tests.conftest import batch_settings;"
        f"folder = pathlib.Path({str(tiny_gpt2_ir)!r}); settings = batch_settings('input.path=-', 'output.path=-');"
        "EngineLoop(load_engine(settings, folder=folder, threads=1)).generate([Prompt('Hello')], GenerationParams());"
        "print({len(os.sched_getaffinity(int(thread))) for thread in os.listdir('/proc/self/task')}, flush=True);"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == str({len(os.sched_getaffinity(0))})


def test_the_first_prompts_may_come_from_several_threads_at_once(tiny_gpt2_ir):
    """OpenVINO's Python binding deadlocks if two threads are the first to read a tensor."""
    code = (
        "import pathlib, sys, threading; from hfray.engines.openvino import OpenVINOTokenizer;"
        "sys.setswitchinterval(1e-6);"
        f"tokenizer, start = OpenVINOTokenizer(pathlib.Path({str(tiny_gpt2_ir)!r})), threading.Barrier(8);"
        "first = lambda: (start.wait(), tokenizer.encode('Hello'));"
        "threads = [threading.Thread(target=first) for _ in range(8)];"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    )
    for _ in range(3):  # without the workaround, more than half of the tries hung
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_openvino_needs_no_torch_and_no_transformers(tiny_gpt2_ir):
    code = (
        "import sys, pathlib; from hfray.engines.openvino import OpenVINOEngine; from hfray.batch.worker import Worker;"
        f"OpenVINOEngine(pathlib.Path({str(tiny_gpt2_ir)!r}), kv_cache_gib=1);"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("made", ["OpenVINOTokenizer(folder)", "OpenVINOEngine(folder, kv_cache_gib=1)"])
def test_a_signal_after_another_thread_dropped_what_this_one_loaded(tiny_gpt2_ir, made):
    """The signal handlers' stack was freed with the tokenizer: SIGINT ended the process with SIGSEGV."""
    code = (
        "import pathlib, signal, threading; from hfray.engines.openvino import OpenVINOEngine, OpenVINOTokenizer;"
        f"folder = pathlib.Path({str(tiny_gpt2_ir)!r}); held = [{made}];"
        "thread = threading.Thread(target=held.clear); thread.start(); thread.join();"
        "signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.endswith("KeyboardInterrupt\n"), done.returncode
