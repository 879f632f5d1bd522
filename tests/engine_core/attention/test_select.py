import pytest
import torch

from engine_core.attention.cpu import CpuAttention
from engine_core.attention.select import select
from tests.engine_core.driver import CPU


def test_the_kernel_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CpuAttention, "available", lambda dtype: False)
    assert select(CPU, torch.float32, 16).name == "reference"
    monkeypatch.undo()
    if CpuAttention.available(torch.float32):
        assert select(CPU, torch.float32, 16).name == "cpu"
        assert select(CPU, torch.bfloat16, 32).name == "cpu"
    assert select(CPU, torch.float32, 8).name == "reference"
    assert select(CPU, torch.float16, 16).name == "reference"
