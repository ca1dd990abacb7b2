"""LangChain's page "Hugging Face Local Pipelines", block by block, with our import and a local model.

    python examples/langchain_page.py

`DEVICE` replaces the page's `device=0`. Set it to 0 on a machine with a GPU.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from langchain_core.prompts import PromptTemplate

from hfray import EngineSettings, HuggingFacePipeline, load_settings, prepare_model

DEVICE = -1
MODEL = str(prepare_model(load_settings(["conf=smollm2_cpu"], EngineSettings)))

print("--- Model loading")
hf = HuggingFacePipeline.from_model_id(
    model_id=MODEL,
    task="text-generation",
    pipeline_kwargs={"max_new_tokens": 10, "do_sample": False},
)

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline  # noqa: E402  the page imports it here

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL)
pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=10, do_sample=False)
hf_around = HuggingFacePipeline(pipeline=pipe)

print("--- Create chain")
template = """Question: {question}

Answer: Let's think step by step."""
prompt = PromptTemplate.from_template(template)
question = "What is electroencephalography?"

chain = prompt | hf
print(chain.invoke({"question": question}))
assert (prompt | hf_around).invoke({"question": question}) == chain.invoke({"question": question})

chain = prompt | hf.bind(skip_prompt=True)
print(repr(chain.invoke({"question": question})))
for chunk in chain.stream(question):
    print(chunk, end="|")
print()

print("--- GPU inference")
gpu_llm = HuggingFacePipeline.from_model_id(
    model_id=MODEL,
    task="text-generation",
    device=DEVICE,  # replace with device_map="auto" to use the accelerate library
    pipeline_kwargs={"max_new_tokens": 10},
)
print(repr((prompt | gpu_llm.bind(skip_prompt=True)).invoke({"question": question})))

print("--- Batch GPU inference")
gpu_llm = HuggingFacePipeline.from_model_id(
    model_id=MODEL,
    task="text-generation",
    device=DEVICE,
    batch_size=2,  # adjust as needed based on GPU map and model size
    model_kwargs={"temperature": 0, "max_length": 64},
)
gpu_chain = prompt | gpu_llm.bind(stop=["\n\n"])
questions = [{"question": f"What is the number {i} in french?"} for i in range(4)]
for answer in gpu_chain.batch(questions):
    print(repr(answer))

print("--- Inference with OpenVINO backend")
ov_llm = HuggingFacePipeline.from_model_id(
    model_id=MODEL,
    task="text-generation",
    backend="openvino",
    model_kwargs={"device": "CPU", "ov_config": {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "CACHE_DIR": ""}},
    pipeline_kwargs={"max_new_tokens": 10, "do_sample": False},
)
print(repr((prompt | ov_llm.bind(skip_prompt=True)).invoke({"question": question})))

print("--- Inference with local OpenVINO model: int8 weights, activations quantized at run time")
with tempfile.TemporaryDirectory() as folder:
    ov_model_dir = str(Path(folder) / "ov_model_dir")
    export = [
        "optimum.commands.optimum_cli",
        "export",
        "openvino",
        "--model",
        MODEL,
        "--task",
        "text-generation-with-past",
    ]
    subprocess.run(
        [sys.executable, "-m", *export, "--weight-format", "int8", ov_model_dir], check=True, capture_output=True
    )
    ov_llm = HuggingFacePipeline.from_model_id(
        model_id=ov_model_dir,
        task="text-generation",
        backend="openvino",
        model_kwargs={
            "device": "CPU",
            "ov_config": {
                "KV_CACHE_PRECISION": "u8",
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
                "CACHE_DIR": "",
            },
        },
        pipeline_kwargs={"max_new_tokens": 10, "do_sample": False},
    )
    print(repr((prompt | ov_llm.bind(skip_prompt=True)).invoke({"question": question})))
