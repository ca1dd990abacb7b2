"""Measure the engine alone and the whole job side by side on the same prompts. Prints a table and writes JSON.

python -m jobs.bench input.path=questions.jsonl input.limit=512 [conf=PRESET] [bench.case=prefix] [key=value ...]
"""

from __future__ import annotations

from jobs.command import run, settings_of


def main() -> int:
    from hfray.tools.bench import format_table, run_bench
    from hfray.tools.bench_cases import BenchSettings

    result = run_bench(settings_of(BenchSettings, __doc__))
    print(format_table(result))
    print(f"All runs, settings and versions: {result['settings']['output']['path']}/bench-{result['case']}.json")
    return 0


if __name__ == "__main__":
    run(main)
