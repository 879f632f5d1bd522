from pathlib import Path

import pytest
import torch

from engine_core import memory
from engine_core.memory import free_bytes, readable, zeros

CPU = torch.device("cpu")
MIB = 1 << 20


def write_group(folder: Path, limit: str, used: int, file_pages: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {file_pages}\nactive_file 0\n")


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "self"
    own.write_text("1:name=systemd:/else\n0::/slice/unit\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "fs")
    monkeypatch.setattr(memory, "_OWN_CGROUP", own)
    unlimited = free_bytes(CPU)
    assert unlimited > 200 * MIB, "no such groups: the machine's own memory"

    write_group(tmp_path / "fs" / "slice" / "unit", "max", 10 * MIB, 0)
    assert free_bytes(CPU) > 200 * MIB
    write_group(tmp_path / "fs" / "slice", str(100 * MIB), 60 * MIB, 20 * MIB)
    assert free_bytes(CPU) == 60 * MIB
    write_group(tmp_path / "fs" / "slice" / "unit", str(50 * MIB), 49 * MIB, 0)
    assert free_bytes(CPU) == MIB
    write_group(tmp_path / "fs" / "slice" / "unit", str(50 * MIB), 70 * MIB, 0)
    assert free_bytes(CPU) == 0


def test_zeros_take_no_memory_until_they_are_written() -> None:
    before = resident_bytes()
    tensor = zeros((1 << 20, 256), torch.float32, CPU)  # 1 GiB
    assert tensor.shape == (1 << 20, 256)
    assert not tensor[::100_000].any()
    tensor[5] = 1.0
    assert tensor[4:7].sum() == 256
    assert resident_bytes() - before < 64 * MIB


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_sizes_are_readable() -> None:
    assert [readable(n) for n in (7, 2048, 3 << 30, 1 << 50)] == ["7 bytes", "2.0 KiB", "3.0 GiB", "1.0 PiB"]
