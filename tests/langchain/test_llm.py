"""HuggingFacePipeline: the examples of LangChain's documentation, and a comparison with langchain-huggingface's class."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import subprocess
import sys
import time

import pytest
import yaml
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate

from hfray.langchain.llm import HuggingFacePipeline
from tests.conftest import QUESTIONS, TEXT, run_job
from tests.processes import WAIT_SECONDS
from tests.ties import assert_same_text_until_tie, assert_same_texts_until_ties

GREEDY = {"max_new_tokens": 12, "do_sample": False}
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
TOO_LONG = "word " * 300
PROMPTS = [text.replace("{}", "How?") for text in TEXT]  # ten prompts of different lengths
TEMPLATE = "Question: {question}\n\nAnswer: Let's think step by step."


@pytest.fixture(scope="module")
def llm(tiny_gpt2):
    return HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", pipeline_kwargs=GREEDY)


@pytest.fixture(scope="module")
def theirs(tiny_gpt2):
    from langchain_huggingface import HuggingFacePipeline as Theirs

    return Theirs.from_model_id(str(tiny_gpt2), "text-generation", pipeline_kwargs=GREEDY)


@pytest.fixture(scope="module")
def same(tiny_gpt2):
    """Checks that the model's greedy texts of several prompts are equal, or equal up to a near tie."""
    return functools.partial(assert_same_texts_until_ties, tiny_gpt2)


@pytest.fixture(scope="module")
def prompt():
    return PromptTemplate.from_template(TEMPLATE)


@pytest.fixture
def slowly(llm, monkeypatch):
    """Makes each step of the engine take longer than the reader needs for a token, so that a stream has several pieces."""
    step = llm._local.loop.engine.step

    def slow_step():
        time.sleep(0.1)
        return step()

    monkeypatch.setattr(llm._local.loop.engine, "step", slow_step)


class Recorder(BaseCallbackHandler):
    """Records every event."""

    def __init__(self) -> None:
        self.events, self.tokens = [], []

    def on_llm_start(self, *args, **kwargs):
        self.events.append("start")

    def on_llm_new_token(self, token, **kwargs):
        self.tokens.append(token)

    def on_llm_end(self, *args, **kwargs):
        self.events.append("end")

    def on_llm_error(self, *args, **kwargs):
        self.events.append("error")


def idle(llm):
    """Wait until the engine has no requests."""
    deadline = time.monotonic() + WAIT_SECONDS
    while llm._local.loop.engine.num_unfinished:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


# --- comparison with langchain-huggingface -----------------------------------------------------------------------

