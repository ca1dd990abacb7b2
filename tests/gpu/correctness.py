"""Whether the engine computes what transformers computes: tokens in fp32, logits in 16 bits."""

from __future__ import annotations

import torch

from tests.gpu.models import complete, engine_of, model_of, requests
from tests.gpu.report import Report

ROWS, PROMPT, NEW = 8, 24, 32
TIE = 1e-3  # of the logits' spread: closer tokens may be picked in either order
LOGIT_ERROR = {torch.float16: 0.02, torch.bfloat16: 0.1}  # of the logits' spread


def tokens_of_generate(report: Report, device: str, small: bool) -> None:
    """Greedy tokens of BLOOM's shape in fp32, in a batch of the engine and by `generate` row by row."""
    for name in ("bloom", "llama"):
        with model_of(name, device, torch.float32, small) as model:
            wanted = requests(ROWS, [PROMPT - 2 * i for i in range(ROWS)], NEW, model.config.vocab_size)
            expected = {}
            for request in wanted:
                ids = torch.tensor([request.prompt_ids], device=device)
                output = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=3
                )
                expected[request.id] = output[0, ids.shape[1] :].tolist()
            found = complete(engine_of(model, capacity=4), wanted)
            wrong = [
                r.id for r in wanted if not _same_until_tie(model, r.prompt_ids, found[r.id], expected[r.id], device)
            ]
            equal = sum(found[request.id] == expected[request.id] for request in wanted)
            value = f"{equal} of {ROWS} rows equal, {ROWS - equal - len(wrong)} up to a near tie"
            report.add("correctness", f"{name}: tokens of generate, fp32", value, goal="all", ok=not wrong)


def logit_errors(report: Report, device: str, small: bool) -> None:
    """The error of the logits in 16 bits, against fp32."""
    for name in ("bloom", "llama"):
        exact = _logits(name, device, torch.float32, small)
        for dtype, limit in LOGIT_ERROR.items():
            logits, kind = _logits(name, device, dtype, small), str(dtype)[6:]
            error = float((logits - exact).abs().max() / exact.std())
            what = f"{name}: largest logit error, {kind}"
            report.add("correctness", what, error, "of the spread", f"< {limit}", error < limit)
            same = float((logits.argmax(-1) == exact.argmax(-1)).float().mean())
            report.add("correctness", f"{name}: same likeliest token, {kind}", 100 * same, "%")


def _logits(name: str, device: str, dtype: torch.dtype, small: bool) -> torch.Tensor:
    ids = torch.randint(4, 1000, (4, 64), generator=torch.Generator().manual_seed(0)).to(device)
    with model_of(name, device, dtype, small) as model, torch.inference_mode():
        return model(ids).logits.float()


def _same_until_tie(model, prompt: list[int], first: list[int], second: list[int], device: str) -> bool:
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), None)
    if at is None:
        return True
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *first[:at]]], device=device)).logits[0, -1].float()
    return float(logits.max() - logits[[first[at], second[at]]].min()) <= TIE * float(logits.std())
