"""How much memory there is for weights and cache, and how to ask for it without touching it. Knows no model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

_CGROUP: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_UNLIMITED: Final = 1 << 62
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def free_bytes(device: torch.device) -> int:
    """Bytes that could still be allocated on the device. On the CPU a container's limit counts, and so does memory that
    the kernel would take back from its page cache."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_available_in_machine(), _available_in_container())


def readable(size: float) -> str:
    """`size` bytes for people, 1,024-based: 3221225472 is "3.0 GiB"."""
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{int(size)} bytes"


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Like torch.zeros, but on the CPU the kernel's zero pages stand in until a page is written: a cache of gigabytes
    costs no time at start and only what is used of it afterwards."""
    if device.type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(tuple(shape))


def _available_in_machine() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def _available_in_container() -> int:
    """What the control groups (v2) of this process still allow, or a number larger than any memory."""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return _UNLIMITED
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = _CGROUP / own
    return min(_room_in(group) for group in (folder, *folder.parents) if group.is_relative_to(_CGROUP))


def _room_in(group: Path) -> int:
    """Its limit less what it uses; file pages, which the kernel can drop, do not count as used."""
    try:
        limit = int((group / "memory.max").read_text())  # "max" is no number
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        pages = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        return max(0, limit - int((group / "memory.current").read_text()) + pages)
    except (OSError, ValueError):
        return _UNLIMITED