MODES = {
    "plain": {},
    "return_full_text=True": {"pipeline_kwargs": {"return_full_text": True}},
    "return_full_text=False": {"pipeline_kwargs": {"return_full_text": False}},
    "skip_prompt": {"skip_prompt": True},
    "max_new_tokens": {"pipeline_kwargs": {"max_new_tokens": 5}},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("around_pipeline", [False, True])
def test_greedy_text_is_langchain_huggingfaces(llm, theirs, same, mode, around_pipeline):
    ours = HuggingFacePipeline(pipeline=theirs.pipeline) if around_pipeline else llm
    expected = [theirs.invoke(text, **MODES[mode]) for text in PROMPTS]
    same(PROMPTS, [ours.invoke(text, **MODES[mode]) for text in PROMPTS], expected)
    same(PROMPTS, ours.batch(PROMPTS, **MODES[mode]), expected)


@pytest.mark.model  # slow
def test_max_length_is_langchain_huggingfaces(tiny_gpt2, same):
    from langchain_huggingface import HuggingFacePipeline as Theirs

    options = {"max_length": 60, "do_sample": False}
    ours, theirs = (
        c.from_model_id(str(tiny_gpt2), "text-generation", pipeline_kwargs=options, batch_size=1)
        for c in (HuggingFacePipeline, Theirs)
    )
    expected = [theirs.invoke(text) for text in PROMPTS]
    same(PROMPTS, [ours.invoke(text) for text in PROMPTS], expected)
    same(PROMPTS, ours.batch(PROMPTS), expected)
    same(PROMPTS, theirs.batch(PROMPTS), expected)  # at batch size 1, because theirs counts padding
    around = HuggingFacePipeline(pipeline=theirs.pipeline)
    same(PROMPTS, around.batch(PROMPTS), expected)


def test_stop_cuts_the_completion_where_langchain_says(llm):
    stops = ["c", "in", "u"]
    for text in PROMPTS:
        new = llm.invoke(text, skip_prompt=True)
        cut = min((new.index(s) for s in stops if s in new), default=len(new))
        assert llm.invoke(text, stop=stops) == text + new[:cut]
        assert llm.bind(stop=stops, skip_prompt=True).invoke(text) == new[:cut]
        assert "".join(llm.stream(text, stop=stops)) == new[:cut]


def test_streams_are_langchain_huggingfaces(llm, theirs, same):
    for options in ({}, {"skip_prompt": False}):
        for text in PROMPTS[:4]:
            same([text], ["".join(llm.stream(text, **options))], ["".join(theirs.stream(text, **options))])


def test_spaces_before_punctuation_are_removed_as_in_transformers(llm):
    from hfray.langchain.call import tidy

    text = "It 's here . Is n't it ? Yes , I 've 'm 're !"
    assert tidy(text) == llm.pipeline.tokenizer.clean_up_tokenization(text)


# --- LangChain's standard tests of chat models, with text instead of messages (langchain-tests has no suite for LLMs) ---


class TestStandard:
    def test_invoke(self, llm):
        assert isinstance(llm.invoke("Hello"), str)
        assert llm.invoke([("human", "Hello")]) == llm.invoke("Human: Hello")
        assert llm.invoke(ChatPromptTemplate.from_messages([("human", "Hello")]).invoke({})) == llm.invoke(
            "Human: Hello"
        )

    def test_ainvoke(self, llm):
        assert asyncio.run(llm.ainvoke("Hello")) == llm.invoke("Hello")

    def test_stream(self, llm, slowly):
        pieces = list(llm.stream("Hello"))
        assert all(isinstance(piece, str) for piece in pieces)
        assert len(pieces) > 2
        assert "Hello" + "".join(pieces) == llm.invoke("Hello")

    def test_astream(self, llm):
        async def pieces():
            return [piece async for piece in llm.astream("Hello")]

        assert "".join(asyncio.run(pieces())) == "".join(llm.stream("Hello"))

    def test_batch(self, llm, same):
        same(["Hello", "Hey"], llm.batch(["Hello", "Hey"]), [llm.invoke("Hello"), llm.invoke("Hey")])
        assert llm.batch([]) == []

    def test_abatch(self, llm):
        assert asyncio.run(llm.abatch(["Hello", "Hey"])) == llm.batch(["Hello", "Hey"])

    def test_generate_with_metadata(self, llm):
        generation = llm.generate(["Hello"]).generations[0][0]
        assert generation.generation_info["num_generated_tokens"] == 12
        assert generation.generation_info["finish_reason"] == "length"

    def test_stop_sequence(self, llm):
        assert "c" not in llm.invoke("Hello", stop=["c"], skip_prompt=True)

    def test_serialized_and_printed(self, llm, tiny_gpt2):
        assert llm.asdict()["model_id"] == str(tiny_gpt2)
        assert llm._llm_type == "huggingface_pipeline"
        assert str(tiny_gpt2) in str(llm)

    def test_callbacks(self, llm):
        recorder = Recorder()
        text = "".join(llm.stream("Hello", config={"callbacks": [recorder]}))
        assert recorder.events == ["start", "end"]
        assert "".join(recorder.tokens) == text
        with pytest.raises(ValueError, match="prompt too long"):
            llm.invoke(TOO_LONG, config={"callbacks": [recorder]})
        assert recorder.events == ["start", "end", "start", "error"]

    def test_async_callbacks(self, llm):
        class Async(AsyncCallbackHandler):
            tokens: list = []  # noqa: RUF012

            async def on_llm_new_token(self, token, **kwargs):
                self.tokens.append(token)

        async def text():
            return "".join([piece async for piece in llm.astream("Hello", config={"callbacks": [Async()]})])

        assert asyncio.run(text()) == "".join(Async.tokens)

    def test_cache(self, llm):
        from langchain_core.caches import InMemoryCache

        cached = llm.model_copy(update={"cache": InMemoryCache()})
        rows = llm._local.loop.stats.rows
        assert cached.invoke("Hello") == cached.invoke("Hello") == llm.invoke("Hello")
        assert llm._local.loop.stats.rows == rows + 2


# --- the examples of LangChain's documentation, in order -------------------------------------------------------------------------------


def test_a_pipeline_passed_in(tiny_gpt2, llm, same):
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, return_full_text=False, **GREEDY)
    hf = HuggingFacePipeline(pipeline=pipe)
    assert hf.model_id == str(tiny_gpt2)
    same([QUESTIONS[0]], [hf.invoke(QUESTIONS[0])], [llm.invoke(QUESTIONS[0], skip_prompt=True)])


