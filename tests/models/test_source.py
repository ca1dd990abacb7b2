"""Model sources: what is there becomes a local folder, and what is not, or is broken, is told by name."""

from __future__ import annotations

import shutil

import pytest

from hfray.errors import SettingsError
from hfray.models.source import fetch, prepare
from tests.conftest import batch_settings, run_job


def settings_for(source, *overrides):
    return batch_settings(
        "conf=smollm2_cpu", "model=local", f"model.source={source}", "input.path=-", "output.path=-", *overrides
    )


def test_the_tokenizer_of_a_gguf_file_is_rebuilt_rightly(smollm2):
    """Digits are split one by one, and newlines stay newlines (transformers' own rebuilding ends the text at each)."""
    from hfray.engines.torch.checkpoint import load_tokenizer

    ids = load_tokenizer(smollm2).encode("Question: hi\n\nAnswer: Let's 123")
    assert ids == [17872, 42, 15876, 198, 198, 21350, 42, 2959, 506, 216, 33, 34, 35]


@pytest.mark.parametrize(
    "content", [b"", b"not a model at all", b"GGUF" + bytes(8), b"GGUF\x03\x00\x00\x00" + b"\xff" * 64]
)
def test_a_corrupt_gguf_file_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"model\.gguf.*(not a GGUF file|corrupt)"):
        fetch(settings_for(file).model)
    assert not list((tmp_path / "cache").glob("gguf/*/config.json"))  # nothing half made is kept


def test_a_gguf_file_cut_short_is_named(smollm2, tmp_path, monkeypatch):
    """The header is whole and the weights are not, as after a download that broke off."""
    from hfray.models.cache import cache_folder

    whole = next((path for path in cache_folder().glob("pip/**/*.gguf") if path.is_file()), None)
    if whole is None:
        pytest.skip("the model's file is not in the cache")
    file = tmp_path / "short.gguf"
    with open(whole, "rb") as source, open(file, "wb") as target:
        target.write(source.read(8 << 20))
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SettingsError, match=r"short\.gguf.*corrupt or cut short"):
        fetch(settings_for(file).model)


def test_a_folder_without_tokenizer_is_named_before_the_start(tiny_gpt2, questions, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_gpt2, folder, ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "merges*", "special*"))
    with pytest.raises(SettingsError, match=r"the folder has no tokenizer.*save_pretrained"):
        prepare(settings_for(folder))
    done = run_job(
        f"input.path={questions}",
        f"output.path={tmp_path / 'out'}",
        "conf=smollm2_cpu",
        "model=local",
        f"model.source={folder}",
    )
    assert done.returncode == 2
    assert "the folder has no tokenizer" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "/nowhere/model.gguf"])
def test_what_is_not_there_is_named(source):
    with pytest.raises(SettingsError, match=r"there is no such (folder|file)"):
        fetch(settings_for(source).model)
