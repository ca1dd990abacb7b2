"""Convert a Hugging Face model into an OpenVINO IR folder, and generate a sentence with the folder as a check.

python -m jobs.export output.path=FOLDER [conf=PRESET] [backend.weight_format=fp32|fp16|int8|int4] [key=value ...]
"""

from __future__ import annotations

from rich.console import Console

from jobs.command import run, settings_of


def main() -> int:
    from hfray.tools.export import ExportSettings, run_export

    report = run_export(settings_of(ExportSettings, __doc__), Console(stderr=True))
    print(report)
    return 0


if __name__ == "__main__":
    run(main)