def test_chain(llm, prompt):
    chain = prompt | llm
    full = TEMPLATE.format(question="What is electroencephalography?")
    text = chain.invoke({"question": "What is electroencephalography?"})
    assert text.startswith(full)
    assert (prompt | llm.bind(skip_prompt=True)).invoke({"question": "What is electroencephalography?"}) == text[
        len(full) :
    ]
    assert (prompt | llm | StrOutputParser()).invoke({"question": "What is electroencephalography?"}) == text


def test_gpu_and_device_map(tiny_gpt2, llm):
    def load(**options):
        return HuggingFacePipeline.from_model_id(str(tiny_gpt2), "text-generation", pipeline_kwargs=GREEDY, **options)

    import torch

    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device.index=0: no such GPU"):
            load(device=0)
    else:
        assert load(device=0).pipeline.model.device.type == "cuda"
    assert load(device_map="auto").invoke("Hello").startswith("Hello")
    with pytest.raises(ValueError, match=r"Both `device` \(0\) and `device_map` \('auto'\) are specified"):
        load(device=0, device_map="auto")
    with pytest.raises(ValueError, match="already specified in `model_kwargs`"):
        load(device_map="auto", model_kwargs={"device_map": "auto"})


def test_batch_with_stop_and_max_length(tiny_bloom, prompt):
    gpu_llm = HuggingFacePipeline.from_model_id(
        model_id=str(tiny_bloom),
        task="text-generation",
        device=-1,  # 0 in the documentation
        batch_size=2,
        model_kwargs={"temperature": 0, "max_length": 64},
    )
    gpu_chain = prompt | gpu_llm.bind(stop=["\n\n"])
    questions = [{"question": f"What is the number {i} in french?"} for i in range(4)]
    answers = gpu_chain.batch(questions)
    prompts = [TEMPLATE.format(**question) for question in questions]
    assert_same_texts_until_ties(tiny_bloom, prompts, answers, [gpu_chain.invoke(question) for question in questions])
    tokenizer = gpu_llm.pipeline.tokenizer
    for full, answer in zip(prompts, answers, strict=True):
        assert answer.startswith(full)
        assert "\n\n" not in answer[len(full) :]
        ids = tokenizer(full, return_tensors="pt")
        tokens = gpu_llm.pipeline.model.generate(**ids, do_sample=False, max_length=64)[0]
        assert len(tokens) <= 64
        new = tokenizer.decode(tokens[ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert_same_text_until_tie(tiny_bloom, full, answer, full + new.split("\n\n")[0])


@pytest.mark.model
def test_openvino_by_id_and_by_folder(tiny_gpt2, tiny_gpt2_ir, llm, prompt, same):
    for folder in (tiny_gpt2, tiny_gpt2_ir):  # the first folder is exported first
        ov_llm = HuggingFacePipeline.from_model_id(
            model_id=str(folder),
            task="text-generation",
            backend="openvino",
            model_kwargs={"device": "CPU", "ov_config": {"PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": ""}},
            pipeline_kwargs=GREEDY,
            precision="exact",
        )
        same(PROMPTS, ov_llm.batch(PROMPTS), llm.batch(PROMPTS))
        question = {"question": "What is electroencephalography?"}
        full = TEMPLATE.format(**question)
        same([full], [(prompt | ov_llm).invoke(question)], [(prompt | llm).invoke(question)])


@pytest.mark.model
def test_openvino_gives_the_text_of_langchain_huggingface_with_openvino(tiny_gpt2_ir, same):
    from langchain_huggingface import HuggingFacePipeline as Theirs

    options = {"model_kwargs": {"device": "CPU", "ov_config": EXACT}, "pipeline_kwargs": GREEDY}
    ours, theirs = (
        c.from_model_id(str(tiny_gpt2_ir), "text-generation", backend="openvino", **options)
        for c in (HuggingFacePipeline, Theirs)
    )
    same(PROMPTS, ours.batch(PROMPTS), [theirs.invoke(text) for text in PROMPTS])


@pytest.mark.parametrize("task", ["text2text-generation", "summarization", "translation"])
def test_sequence_to_sequence_tasks(tiny_t5, task):
    t5 = HuggingFacePipeline.from_model_id(
        str(tiny_t5), task, pipeline_kwargs={"max_new_tokens": 8, "num_beams": 2, "do_sample": False}
    )
    model, tokenizer = t5.pipeline.model, t5.pipeline.tokenizer.hf
    for text, answer in zip(QUESTIONS, t5.batch(QUESTIONS), strict=True):
        tokens = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, num_beams=2)
        assert answer == tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert "".join(t5.stream(QUESTIONS[0])) == t5.invoke(QUESTIONS[0])


# --- one engine for all calls ---------------------------------------------------------------------------------------


def test_concurrent_calls_share_the_engine(llm, same):
    async def many():
        return await asyncio.gather(*(llm.ainvoke(text) for text in PROMPTS))

    expected = llm.batch(PROMPTS)
    steps = llm._local.loop.stats.steps
    same(PROMPTS, asyncio.run(many()), expected)
    assert llm._local.loop.stats.steps - steps < 12 * len(PROMPTS) / 2  # calls in sequence take 12 steps each


def test_leaving_a_stream_frees_the_engine(llm):
    stream = llm.stream("Hello", pipeline_kwargs={"max_new_tokens": 100})
    next(stream)
    stream.close()
    assert idle(llm)

    async def leave():
        async for _ in llm.astream("Hello", pipeline_kwargs={"max_new_tokens": 100}):
            break
        task = asyncio.create_task(llm.ainvoke("Hello", pipeline_kwargs={"max_new_tokens": 100}))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    generated = llm._local.loop.stats.generated_tokens
    assert idle(llm)
    assert llm._local.loop.stats.generated_tokens - generated < 100


def test_a_bad_prompt_fails_alone(llm, same):
    good, bad, other = llm.batch(["Hello", TOO_LONG, "Hey"], return_exceptions=True)
    same(["Hello", "Hey"], [good, other], llm.batch(["Hello", "Hey"]))
    assert isinstance(bad, ValueError)
    assert "128" in str(bad)
    same(["Hello"], asyncio.run(llm.abatch(["Hello", TOO_LONG], return_exceptions=True))[:1], [good])
    with pytest.raises(ValueError, match="prompt too long"):
        llm.batch(["Hello", TOO_LONG])
    with pytest.raises(ValueError, match="prompt too long"):
        list(llm.stream(TOO_LONG))
    same(["Hello"], [llm.invoke("Hello")], [good])
    assert idle(llm)


def test_with_retry_and_with_config(llm, same):
    recorder = Recorder()
    retrying = llm.with_retry(stop_after_attempt=2, wait_exponential_jitter=False)
    assert retrying.invoke("Hello") == llm.invoke("Hello")
    with pytest.raises(ValueError, match="prompt too long"):
        retrying.invoke(TOO_LONG, config={"callbacks": [recorder]})
    assert recorder.events == ["start", "error"] * 2
    same(PROMPTS, llm.with_config(max_concurrency=2).batch(PROMPTS), llm.batch(PROMPTS))
    same(PROMPTS, asyncio.run(llm.with_config(max_concurrency=2).abatch(PROMPTS)), llm.batch(PROMPTS))


# --- settings -------------------------------------------------------------------------------------------------------


def test_sampling_differs_between_calls_unless_seeded(llm):
    from transformers import set_seed

    sampled = {"do_sample": True, "temperature": 1.0, "max_new_tokens": 12}
    assert llm.invoke("Hello", **sampled) != llm.invoke("Hello", **sampled)
    assert llm.invoke("Hello", seed=3, **sampled) == llm.invoke("Hello", seed=3, **sampled)
    texts = []
    for _ in range(2):
        set_seed(5)
        texts.append(llm.invoke("Hello", **sampled))
    assert texts[0] == texts[1]
    assert llm.invoke("Hello", **{**sampled, "temperature": 0}) == llm.invoke("Hello")


@pytest.mark.model
def test_defaults_are_those_of_transformers(tiny_gpt2, tiny_gpt2_ir):
    for options in ({"model_id": str(tiny_gpt2)}, {"model_id": str(tiny_gpt2_ir), "backend": "openvino"}):
        params = HuggingFacePipeline.from_model_id(task="text-generation", **options)._local.call().params
        assert (params.max_new_tokens, params.do_sample, params.temperature, params.top_k) == (256, True, 0.7, 50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "text-classification"}, "Got invalid task text-classification"),
        ({"backend": "onnx"}, "backend='onnx'"),
        ({"device": -2}, "device.index=-2"),
        ({"model_id": "/no/such/folder"}, "model.source=/no/such/folder: there is no such folder"),
        ({"pipeline_kwargs": {"num_beams": 4}}, "num_beams > 1"),
        ({"backend": "openvino", "model_kwargs": {"devise": "CPU"}}, "devise"),
    ],
)
def test_wrong_settings_are_named(tiny_gpt2, options, message):
    with pytest.raises(ValueError, match=message):
        HuggingFacePipeline.from_model_id(**{"model_id": str(tiny_gpt2), "task": "text-generation", **options})


