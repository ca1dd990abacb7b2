"""Tokens to text: whole characters, stop strings, and as few decoding calls as possible."""

from __future__ import annotations

import pytest
import tokenizers

from hfray.engines.fake import FakeTokenizer
from hfray.inference.detokenizer import CompletionText

TEXT = (
    "One plus one\nis two. שלום 😀 👩‍👩‍👧 naïve ཀཁགངཅཆཇཉཏཐ\n\nand  more: "
    + "a longer line of plain words, " * 8
    + "the END\n"
)
STOPS = ["\n\n", "END", "ï", "two. ", "👧", "never"]


class Counting:
    """A tokenizer that counts how often it decodes."""

    def __init__(self, tokenizer):
        self.inner, self.bos_id, self.count = tokenizer, tokenizer.bos_id, 0

    def encode(self, text, *, add_special_tokens=True):
        return self.inner.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids):
        self.count += 1
        return self.inner.decode(token_ids)


class Fallback:
    """A tokenizer like Llama's: unknown words become bytes, and an incomplete run of bytes decodes to nothing."""

    bos_id = None

    def __init__(self):
        words = ["plus", "and", "END", "line", "▁", "\n", *"abcdefghijklmnopqrstuvwxyzONES.,:'"]
        vocabulary = {token: i for i, token in enumerate([*(f"<0x{byte:02X}>" for byte in range(256)), *words])}
        self.hf = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
        self.hf.normalizer = tokenizers.normalizers.Replace(" ", "▁")
        kinds = tokenizers.decoders
        self.hf.decoder = kinds.Sequence(
            [kinds.Replace("▁", " "), kinds.ByteFallback(), kinds.Fuse(), kinds.Strip(" ", 1, 0)]
        )

    def encode(self, text, *, add_special_tokens=True):
        return self.hf.encode(text).ids

    def decode(self, token_ids):
        return self.hf.decode(list(token_ids))


@pytest.fixture(params=["bytes", "fallback", pytest.param("real", marks=pytest.mark.model)])
def tokenizer(request):
    if request.param == "bytes":  # each token is a character or a part of a character
        return Counting(FakeTokenizer())
    if request.param == "fallback":
        return Counting(Fallback())
    from hfray.engines.torch.checkpoint import load_tokenizer

    return Counting(load_tokenizer(request.getfixturevalue("smollm2")))


def test_streamed_pieces_join_to_the_text(tokenizer):
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    text, tokenizer.count = CompletionText(tokenizer, tokenizer.encode("Say:"), stream=True), 0
    pieces = [text.push([token]) for token in ids]
    assert "".join([*pieces, text.finish()]) == text.text == tokenizer.inner.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces)
    assert tokenizer.count <= 1.2 * len(ids)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", STOPS)
def test_a_stop_string_ends_the_text_with_its_last_token(tokenizer, stop, stream):
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    text, sent = CompletionText(tokenizer, [], [stop, "nor this"], stream), ""
    for count, token in enumerate(ids, start=1):
        sent += text.push([token])
        decoded = tokenizer.inner.decode(ids[:count])
        assert text.stopped == (stop in decoded and not decoded.endswith("\ufffd"))
        if text.stopped:
            break
    sent += text.finish()
    assert text.text == TEXT.partition(stop)[0]
    assert not stream or sent == text.text


def test_a_prompt_may_end_in_characters_of_several_bytes(tokenizer):
    ids = tokenizer.encode("གངx and more", add_special_tokens=False)
    text = CompletionText(tokenizer, tokenizer.encode("xཀཁ", add_special_tokens=False), stream=True)
    assert "".join(text.push([token]) for token in ids) + text.finish() == "གངx and more"


def test_tokens_are_not_decoded_without_stop_strings(tokenizer):
    ids = tokenizer.encode("plain words and 😀, no line's end. " * 20, add_special_tokens=False)
    text = CompletionText(tokenizer, [], ["\n\n"])
    for token in ids:
        text.push([token])
    tokenizer.count = 0
    again = CompletionText(tokenizer, [], ["\n\n"])
    for token in ids:
        again.push([token])
    assert tokenizer.count <= 1  # of no context
    assert again.finish() == tokenizer.inner.decode(ids)
