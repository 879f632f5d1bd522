"""From a name to a model in memory: finds the folder, checks that the weights fit, loads them.

Knows transformers' Auto classes and nothing of attention, caches or batches. Weights come from safetensors only, since
the other format is a pickle; code that a model brings along runs only when the operator said so.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from engine_core.errors import CannotStart, UnsupportedModel
from engine_core.memory import free_bytes, readable
from engine_core.model.quirks import settle_model
from engine_core.model.source import ModelSource

_AUTO: Final[Any] = AutoModelForCausalLM  # half annotated in transformers
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LOAD_ERRORS: Final = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError)
_MESSAGE_LENGTH: Final = 300  # of what is quoted from an exception
_NOISE_ELEMENTS: Final = 1 << 20
_NOISE_STD: Final = 0.02  # the initializer_range of most configurations


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run: eval mode, no gradients, `dtype` on `device`."""

    module: PreTrainedModel
    config: PreTrainedConfig
    source: ModelSource
    dtype: torch.dtype
    device: torch.device


def load_config(source: ModelSource) -> PreTrainedConfig:
    """Raises CannotStart where it can't be had, UnsupportedModel where it is of no known architecture."""
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except OSError as error:
        raise CannotStart(_not_found(source, error)) from error
    except Exception as error:  # each configuration class checks its values in its own way
        raise UnsupportedModel(f"{source.path}: config.json is not understood: {_one_line(error)}") from error
    return config


def load(
    source: ModelSource, config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device, dummy: bool = False
) -> LoadedModel:
    """Reads the weights, or makes noise in their place (`dummy`). Raises CannotStart if they do not fit the memory or
    can't be read, UnsupportedModel if transformers has no causal language model of this architecture."""
    _check_size(source, config, dtype, device)
    with torch.inference_mode(False):  # buffers made in inference mode could never be updated
        module = _build_dummy(config, dtype, device) if dummy else _read(source, config, dtype, device)
    module.train(False)
    module.requires_grad_(False)
    settle_model(module)
    return LoadedModel(module, config, source, dtype, device)


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise CannotStart(f"--device {name}: {_one_line(error)}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotStart(f"--device {name}: torch {torch.__version__} finds no CUDA device here")
    if device.type not in ("cpu", "cuda"):
        raise CannotStart(f"--device {name}: expected auto, cpu or cuda")
    return device


def pick_dtype(name: str, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """ "auto" is the configuration's own (float32 if it names none), with two exceptions on the CPU, where it becomes
    float32: bfloat16 without instructions for it (slower than float32 there), and float16 (no fast kernels at all)."""
    if name != "auto":
        if name not in DTYPES:
            raise CannotStart(f"--dtype {name}: expected auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    own = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None) or torch.float32
    wanted = DTYPES.get(str(own).removeprefix("torch."), torch.float32)
    if device.type == "cpu" and (wanted == torch.float16 or (wanted == torch.bfloat16 and not _fast_bfloat16())):
        return torch.float32
    return wanted


def weight_bytes(config: PreTrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool = False) -> int:
    """Bytes of all parameters and buffers in `dtype`, tied ones once: the model is built without memory and counted."""
    with torch.device("meta"), torch.inference_mode(False):
        module = _from_config(config, dtype, trust_remote_code=trust_remote_code)
    module.tie_weights()
    tensors: dict[int, torch.Tensor] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _check_size(source: ModelSource, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
    if getattr(config, "quantization_config", None) is not None:
        return  # smaller than it would look here
    needed = weight_bytes(config, dtype, trust_remote_code=source.trust_remote_code)
    there = free_bytes(device)
    if needed > there:
        smaller = " --dtype bfloat16 halves it;" if dtype == torch.float32 else ""
        raise CannotStart(
            f"{source.path}: the weights need {readable(needed)} in {str(dtype).removeprefix('torch.')}, "
            f"{readable(there)} of memory is free on {device};{smaller} take a smaller model or a larger machine"
        )


def _read(source: ModelSource, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Maps the files on the host and moves the tensors from there; device_map would need one more package."""
    try:
        with _quiet():
            module, report = _AUTO.from_pretrained(
                source.path,
                config=config,
                revision=source.revision,
                trust_remote_code=source.trust_remote_code,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                output_loading_info=True,
            )
    except _LOAD_ERRORS as error:
        raise CannotStart(f"{source.path}: the weights can't be loaded: {_one_line(error)}") from error
    absent = sorted(report["missing_keys"])
    if absent:
        raise CannotStart(
            f"{source.path}: the weights lack {len(absent)} tensors of the model, the first is {absent[0]}"
        )
    return cast(PreTrainedModel, module.to(device))


def _build_dummy(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Every weight is noise, every norm 1, every bias 0. Built in place rather than on the meta device, because emptied
    meta tensors lose what is computed in constructors (rotary frequencies)."""
    with no_init_weights(), device:
        module = _from_config(config, dtype, trust_remote_code=False)
    module.tie_weights()
    generator = torch.Generator(device="cpu").manual_seed(0)
    noise = (torch.randn(_NOISE_ELEMENTS, generator=generator) * _NOISE_STD).to(device, dtype)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                _tile(weight, noise)
    return module


def _tile(weight: nn.Parameter, noise: torch.Tensor) -> None:
    flat = weight.view(-1)
    for start in range(0, flat.numel(), noise.numel()):
        part = flat[start : start + noise.numel()]
        part.copy_(noise[: part.numel()])


def _from_config(config: PreTrainedConfig, dtype: torch.dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    try:
        with _quiet():
            module = _AUTO.from_config(
                config, dtype=dtype, attn_implementation="eager", trust_remote_code=trust_remote_code
            )
    except (ValueError, KeyError, ImportError) as error:
        reason = _one_line(error)
        if "Unrecognized configuration class" in reason:
            reason = "transformers has no causal language model of this architecture"
        raise UnsupportedModel(f"{config.model_type}: this architecture is not supported: {reason}") from error
    return cast(PreTrainedModel, module)


def _fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX, ARM BF16)."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.11 and older
        return bool(torch.cpu._is_avx512_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _not_found(source: ModelSource, error: OSError) -> str:
    if os.path.isdir(source.path):
        return f"{source.path}: config.json can't be read: {_one_line(error)}"
    revision = f" (revision {source.revision})" if source.revision else ""
    return (
        f"{source.path}{revision}: no such folder, not in the local Hugging Face cache, and not to be had from the hub"
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MESSAGE_LENGTH else f"{text[:_MESSAGE_LENGTH]}…"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and loading reports: what matters of them is raised."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
