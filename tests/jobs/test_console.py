"""The output at the end of a command, with any characters in the rows and any encoding of the terminal."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hfray.data.partreport import PartReport
from hfray.runs.contents import Lengths
from hfray.runs.summary import EngineReport, PoolReport, SavedTokens, Summary
from hfray.tools.plan import Plan, Trial
from jobs.console import print_plan, print_summary

ODD = "'[INST] hi [/INST]' is [bold not markup :smile: é"


def summary(**changes) -> Summary:
    written = PartReport(
        rows=8,
        failed=2,
        prompt_tokens=80,
        generated_tokens=16,
        finish_reasons=Counter(stop=6, error=2),
        errors=Counter({ODD: 2}),
        samples=[{"row_id": "1", "prompt": ODD, "generated_text": ODD, "finish_reason": "stop"}],
    )
    timeline = {"command": 0.0, "engine_ready": 1.0, "last_row": 3.0}
    return Summary(**{"rows": 8, "written": written, "timeline": timeline, "seconds": 4.0, "message": ODD} | changes)


def printed(**changes) -> str:
    out = io.StringIO()
    print_summary(summary(**changes), out)
    return out.getvalue()


def test_texts_of_rows_are_printed_unchanged():
    text = printed(output="/[/data]/out")
    assert text.count(ODD) == 4
    assert "output: /[/data]/out\n" in text
    assert "4.0 rows/s, 8 generated tokens/s" in text


def test_errors_of_a_plan_are_printed_unchanged():
    prompts, out = Lengths(), io.StringIO()
    prompts.add(np.array([5, 9]))
    trial = Trial(prompts=prompts, sampled=3, tried=2, finished=2, seconds=1.0, generated_tokens=8)
    trial.errors[ODD] = 1
    trial.examples = [(ODD, ODD, "stop")]
    print_plan(Plan(3, 0, trial), out)
    assert out.getvalue().count(ODD) == 3
    assert "nothing was written" in out.getvalue()


def test_the_summary_of_the_engines():
    pools = {"here": PoolReport(workers=1, rows=8, busy_share=0.5), "gone": PoolReport()}
    engine = EngineReport(
        steps=4,
        share_of_full_steps=0.5,
        rows_of_equal_prompts=2,
        saved_tokens=SavedTokens(6, 10, 5),
        workers_replaced=1,
        tail_seconds=2.0,
        pools=pools,
    )
    text = printed(engine=engine)
    assert "6 of 2 rows with equal prompts, 15 tokens of prompts" in text
    assert "50% of the steps at least 80 % full, then a tail of 2 s" in text
    assert "here: 1 worker, 8 rows, 0 tokens in, 0 out, 50% busy" in text
    assert "gone: no worker started" in text
    assert "1 replaced" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding(encoding):
    code = "import sys; from jobs.command import run; from jobs.console import print_summary\n"
    code += "from tests.jobs.test_console import summary\n"
    code += "s = summary(message='\\u4e16 \\U0001f600')\nrun(lambda: print_summary(s, sys.stdout) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"8 written" in done.stdout
