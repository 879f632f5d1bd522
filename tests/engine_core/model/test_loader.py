import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from engine_core.errors import CannotStart, UnsupportedModel
from engine_core.memory import free_bytes
from engine_core.model import loader
from engine_core.model.loader import LoadedModel, load, load_config, pick_device, pick_dtype
from engine_core.model.source import resolve
from tests.engine_core.architectures import build, config_of
from tests.engine_core.driver import CPU, Engine, reference

PROMPT = tuple(range(3, 20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    build(config_of("llama")).save_pretrained(path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def load_folder(path: Path, dtype: torch.dtype = torch.float32, *, dummy: bool = False) -> LoadedModel:
    source = resolve(str(path))
    return load(source, load_config(source), dtype=dtype, device=CPU, dummy=dummy)


def test_a_folder_is_loaded_as_it_was_saved(folder: Path) -> None:
    loaded = load_folder(folder)
    assert not loaded.module.training
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())
    want = reference(build(config_of("llama")), PROMPT, 8)
    assert Engine(loaded.module).generate([PROMPT], 8) == [want]


def test_weights_are_loaded_in_the_dtype_asked_for(folder: Path) -> None:
    assert {p.dtype for p in load_folder(folder, torch.bfloat16).module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", "~nobody/x", ""])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(CannotStart, match="no such model folder") as caught:
        resolve(name)
    assert str(caught.value).startswith(name or "(empty name)")


def test_an_id_that_can_not_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = resolve("tokenwire-test/not-there", revision="v1")
    with pytest.raises(
        CannotStart, match=r"^tokenwire-test/not-there \(revision v1\): no such folder, not in the local"
    ):
        load_config(source)


def test_what_is_no_model_folder_is_named(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(CannotStart, match=f"{tmp_path}: the model folder has no config.json"):
        resolve(str(tmp_path))
    with pytest.raises(CannotStart, match=r"config\.json: a model is a folder"):
        resolve(str(copy / "config.json"))
    (copy / "config.json").write_text("{ no json")
    with pytest.raises(CannotStart, match=f"{copy}: config.json can't be read"):
        load_config(resolve(str(copy)))


def test_unknown_architectures_are_refused(copy: Path) -> None:
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"model_type": "no-such-thing"}))
    with pytest.raises(UnsupportedModel, match="no-such-thing"):
        load_config(resolve(str(copy)))
    (copy / "config.json").write_text(json.dumps(settings | {"hidden_size": "large"}))
    with pytest.raises(UnsupportedModel, match="hidden_size") as caught:
        load_config(resolve(str(copy)))
    assert "\n" not in str(caught.value)


def test_models_that_do_not_decode_are_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("t5", d_model=32, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"t5: .* no causal language model") as caught:
        load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    with pytest.raises(CannotStart, match=f"{copy}: the weights can't be loaded"):
        load_folder(copy)


def test_weights_that_lack_a_tensor_are_refused(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CannotStart, match=r"lack 1 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_folder(copy)


@pytest.mark.filterwarnings("ignore")
def test_weights_of_another_shape_or_broken_ones_are_refused(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CannotStart, match="weights can't be loaded"):
        load_folder(copy)
    (copy / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense")
    with pytest.raises(CannotStart, match="weights can't be loaded"):
        load_folder(copy)


@pytest.mark.parametrize("dummy", [False, True])
def test_a_model_too_large_is_refused_before_it_is_loaded(copy: Path, dummy: bool) -> None:
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(settings | {"intermediate_size": 1 << 36}))
    with pytest.raises(CannotStart, match=r"weights need 72\.0 TiB in float32, .* is free on cpu; --dtype bfloat16"):
        load_folder(copy, dummy=dummy)


def test_the_size_is_that_of_the_weights(folder: Path) -> None:
    model = build(config_of("llama"))
    want = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert loader.weight_bytes(config_of("llama"), torch.float32) == want
    tied = build(config_of("llama-tied-bias"))
    assert loader.weight_bytes(config_of("llama-tied-bias"), torch.float32) == sum(
        t.nbytes for t in (*tied.parameters(), *tied.buffers())
    )
    assert free_bytes(CPU) > want


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss", "deepseek_v3", "llama-tied-bias", "gemma2"])
def test_dummy_weights_run(name: str, tmp_path: Path) -> None:
    config_of(name).save_pretrained(tmp_path)
    loaded = load_folder(tmp_path, dummy=True)
    for key, parameter in loaded.module.named_parameters():
        assert parameter.isfinite().all()
        assert parameter.abs().max() <= 1.0
        if parameter.dim() > 1 and not key.endswith("bias"):
            assert 0.01 < parameter.std() < 0.03
    engine = Engine(loaded.module)
    (out,) = engine.generate([PROMPT], 4)
    assert len(out) == 4
    assert engine.sampler.logits[0].isfinite().all()


def test_dummy_models_keep_what_their_constructors_compute(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path)
    dummy, real = load_folder(tmp_path, dummy=True).module, build(config_of("llama"))
    assert dummy.model.rotary_emb.inv_freq.equal(real.model.rotary_emb.inv_freq)
    assert dummy.model.norm.weight.eq(1.0).all()


@pytest.mark.parametrize(
    ("name", "own", "fast", "want"),
    [
        ("auto", torch.bfloat16, True, torch.bfloat16),
        ("auto", torch.bfloat16, False, torch.float32),
        ("auto", torch.float16, True, torch.float32),
        ("auto", None, True, torch.float32),
        ("float32", torch.bfloat16, True, torch.float32),
        ("bfloat16", torch.float32, False, torch.bfloat16),
    ],
)
def test_dtypes(name: str, own: Any, fast: bool, want: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_fast_bfloat16", lambda: fast)
    config = config_of("llama")
    config.dtype = own
    assert pick_dtype(name, config, CPU) == want


def test_unusable_devices_and_dtypes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    for name in ("cuda", "meta", "toaster"):
        with pytest.raises(CannotStart, match=f"--device {name}"):
            pick_device(name)
    with pytest.raises(CannotStart, match="--dtype int8"):
        pick_dtype("int8", config_of("llama"), CPU)
