"""Model folders as transformers loads them."""

from __future__ import annotations

import pytest

from hfray.engines.torch.checkpoint import check_fits, load_tokenizer
from hfray.models.folder import weight_bytes


def test_the_tokenizer_takes_odd_text(tiny_gpt2):
    tokenizer = load_tokenizer(tiny_gpt2)
    assert tokenizer.encode("") == []
    assert tokenizer.decode(tokenizer.encode("lone \ud800 surrogate")) == "lone ? surrogate"
    assert tokenizer.chat([{"role": "user", "content": "Hi"}]) == "user: Hi\nassistant:"


def test_a_model_too_large_for_its_gpu_is_told_by_its_size(tiny_gpt2):
    weights = weight_bytes(tiny_gpt2, "float32")
    assert weights == pytest.approx(2 * weight_bytes(tiny_gpt2, "bfloat16"), abs=1)
    check_fits(weights, 2 * weights, "model.source=here:")
    with pytest.raises(ValueError, match=r"model.source=here: its weights take 20.0 GiB.*8.0 GiB free.*workers.gpus=3"):
        check_fits(20 << 30, 8 << 30, "model.source=here:")
