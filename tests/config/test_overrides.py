"""Text after `key=` arrives unchanged, also through a real shell."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest
import yaml

from hfray.config.compose import load_settings
from hfray.errors import SettingsError
from tests.conftest import batch_settings

IO = ["input.path=in.jsonl", "output.path=out"]
TEMPLATES = [
    "Summarize: {text}",
    "{question}",
    "Translate to French, politely: {question}",
    "What's this: {question}",
    "[INST] {question} [/INST]",
    "Rate (1-5): {question} =>",
    'Answer "yes" or "no": {question}',
    "Question: {question}\nAnswer:",
    "50% of ${question}",
    "# {question}",
    '"{a}" and "{b}"',
    "a\\b {question} $HOME `id`",
    "",
    "null and {question}",
]

PATHS = ["my data (1)", "x=1", "a,b", "ünï", "c:d", "#1", "${HOME}", "s3://b/k?endpoint=h:1&x=y"]


def typed(command: str) -> dict:
    """The composed settings of a command that runs through a shell."""
    shown = f"{shlex.quote(sys.executable)} -m jobs.batch input.path=in output.path=out --cfg {command}"
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_text_arrives_through_a_shell():
    values = typed(
        "prompt.template='Translate to \"French\", politely: {question}' "
        "prompt.system='You are a helpful, honest assistant.' model.source=pip:NAME==1.0/path"
    )
    assert values["prompt"]["template"] == 'Translate to "French", politely: {question}'
    assert values["prompt"]["system"] == "You are a helpful, honest assistant."
    assert values["model"]["source"] == "pip:NAME==1.0/path"


def test_every_template_and_path_arrives_through_a_shell():
    """All of them in one shell and one process, because each process takes a second."""
    code = (
        "import json, sys; from hfray import load_settings; "
        "made = [load_settings(['output.path=out', *pair]) for pair in zip(sys.argv[1::2], sys.argv[2::2])]; "
        "print(json.dumps([[one.prompt.template, one.input.path] for one in made]))"
    )
    pairs = [(template, PATHS[number % len(PATHS)]) for number, template in enumerate(TEMPLATES)]
    words = [
        f"{key}={shlex.quote(value)}" for pair in pairs for key, value in zip(("prompt.template", "input.path"), pair)
    ]
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {' '.join(words)}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [tuple(pair) for pair in json.loads(done.stdout)] == pairs


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_arrive_as_typed(template):
    assert batch_settings(*IO, f"prompt.template={template}").prompt.template == template


@pytest.mark.parametrize("path", PATHS)
def test_paths_arrive_as_typed(path):
    settings = batch_settings(f"input.path={path}", f"output.path={path}")
    assert (settings.input.path, settings.output.path) == (path, path)


def test_text_keys_keep_lists_nulls_and_hydras_quotes():
    assert batch_settings("input.path=[a.jsonl,b.jsonl]", "output.path=out").input.path == ["a.jsonl", "b.jsonl"]
    assert batch_settings(*IO, "prompt.system=null").prompt.system is None
    assert batch_settings(*IO, "prompt.template='it\\'s {text}'").prompt.template == "it's {text}"
    assert batch_settings(*IO, 'prompt.template="{text}"').prompt.template == "{text}"
    assert batch_settings(*IO, "generation.stop=a, b").params.stop_strings == ("a, b",)
    assert batch_settings(*IO, "generation.stop=['a, b',c]").params.stop_strings == ("a, b", "c")
    assert batch_settings(*IO, "workers.labels.pool=a,b").workers.labels == {"pool": "a,b"}
    assert batch_settings(*IO, "device=cpu", "device.map={a: 0}").device.map == {"a": 0}
    assert batch_settings(*IO, "++prompt.template={text}").prompt.template == "{text}"


def test_a_value_that_the_grammar_cannot_read_is_shown_quoted():
    with pytest.raises(SettingsError) as caught:
        batch_settings(*IO, "model.kwargs.note=it's {so}")
    words = str(caught.value)
    assert "model.kwargs.note" in words
    command = words[words.index("quotes: ") + len("quotes: ") :]
    (override,) = shlex.split(command)
    assert batch_settings(*IO, override).model.kwargs == {"note": "it's {so}"}


def test_values_between_commas_are_shown_quoted():
    with pytest.raises(SettingsError, match=r"model\.kwargs\.note=a, b: .*'model\.kwargs\.note=.*a, b"):
        batch_settings(*IO, "model.kwargs.note=a, b")


def test_a_word_that_is_not_key_value_is_named():
    with pytest.raises(SettingsError, match=r"politely: this is not key=value"):
        batch_settings(*IO, "politely")


def test_a_template_is_read_from_a_file(tmp_path):
    path = tmp_path / "my template, v1.txt"
    path.write_text('{question}\n\n"Answer", ${x}: \n', encoding="utf-8")
    settings = batch_settings(*IO, f"prompt.template_file={path}")
    assert settings.prompt.template == '{question}\n\n"Answer", ${x}: '
    with pytest.raises(SettingsError, match=r"prompt\.template_file=.*: prompt\.template=x is given too"):
        batch_settings(*IO, f"prompt.template_file={path}", "prompt.template=x")
    with pytest.raises(SettingsError, match=r"prompt\.template_file=.*cannot be read"):
        batch_settings(*IO, f"prompt.template_file={tmp_path / 'none'}")


def test_other_settings_take_text_too():
    from hfray.runs.compare import CompareSettings

    settings = load_settings(["first=a, b", "second={c}"], CompareSettings)
    assert (settings.first, settings.second) == ("a, b", "{c}")


def test_a_service_takes_text_from_its_manifest():
    from hfray.serve.deployment import overrides

    args = {"conf": "fake", "prompt": {"template": "Rate (1-5): {question}"}}
    from hfray.config.serve import ServeSettings

    assert load_settings(overrides(args), ServeSettings).prompt.template == "Rate (1-5): {question}"
    assert json.loads(json.dumps(args)) == args