def test_a_wrong_setting_of_a_call_is_named(llm):
    with pytest.raises(ValueError, match=r"tempratur=3: .*Did you mean generation.temperature\?"):
        llm.invoke("Hello", tempratur=3)


def test_without_a_pipeline_the_first_call_loads_the_model(tiny_gpt2, llm):
    assert HuggingFacePipeline().model_id == "gpt2"  # as langchain-huggingface's; nothing is loaded yet
    lazy = HuggingFacePipeline(model_id=str(tiny_gpt2), pipeline_kwargs=llm.pipeline_kwargs)
    assert lazy.pipeline is None
    assert lazy.batch(["Hello", "Why"]) == llm.batch(["Hello", "Why"])
    assert lazy.pipeline is not None
    assert pickle.loads(pickle.dumps(lazy)).invoke("Hello") == llm.invoke("Hello")


def test_a_saved_object_can_be_created_again(tiny_gpt2, llm, tmp_path):
    """As LangChain's `load_llm` does it: from the fields in the file."""
    llm.save(tmp_path / "llm.yaml")
    config = yaml.safe_load((tmp_path / "llm.yaml").read_text())
    assert config.pop("_type") == "huggingface_pipeline"
    assert HuggingFacePipeline(**config).invoke("Hello") == llm.invoke("Hello")


