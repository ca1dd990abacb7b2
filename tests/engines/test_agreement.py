"""Greedy text of the real model: OpenVINO (on 16-bit weights) and the transformers engine, both in fp32, against `model.generate` itself.

HFRAY_AGREEMENT=200 compares 200 questions, which takes minutes; the default is 8.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from hfray.completion import Prompt
from hfray.engines.load import load_engine
from hfray.inference.loop import EngineLoop
from hfray.params import GenerationParams
from tests.conftest import QUESTIONS, batch_settings
from tests.ties import TOLERANCE, assert_same_until_tie

pytestmark = pytest.mark.model

NEW_TOKENS = 64
COUNT = int(os.environ.get("HFRAY_AGREEMENT", "8"))
REAL = Path(__file__).parents[3] / "shared/data/gsm8k_train_2000.jsonl"


def prompts() -> list[str]:
    """Questions in the default template: of the real data set if it is there, else of the suite."""
    questions = QUESTIONS
    if len(QUESTIONS) < COUNT or REAL.exists():
        if not REAL.exists():
            pytest.skip(f"HFRAY_AGREEMENT={COUNT} needs shared/data, which is missing")
        questions = [json.loads(line)["question"] for line in REAL.read_text().splitlines()]
    return [f"Question: {question}\n\nAnswer: Let's think step by step." for question in questions[:COUNT]]


@pytest.fixture(scope="module")
def reference(smollm2):
    """The completions of transformers' own `generate`, in left-padded batches."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    tokens = []
    for i in range(0, COUNT, 16):
        batch = tokenizer(prompts()[i : i + 16], return_tensors="pt", padding=True)
        output = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        for row in output[:, batch["input_ids"].shape[1] :].tolist():
            tokens.append(row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row)
    return tokens


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("preset", "tolerance"),
    [
        (["conf=smollm2_openvino", "model.precision=fp32"], 0.1),  # a logit changes by up to 0.04
        (["conf=smollm2_cpu", "model.precision=exact"], TOLERANCE),
    ],
    ids=["openvino", "transformers"],
)
def test_greedy_tokens_are_those_of_generate(reference, preset, tolerance, smollm2):
    settings = batch_settings("input.path=-", "output.path=-", *preset)
    loop = EngineLoop(load_engine(settings))
    encode = loop.engine.tokenizer.encode
    params = GenerationParams(max_new_tokens=NEW_TOKENS, temperature=0)
    completions = loop.generate([Prompt(text) for text in prompts()], params)
    parted = {
        row: next(
            (i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs))
        )
        for row, (mine, theirs) in enumerate(zip([c.token_ids for c in completions], reference, strict=True))
        if mine != theirs
    }
    print(
        f"{' '.join(preset)}: {COUNT - len(parted)} of {COUNT} token for token; first differing token by row: {parted}"
    )
    for row in parted:
        ids = encode(prompts()[row])
        assert_same_until_tie(smollm2, ids, completions[row].token_ids, reference[row], tolerance)
    loop.close()
