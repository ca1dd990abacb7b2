"""Encoder-decoder models: the same texts as the model's own `generate`, through transformers and OpenVINO."""

from __future__ import annotations

import json

import pytest
import torch

from hfray.batch.job import run_batch
from hfray.completion import Prompt
from hfray.engines.base import Request
from hfray.engines.torch.seq2seq import Seq2SeqEngine
from hfray.errors import ExitCode
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.conftest import QUESTIONS, batch_settings

PROMPTS = [Prompt(question) for question in QUESTIONS]
GREEDY = GenerationParams(max_new_tokens=12, temperature=0)


@pytest.fixture
def loop(tiny_t5):
    loop = EngineLoop(Seq2SeqEngine.from_folder(tiny_t5, precision="exact", capacity=3))
    yield loop
    loop.close()


@pytest.fixture
def t5_with_tasks(tiny_t5, tmp_path):
    """The T5 with settings for its tasks, as the real ones have them."""
    folder = tmp_path / "t5"
    folder.mkdir()
    for path in tiny_t5.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((tiny_t5 / "config.json").read_text())
    config["task_specific_params"] = {
        "summarization": {"prefix": "summarize: ", "num_beams": 2, "max_length": 9},
        "translation_en_to_de": {"prefix": "translate English to German: "},
        "translation_en_to_fr": {"prefix": "translate English to French: "},
    }
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reference(engine, text, **options):
    """What the model itself generates for one prompt."""
    ids = torch.tensor([engine.tokenizer.encode(text)])
    tokens = engine.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    tokens = tokens[0, 1:].tolist()
    return tokens[: tokens.index(0)] if 0 in tokens else tokens


@pytest.mark.parametrize("beams", [None, 3])
def test_batches_of_unlike_prompts_give_the_tokens_of_generate(loop, beams):
    params = GenerationParams(max_new_tokens=12, temperature=0, num_beams=beams)
    completions = loop.generate(PROMPTS, params)
    expected = [reference(loop.engine, p.text, max_new_tokens=12, num_beams=beams or 1) for p in PROMPTS]
    # T5's attention is not scaled, and the random model's saturates: rounding may change one row.
    assert sum(c.token_ids == tokens for c, tokens in zip(completions, expected, strict=True)) >= len(PROMPTS) - 1
    assert any(expected)
    assert all(c.error is None and c.num_prompt_tokens > 0 for c in completions)
    reasons = {"length" if len(c.token_ids) == 12 else "stop" for c in completions}
    assert {c.finish_reason for c in completions} == reasons


@pytest.mark.model
def test_openvino_gives_the_same_text(loop, tiny_t5_ir):
    engine = Seq2SeqEngine.from_openvino(tiny_t5_ir, precision="exact", capacity=3)
    assert engine.precision == "fp32"
    openvino = EngineLoop(engine)
    completions = openvino.generate(PROMPTS, GREEDY)
    # T5's attention is not scaled, and the random model's saturates: rounding may change one row.
    expected = [reference(engine, p.text, max_new_tokens=12) for p in PROMPTS]
    assert sum(c.token_ids == tokens for c, tokens in zip(completions, expected, strict=True)) >= len(PROMPTS) - 1
    pairs = zip(completions, loop.generate(PROMPTS, GREEDY), strict=True)
    assert sum(ours.text == theirs.text for ours, theirs in pairs) >= len(PROMPTS) - 1
    openvino.close()


def test_a_sampled_row_depends_on_its_own_seed_only(loop):
    params = GenerationParams(max_new_tokens=12, temperature=1.0, top_k=20, seed=5)
    together = [c.text for c in loop.generate(PROMPTS, params)]
    alone = [loop.generate([prompt], params)[0].text for prompt in PROMPTS]
    other = [c.text for c in loop.generate(PROMPTS, GenerationParams(max_new_tokens=12, temperature=1.0, seed=6))]
    # A draw may fall on the border between two tokens, where rounding decides: one row may differ.
    assert sum(a == b for a, b in zip(together, alone, strict=True)) >= len(PROMPTS) - 1
    assert sum(a == b for a, b in zip(together, other, strict=True)) < len(PROMPTS) - 1