def test_pickling_loads_the_model_again(llm, theirs):
    assert pickle.loads(pickle.dumps(llm)).invoke("Hello") == llm.invoke("Hello")
    with pytest.raises(TypeError, match="from_model_id"):
        pickle.dumps(HuggingFacePipeline(pipeline=theirs.pipeline))


def test_importing_the_package_is_light():
    heavy = ("torch", "transformers", "ray", "langchain_core", "hydra")
    code = f"import sys, hfray; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    import hfray

    assert hfray.HuggingFacePipeline is HuggingFacePipeline
    with pytest.raises(AttributeError, match="nothing"):
        _ = hfray.nothing


# --- what LangChain expects of an object ----------------------------------------------------------------------------


def test_the_cache_distinguishes_calls_with_different_settings(llm):
    from langchain_core.caches import InMemoryCache

    cached = llm.model_copy(update={"cache": InMemoryCache()})
    short = cached.bind(max_new_tokens=2, skip_prompt=True).invoke("Hello")
    assert cached.bind(max_new_tokens=12, skip_prompt=True).invoke("Hello") == llm.invoke("Hello", skip_prompt=True)
    assert asyncio.run(cached.bind(max_new_tokens=2, skip_prompt=True).ainvoke("Hello")) == short
    rows = llm._local.loop.stats.rows
    assert cached.bind(max_new_tokens=2, skip_prompt=True).invoke("Hello") == short
    assert llm._local.loop.stats.rows == rows


