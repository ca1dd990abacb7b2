"""Load the tokenizer and the model of a Hugging Face folder with transformers."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfray.engines.base import NO_CHAT_TEMPLATE
from hfray.engines.precision import torch_dtype
from hfray.engines.torch.memory import free_bytes
from hfray.errors import RequestError
from hfray.models.folder import check_tokenizer, end_token_ids, read_config, stored_dtype, weight_bytes

if TYPE_CHECKING:
    from llguidance import LLTokenizer

AWAY = ("cpu", "disk")  # where accelerate puts the layers that do not fit into the GPUs
OFFLOAD_KWARGS = ("max_memory", "offload_folder")  # arguments of from_pretrained that ask for this
WEIGHTS_SHARE = 0.9  # maximum share of a GPU's free memory for the weights; the rows need the rest


class TransformersTokenizer:
    """A transformers tokenizer behind a lock: fast tokenizers fail if two threads call them at once."""

    def __init__(self, tokenizer: Any) -> None:
        self.hf = tokenizer
        self.bos_id = tokenizer.bos_token_id
        self._lock = threading.Lock()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if not text:
            return []
        safe = text.encode("utf-8", "replace").decode()
        with self._lock:
            return self.hf.encode(safe, add_special_tokens=add_special_tokens, verbose=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        with self._lock:
            return self.hf.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def guide_tokenizer(self, end_ids: Sequence[int]) -> LLTokenizer:
        """llguidance's view of this tokenizer, for answers that must have a form. Raises RequestError."""
        from llguidance.hf import from_tokenizer

        try:
            with self._lock:
                return from_tokenizer(self.hf, eos_token=list(end_ids) or None)
        except (ValueError, TypeError) as error:
            raise RequestError(
                f"response: llguidance cannot read the model's tokenizer ({error}). Use another model or backend."
            ) from error

    @property
    def has_chat_template(self) -> bool:
        return bool(self.hf.chat_template)

    def chat(self, messages: list[dict[str, str]]) -> str:
        if not self.has_chat_template:
            raise ValueError(NO_CHAT_TEMPLATE)
        with self._lock:
            return self.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> TransformersTokenizer:
    """The folder's tokenizer, as transformers loads it. Raises SettingsError if there is none."""
    check_tokenizer(folder)
    return TransformersTokenizer(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code))


def load_model(
    folder: Path,
    auto_class: Any = AutoModelForCausalLM,
    *,
    device: str = "cpu",
    device_map: Any = None,
    precision: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """The folder's model on its device. `model_kwargs` may name a dtype too, if `precision` is auto.

    Raises:
        ValueError: the weights do not fit into the GPUs, or accelerate places some of them elsewhere.
    """
    config = read_config(folder)
    on_cpu = (device == "cpu" and device_map in (None, "cpu")) or not torch.cuda.is_available()
    dtype = torch_dtype(precision, stored_dtype(folder), on_cpu=on_cpu)
    quantized = "quantization_config" in {**config, **(model_kwargs or {})}
    offload = may_offload(device_map, model_kwargs or {})
    gpus = [device] if device_map is None else [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if gpus not in ([], ["cpu"]) and not quantized and not offload:
        loaded = loaded_dtype(folder, dtype, model_kwargs or {})
        free = [free_bytes(gpu) for gpu in gpus]
        check_fits(weight_bytes(folder, loaded), free, f"model.source={folder}: in {loaded}")
    options = {"dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code, **(model_kwargs or {})}
    if attention:
        options["attn_implementation"] = attention
    if device_map is not None or device != "cpu":  # the weights go straight to the device, not through the CPU's memory
        options["device_map"] = device_map or {"": device}
    model = auto_class.from_pretrained(folder, **options)
    if not offload:
        check_placement(getattr(model, "hf_device_map", {}), f"device.map={device_map}")
    return model.eval() if device_map is not None else model.eval().to(device)


def loaded_dtype(folder: Path, dtype: str, model_kwargs: Mapping[str, Any]) -> str:
    """The dtype that the weights get: `model_kwargs` wins, and its "auto" is the checkpoint's own dtype."""
    given = model_kwargs.get("dtype") or model_kwargs.get("torch_dtype")
    if given == "auto":
        given = stored_dtype(folder) or "float32"
    name = str(given or dtype).removeprefix("torch.")
    return name if name in ("float32", "float16", "bfloat16") else dtype


def check_fits(weights: int, free: Sequence[int], what: str) -> None:
    """Raise ValueError, before loading, if the weights exceed the free memory of the GPUs. Sizes in bytes."""
    if weights < sum(free) * WEIGHTS_SHARE:
        return
    gib, each = 1 << 30, sum(free) / max(1, len(free)) * WEIGHTS_SHARE
    have = (
        f"the GPU has {sum(free) / gib:.1f}" if len(free) == 1 else f"the {len(free)} GPUs have {sum(free) / gib:.1f}"
    )
    raise ValueError(
        f"{what} its weights take {weights / gib:.1f} GiB, and {have} GiB free. Spread it over several: device=auto "
        f"workers.gpus={math.ceil(weights / max(1, each))}."
    )


def may_offload(device_map: Any, model_kwargs: Mapping[str, Any]) -> bool:
    """Whether the user asks for layers on the CPU or the disk: by name in the map, or by accelerate's arguments."""
    named = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    return any(str(place) in AWAY for place in named) or any(model_kwargs.get(name) for name in OFFLOAD_KWARGS)


def check_placement(placed: Mapping[str, Any], what: str) -> None:
    """Raise ValueError if a model on GPUs has layers on the CPU or the disk, which makes it many times slower."""
    away = [name or "the whole model" for name, place in placed.items() if str(place) in AWAY]
    if away and len(away) < len(placed):
        raise ValueError(
            f"{what}: the GPUs cannot hold the model: accelerate placed {len(away)} of {len(placed)} parts on the CPU or "
            f"the disk, {away[0]} first. Book more GPUs with workers.gpus, or allow it: "
            "+model.kwargs.offload_folder=FOLDER."
        )


def end_ids(model: Any, tokenizer: TransformersTokenizer) -> set[int]:
    """The end-of-text token ids: the generation config's, or else the tokenizer's."""
    return end_token_ids(getattr(model.generation_config, "eos_token_id", None), tokenizer.hf.eos_token_id)
