"""An engine and 20 prompts: no LangChain, no Ray, no files.

python examples/engine.py
"""

from contextlib import closing

from hfray import EngineLoop, EngineSettings, GenerationParams, Prompt, load_engine, load_settings

engine = load_engine(load_settings(["conf=smollm2_openvino"], EngineSettings))
params = GenerationParams(max_new_tokens=16, temperature=0)
with closing(EngineLoop(engine)) as loop:
    answers = [loop.submit(Prompt(f"The number after {number} is"), params) for number in range(20)]
    for answer in answers:
        print(repr(answer.result().text))