def test_deep_copies_share_the_model(llm):
    for copied in (copy.deepcopy(llm), llm.model_copy(deep=True)):
        assert copied.pipeline is llm.pipeline
        assert copied._local is llm._local
        assert copied.pipeline_kwargs is not llm.pipeline_kwargs
        assert copied.invoke("Hello") == llm.invoke("Hello")


def test_pickling_keeps_what_model_copy_changed(llm):
    changed = llm.model_copy(update={"pipeline_kwargs": {**GREEDY, "max_new_tokens": 3}, "tags": ["one"]})
    again = pickle.loads(pickle.dumps(changed))
    assert again.tags == ["one"]
    assert again.invoke("Hello") == changed.invoke("Hello") == llm.invoke("Hello", max_new_tokens=3)


def test_streams_have_no_empty_chunk_and_keep_their_metadata(llm):
    chunks = list(llm._stream("Hello"))
    assert all(chunk.text for chunk in chunks)
    assert chunks[-1].generation_info["num_generated_tokens"] == 12
    assert all(llm.stream("Hello"))

    async def pieces():
        return [piece async for piece in llm.astream("Hello")]

    assert all(asyncio.run(pieces()))
    first = llm.invoke("Hello", skip_prompt=True)[0]
    assert list(llm.stream("Hello", stop=[first])) == [""]  # LangChain needs one chunk


def test_batch_as_completed_fills_the_engine(llm, same):
    texts = [f"{text} {n}" for n in range(3) for text in PROMPTS]
    expected = llm.batch(texts)
    steps = llm._local.loop.stats.steps
    found = dict(llm.batch_as_completed(texts))
    same(texts, [found[number] for number in range(len(texts))], expected)
    # Six threads, LangChain's default on two cores, would take at least 5 turns of 12 steps each.
    assert llm._local.loop.stats.steps - steps < 12 * 5
    assert list(llm.batch_as_completed([])) == []
    found = dict(llm.batch_as_completed(["Hello", TOO_LONG], return_exceptions=True))
    same(["Hello"], [found[0]], [llm.invoke("Hello")])
    assert isinstance(found[1], ValueError)


def test_log_probabilities_only_if_asked(llm):
    assert "logprobs" not in llm.generate(["Hello"]).generations[0][0].generation_info
    tokens = llm.generate(["Hello"], logprobs=2).generations[0][0].generation_info["logprobs"]
    assert len(tokens) == 12
    assert all(token["logprob"] <= 0 and len(token["top_logprobs"]) == 2 for token in tokens)
    assert all(token["logprob"] == token["top_logprobs"][0]["logprob"] for token in tokens)  # greedy
    assert any(token["logprob"] < 0 for token in tokens)


@pytest.mark.model
def test_openvino_reports_real_log_probabilities_or_refuses(llm, tiny_gpt2_ir):
    options = {"model_kwargs": {"device": "CPU", "ov_config": EXACT}, "pipeline_kwargs": GREEDY}
    ov_llm = HuggingFacePipeline.from_model_id(str(tiny_gpt2_ir), "text-generation", backend="openvino", **options)
    assert "logprobs" not in ov_llm.generate(["Hello"]).generations[0][0].generation_info
    with pytest.raises(ValueError, match="logprobs=2"):
        ov_llm.generate(["Hello"], logprobs=2)
    tokens = llm.generate(["Hello"], logprobs=0).generations[0][0].generation_info["logprobs"]
    own = ov_llm.generate(["Hello"], logprobs=0).generations[0][0].generation_info["logprobs"]
    assert [token["logprob"] for token in own] == pytest.approx([token["logprob"] for token in tokens], abs=1e-3)


# --- settings of a pipeline passed in -------------------------------------------------------------------------------


def pipeline_with(theirs, **options):
    """A transformers pipeline of the same model, with further settings."""
    from transformers import pipeline

    pipe = theirs.pipeline
    return pipeline("text-generation", model=pipe.model, tokenizer=pipe.tokenizer, **GREEDY, **options)


