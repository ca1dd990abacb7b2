"""The process of one contestant that is not the job.

python -m hfray.tools.bench_process engine|genai|actor|feed|plain|typed PAYLOAD     # prints a Run as JSON
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import asdict

from hfray.tools.bench_contestants import engine_alone, engine_with_form, genai_directly
from hfray.tools.bench_rungs import engine_fed_by_ray_data, engine_in_an_actor

CONTESTANTS = {
    "engine": engine_alone,
    "genai": genai_directly,
    "actor": engine_in_an_actor,
    "feed": engine_fed_by_ray_data,
    "plain": functools.partial(engine_with_form, free=True),
    "typed": engine_with_form,
}


def _main(name: str, payload: str) -> None:
    from hfray.config.batch import BatchSettings
    from hfray.config.build import build
    from hfray.inference.prompts import RecordPrompt

    given = json.loads(payload)
    settings = build(BatchSettings, {key: value for key, value in given["settings"].items() if key != "bench"})
    prompt = RecordPrompt(settings.prompt, response=settings.response)
    with open(given["records"]) as file:
        texts = [prompt.render(json.loads(line)).text for line in file]
    print(json.dumps(asdict(CONTESTANTS[name](settings, texts, given["model"]))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