def test_max_length_counts_the_completion_and_not_the_prompt(loop):
    params = GenerationParams(max_length=6, temperature=0, ignore_eos=True)
    assert {c.num_generated_tokens for c in loop.generate(PROMPTS, params)} == {5}


def test_a_stop_string_ends_the_text(loop):
    whole = loop.generate(PROMPTS, GREEDY)
    prompt = next(p for p, c in zip(PROMPTS, whole, strict=True) if len(set(c.text)) > 3)
    text = loop.generate([prompt], GREEDY)[0].text  # alone, as with the stop string: the same rounding
    completion = loop.generate([prompt], GREEDY.with_stop([text[2:4]]))[0]
    assert completion.text == text[: text.index(text[2:4])]
    assert completion.finish_reason == "stop"


def test_the_task_brings_its_prefix_and_settings(t5_with_tasks):
    plain = Seq2SeqEngine.from_folder(t5_with_tasks, precision="exact")
    summary = Seq2SeqEngine.from_folder(t5_with_tasks, precision="exact", task="summarization")
    translation = Seq2SeqEngine.from_folder(t5_with_tasks, precision="exact", task="translation")
    assert plain.tokenizer.prefix == ""
    assert summary.tokenizer.encode("a text") == plain.tokenizer.encode("summarize: a text")
    assert translation.tokenizer.prefix == "translate English to German: "
    assert summary.generation.num_beams == 2
    assert summary.room(GenerationParams(), 4) == 8
    assert plain.room(GenerationParams(), 4) == 256


def test_memory_running_out_halves_the_batch(tiny_t5, monkeypatch):
    engine = Seq2SeqEngine.from_folder(tiny_t5, precision="exact", capacity=8)
    whole, sizes = engine.model.generate, []

    def generate(**options):
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(**options)

    monkeypatch.setattr(engine.model, "generate", generate)
    for number in range(8):
        ids = engine.tokenizer.encode(QUESTIONS[number])
        engine.add(Request(id=number, prompt_ids=ids, max_new_tokens=4, params=GREEDY))
    outputs = []
    while engine.num_unfinished:
        outputs += engine.step()
    assert sorted(output.request_id for output in outputs) == list(range(8))
    assert all(output.error is None for output in outputs)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert engine.capacity == 2


def test_what_it_cannot_do_is_the_rows_error(loop):
    good, bad = loop.generate(PROMPTS[:1], GREEDY), loop.generate(PROMPTS[:1], GenerationParams(presence_penalty=1))
    assert good[0].error is None
    assert "presence_penalty" in bad[0].error


def test_a_model_without_an_encoder_is_refused(tiny_gpt2):
    with pytest.raises(ValueError, match=r"task=summarization: .*gpt2.*not an encoder-decoder"):
        Seq2SeqEngine.from_folder(tiny_gpt2, task="summarization")


@pytest.mark.ray
def test_a_job_summarizes(t5_with_tasks, questions, tmp_path, shared_ray):
    import pyarrow.dataset as ds

    settings = batch_settings(
        "conf=smollm2_cpu",
        "model.precision=exact",
        f"model.source={t5_with_tasks}",
        "task=summarization",
        "prompt.template='{question}'",
        "generation.max_new_tokens=8",
        f"input.path={questions}",
        f"output.path={tmp_path / 'out'}",
    )
    assert run_batch(settings).exit_code == ExitCode.OK
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    engine = Seq2SeqEngine.from_folder(t5_with_tasks, precision="exact", task="summarization")
    expected = [
        engine.tokenizer.decode(reference(engine, row["question"], max_new_tokens=8, num_beams=2)) for row in rows
    ]
    same = sum(row["generated_text"] == text for row, text in zip(rows, expected, strict=True))
    assert same >= len(rows) - 1  # rounding may change one row