def test_a_pipelines_prefix_is_honoured(theirs, same):
    for options in ({"prefix": "Once upon a time. "}, {"prefix": "Why? ", "return_full_text": False}):
        pipe = pipeline_with(theirs, **options)
        ours = HuggingFacePipeline(pipeline=pipe)
        for text in PROMPTS[:4]:
            first, second = ours.invoke(text), pipe(text)[0]["generated_text"]
            assert first.startswith(text) == second.startswith(text)
            prefix = options["prefix"]
            same([prefix + text], [prefix + first.removeprefix(text)], [prefix + second.removeprefix(text)])


def test_a_pipelines_unsupported_settings_are_refused_by_name(theirs):
    def stopping(ids, scores, **kwargs):
        return False

    unsupported = {"stopping_criteria": [stopping], "suppress_tokens": [5], "bad_words_ids": [[5]]}
    for name, value in {**unsupported, "typical_p": 0.9, "max_time": 1.0}.items():
        pipe = pipeline_with(theirs, **{name: value})
        with pytest.raises(ValueError, match=name):
            HuggingFacePipeline(pipeline=pipe)


def test_a_calls_unsupported_settings_are_refused_by_name(llm):
    for name, value in {"typical_p": 0.9, "bad_words_ids": [[5]], "max_time": 1.0}.items():
        with pytest.raises(ValueError, match=f"{name}=.*do not support"):
            llm.bind(**{name: value}).invoke("Hello")
    assert llm.bind(renormalize_logits=True).invoke("Hello") == llm.invoke("Hello")


def test_a_pipelines_neutral_settings_are_accepted(llm, theirs):
    neutral = {"diversity_penalty": 0.0, "num_beam_groups": 1, "token_healing": False, "epsilon_cutoff": 0.0}
    ours = HuggingFacePipeline(pipeline=pipeline_with(theirs, **neutral))
    assert ours.invoke("Hello") == llm.invoke("Hello") == llm.invoke("Hello", **neutral)


# --- a chain in the job ---------------------------------------------------------------------------------------------

CHAINS = """
from langchain_core.prompts import ChatPromptTemplate, FewShotPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda

few_shot = FewShotPromptTemplate(
    examples=[{"q": "1+1?", "a": "2"}],
    example_prompt=PromptTemplate.from_template("Q: {q}\\nA: {a}"),
    suffix="Q: {question}\\nA:",
    input_variables=["question"],
)
chat = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
numbered = RunnableLambda(lambda record: f"{record['n']}. {record['question']}")
"""


@pytest.fixture
def chains(tmp_path, monkeypatch):
    """A user's module with three chains; returns its folder."""
    (tmp_path / "own_chains.py").write_text(CHAINS)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_chains", None)


def test_a_langchain_object_as_the_jobs_prompt(chains, llm):
    from hfray.config.engine import PromptSettings
    from hfray.inference.prompts import RecordPrompt

    record, tokenizer = {"question": "2+2?", "n": 7}, llm._local.tokenizer

    def rendered(name, tokenizer=tokenizer):
        return RecordPrompt(PromptSettings(target={"_target_": f"own_chains.{name}"}), tokenizer).render(record).text

    assert rendered("few_shot") == "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA:"
    assert rendered("numbered") == "7. 2+2?"
    assert rendered("chat") == "system: Be brief.\nuser: 2+2?\nassistant:"  # the model's own chat template

    class Plain:
        has_chat_template = False

    assert rendered("chat", Plain()) == "System: Be brief.\nHuman: 2+2?"  # as LangChain formats messages for an LLM


@pytest.mark.ray
def test_a_job_over_a_users_own_prompt(chains, questions, tmp_path, shared_ray):
    import pyarrow.dataset as ds

    done = run_job(
        "conf=fake",
        "prompt._target_=own_chains.few_shot",
        f"input.path={questions}",
        f"output.path={tmp_path / 'out'}",
        env=shared_ray,
        cwd=chains,
    )
    assert done.returncode == 0, done.stderr
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    assert {row["prompt"] for row in rows} == {f"Q: 1+1?\nA: 2\n\nQ: {q}\nA:" for q in QUESTIONS}
