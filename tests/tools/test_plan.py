"""plan=true: the estimates are right, and nothing is written."""

import json

import pytest

from hfray.errors import SettingsError
from hfray.tools.plan import Plan, Trial, make_plan
from tests.conftest import batch_settings, run_job
from tests.folders import row, write_part


@pytest.fixture
def table(tmp_path):
    """300 questions of 13 bytes, two long questions, a line that is not JSON, and a null."""
    lines = [json.dumps({"question": f"What is {n:03d}?"}) for n in range(300)]
    lines += [json.dumps({"question": "x" * 400})] * 2 + ["{broken", json.dumps({"question": None})]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.jsonl"


def settings(table, *more: str):
    fake = ["conf=fake", "backend.context_length=300", "backend.batch_size=8", "prompt.template='{question}'"]
    out = f"output.path={table.parent}/out"
    return batch_settings(f"input.path={table}", out, "plan=true", *fake, *more)


def test_what_the_sample_tells(table):
    plan = make_plan(settings(table, "backend.step_seconds=0.01", "backend.tokens_per_step=4"))
    trial = plan.trial
    assert (plan.rows, plan.done, plan.pending) == (304, 0, 304)
    assert trial.sampled == 304
    assert trial.prompts.number == 302
    assert (trial.prompts.quantile(0.5), trial.prompts.longest) == (12, 400)
    assert trial.too_long == 2
    assert sum(trial.errors.values()) == 2
    assert (trial.tried, trial.finished) == (32, 32)
    # 8 rows run at once, with 4 tokens per step of 10 ms: at most 3,200 tokens/s.
    assert trial.generated_tokens / trial.seconds / 2 < trial.tokens_per_second < 3400
    assert trial.rows_per_second == pytest.approx(trial.tokens_per_second / trial.tokens_per_row)
    assert len(trial.examples) == 3
    assert not (table.parent / "out").exists()


def folder_of(table, wanted, rows) -> None:
    """An output folder that holds these rows, made with the settings `wanted`."""
    from hfray.data.records import output_schema
    from hfray.data.scan import scan
    from hfray.runs.fingerprint import fingerprint

    out = table.parent / "out"
    write_part(out, "aaaa", 0, rows, output_schema(scan(wanted.input).schema))
    (out / "_hfray" / "run.json").write_text(json.dumps({"fingerprint": fingerprint(wanted)}))


@pytest.mark.parametrize(("block_rows", "blocks"), [(8, 4), (8, 1), (512, 1)])
def test_rows_done_at_the_beginning_leave_a_plan_for_the_rest(table, monkeypatch, block_rows, blocks):
    monkeypatch.setattr("hfray.tools.plan.BLOCK_ROWS", block_rows)
    monkeypatch.setattr("hfray.tools.plan.BLOCKS", blocks)
    monkeypatch.setattr("hfray.data.files.SLICE_BYTES", 2000)
    wanted = settings(table)
    folder_of(table, wanted, [row(n) | {"question": "q"} for n in range(200)])
    plan = make_plan(wanted)
    assert (plan.done, plan.pending) == (200, 104)
    assert plan.trial.sampled > 0


def test_failed_rows_are_planned_again_with_retry_errors(table):
    wanted = settings(table)
    folder_of(table, wanted, [row(n, error="no" if n < 5 else None) | {"question": "q"} for n in range(304)])
    assert make_plan(wanted).pending == 0
    again = make_plan(settings(table, "output.retry_errors=true"))
    assert (again.done, again.pending, again.trial.sampled) == (299, 5, 5)


def test_done_rows_are_neither_sampled_nor_counted(table):
    from hfray.runs.fingerprint import fingerprint

    out = table.parent / "out"
    wanted = settings(table)
    done = [row(n) | {"question": "q"} for n in range(250)]
    from hfray.data.records import output_schema
    from hfray.data.scan import scan

    write_part(out, "aaaa", 0, done, output_schema(scan(wanted.input).schema))
    (out / "_hfray" / "run.json").write_text(json.dumps({"fingerprint": fingerprint(wanted)}))
    before = sorted(path.name for path in out.rglob("*"))
    plan = make_plan(wanted)
    assert (plan.done, plan.pending, plan.trial.sampled) == (250, 54, 54)
    assert sorted(path.name for path in out.rglob("*")) == before
    with pytest.raises(SettingsError, match="made with other settings"):
        make_plan(settings(table, "generation.max_new_tokens=3"))


def test_estimates():
    trial = Trial(start_seconds=10.0, finished=20, seconds=5.0, generated_tokens=400.0, tokens_per_second=100.0)
    plan = Plan(rows=1000, done=200, trial=trial, price=3600.0)
    assert trial.rows_per_second == 5.0
    assert plan.estimate(1) == pytest.approx(10 + 800 / 5)
    assert plan.estimate(16) == pytest.approx(10 + 10)
    assert plan.cost(16) == pytest.approx(16 * 20)
    assert Plan(10, 0, Trial()).estimate(1) is None
    assert Plan(10, 0, trial).cost(1) is None


def test_a_slow_engine_is_judged_by_what_it_has_done(table, monkeypatch):
    monkeypatch.setattr("hfray.tools.plan.TRY_SECONDS", 1.5)
    plan = make_plan(settings(table, "backend.step_seconds=0.05", "backend.tokens_per_step=4"))
    assert 0 < plan.trial.finished < plan.trial.tried
    assert plan.trial.seconds > 1.2
    assert 0 < plan.trial.tokens_per_second < 700


def test_the_command(table):
    overrides = ["conf=fake", f"input.path={table}", f"output.path={table.parent}/out", "plan=true"]
    answer = run_job(*overrides, "prompt.template='{question}'", "cost.per_worker_hour=2", cwd=table.parent)
    assert answer.returncode == 0, answer.stderr
    for part in ("304", "median 12", "one worker", "generated tokens/s", "workers  time", "cost", "is not JSON"):
        assert part in answer.stdout
    assert sorted(path.name for path in table.parent.iterdir()) == ["t.jsonl"]
