"""Compare `batch` of 64 questions on the real 135M model: langchain-huggingface's HuggingFacePipeline and hfray's.

    python examples/langchain_speed.py [QUESTIONS.jsonl]     # a file with a `question` column; default: examples/questions.jsonl

Decoding is greedy. langchain-huggingface runs with batch_size=2, as on LangChain's page.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from langchain_core.prompts import PromptTemplate
from langchain_huggingface import HuggingFacePipeline as Theirs

from hfray import EngineSettings, HuggingFacePipeline, load_settings, prepare_model

COUNT, NEW_TOKENS = 64, 32


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "questions.jsonl"
    questions = [json.loads(line) for line in path.read_text().splitlines()][:COUNT]
    questions = [{"question": row["question"]} for row in questions]
    folder, ir = (
        str(prepare_model(load_settings([f"conf={preset}"], EngineSettings)))
        for preset in ("smollm2_cpu", "smollm2_openvino")
    )
    prompt = PromptTemplate.from_template("Question: {question}\n\nAnswer: Let's think step by step.")
    options = {"pipeline_kwargs": {"max_new_tokens": NEW_TOKENS, "do_sample": False}}
    openvino = {"backend": "openvino", "precision": "exact"}
    runs = {
        "theirs, batch_size=2": (Theirs, folder, {"batch_size": 2}),
        "ours, backend=default": (HuggingFacePipeline, folder, {}),
        "ours, backend=openvino": (HuggingFacePipeline, ir, openvino),
    }
    times, texts, cpu = {}, {}, {}
    for name, (kind, source, more) in runs.items():
        llm = kind.from_model_id(source, "text-generation", **options, **more)
        (prompt | llm).invoke(questions[0])  # warm up
        started, used = time.perf_counter(), time.process_time()
        texts[name] = (prompt | llm).batch(questions)
        times[name], cpu[name] = time.perf_counter() - started, time.process_time() - used
        first = next(iter(runs))
        same = sum(map(str.__eq__, texts[name], texts[first]))
        print(
            f"{name:24} {times[name]:6.1f} s ({times[first] / times[name]:.1f}x)  {cpu[name]:6.1f} CPU s "
            f"({cpu[first] / cpu[name]:.1f}x)  same text in {same} of {len(questions)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
