"""Paged attention on the CPU: `paged_attention.cpp` behind the AttentionBackend interface.

The C++ believes what it is told. So all that it is told is checked here: what a step's plan says once per step, the
tensors of each layer by dtype, shape and stride, and the highest block against the cache that it must lie in.
"""

import ctypes
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from engine_core.attention import AttentionPlan, LayerCache, LayerGeometry, native
from engine_core.attention.self_check import largest_error
from engine_core.memory import zeros

logger: Final = logging.getLogger("tokenwire.engine_core")

SOURCE: Final = Path(__file__).with_name("paged_attention.cpp")
LANES: Final = 16  # tokens of a page, and numbers of a vector
ALIGNMENT: Final = 64  # bytes: a cache line, and a vector of LANES floats
ENTRY_POINTS: Final = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}
TOLERANCE: Final = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of results of size 1
CPU: Final = torch.device("cpu")


def fields(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, kind) for name in names)


class PlanArgument(ctypes.Structure):
    """`Plan` of the C++."""

    _fields_ = (
        *fields(ctypes.c_void_p, "slots", "query_starts", "kv_lens", "block_table"),
        *fields(ctypes.c_int64, "tokens", "rows", "table_width", "pages_per_block"),
    )


class LayerArgument(ctypes.Structure):
    """`Layer` of the C++."""

    _fields_ = (
        *fields(ctypes.c_void_p, "keys", "values"),
        *fields(ctypes.c_int64, "query_heads", "kv_heads", "key_dim", "value_dim", "padded_value_dim"),
        *fields(ctypes.c_int64, "window", "chunk"),
        *fields(ctypes.c_float, "scale", "softcap"),
    )


class TensorsArgument(ctypes.Structure):
    """`Tensors` of the C++."""

    _fields_ = (
        *fields(ctypes.c_void_p, "query", "key", "value"),
        *fields(ctypes.c_int64 * 2, "query_strides", "key_strides", "value_strides"),
        *fields(ctypes.c_void_p, "sinks", "output"),
        *fields(ctypes.c_int64, "threads"),
    )


@dataclass(frozen=True, slots=True)
class Pages:
    """One layer's keys [pages, kv_heads, key_dim, LANES] and values [pages, kv_heads, LANES, padded value_dim]. A block
    is block_size / LANES pages in a row."""

    geometry: LayerGeometry
    keys: torch.Tensor
    values: torch.Tensor
    argument: LayerArgument

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True)
class CheckedPlan:
    """A plan whose numbers fit each other, dense and in the types that the C++ reads."""

    tensors: tuple[torch.Tensor, ...]  # what the argument points to
    argument: PlanArgument
    tokens: int
    pages: int  # a cache must have as many


class CpuAttention:
    """Implements AttentionBackend. A token's result depends on its own sequence alone, bit for bit."""

    name = "cpu"

    def __init__(self, block_size: int, dtype: torch.dtype) -> None:
        """Raises CannotCompile where there is no compiler (see `available`)."""
        if block_size <= 0 or block_size % LANES:
            raise ValueError(f"the block size must be a multiple of {LANES}, not {block_size}")
        self._pages_per_block = block_size // LANES
        self._dtype = dtype
        self._attend = entry_point(dtype)
        self._plan: CheckedPlan | None = None

    @staticmethod
    def available(dtype: torch.dtype) -> bool:
        """True if the kernel can be made on this machine and computes what it should; the log says why not."""
        return dtype in ENTRY_POINTS and works(dtype)

    def allocate(self, geometry: LayerGeometry, num_blocks: int) -> Pages:
        if geometry.query_heads % geometry.kv_heads:
            raise ValueError(f"{geometry.query_heads} query heads can't share {geometry.kv_heads} kv heads")
        pages, width = num_blocks * self._pages_per_block, padded(geometry.value_dim)
        keys = aligned_zeros((pages, geometry.kv_heads, geometry.key_dim, LANES), self._dtype)
        values = aligned_zeros((pages, geometry.kv_heads, LANES, width), self._dtype)
        argument = LayerArgument(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            query_heads=geometry.query_heads,
            kv_heads=geometry.kv_heads,
            key_dim=geometry.key_dim,
            value_dim=geometry.value_dim,
            padded_value_dim=width,
            window=geometry.window or 0,
            chunk=geometry.chunk or 0,
            scale=geometry.scale,
            softcap=geometry.softcap or 0.0,
        )
        return Pages(geometry, keys, values, argument)

    def block_bytes(self, geometry: LayerGeometry) -> int:
        per_token = geometry.kv_heads * (geometry.key_dim + padded(geometry.value_dim)) * self._dtype.itemsize
        return self._pages_per_block * LANES * per_token

    def begin(self, plan: AttentionPlan) -> None:
        """Raises ValueError if the plan contradicts itself."""
        self._plan = checked(plan, self._pages_per_block)

    def attend(
        self,
        cache: LayerCache,
        geometry: LayerGeometry,
        query: torch.Tensor,  # [T, query_heads, key_dim]
        key: torch.Tensor,  # [T, kv_heads, key_dim]
        value: torch.Tensor,  # [T, kv_heads, value_dim]
        sinks: torch.Tensor | None,  # [query_heads]
    ) -> torch.Tensor:
        """Tensors may be views with any strides as long as the numbers of a head lie together; else they are copied."""
        plan = self._plan
        if plan is None or not isinstance(cache, Pages):
            raise TypeError("attend needs a plan (see begin) and a cache of this backend")
        if cache.geometry != geometry or cache.keys.dtype != self._dtype or cache.keys.shape[0] < plan.pages:
            raise ValueError("the cache was allocated for another geometry or type, or has fewer blocks than the plan")
        if (sinks is not None) is not geometry.sinks or (sinks is not None and sinks.shape != (geometry.query_heads,)):
            raise ValueError("sinks belong there, one per query head, exactly if the geometry says so")
        tokens = plan.tokens
        q = self._readable(query, (tokens, geometry.query_heads, geometry.key_dim))
        k = self._readable(key, (tokens, geometry.kv_heads, geometry.key_dim))
        v = self._readable(value, (tokens, geometry.kv_heads, geometry.value_dim))
        s = None if sinks is None else sinks.detach().to(CPU, torch.float32).contiguous()
        output = torch.empty((tokens, geometry.query_heads, geometry.value_dim), dtype=self._dtype)
        tensors = TensorsArgument(
            query=q.data_ptr(),
            key=k.data_ptr(),
            value=v.data_ptr(),
            query_strides=q.stride()[:2],
            key_strides=k.stride()[:2],
            value_strides=v.stride()[:2],
            sinks=None if s is None else s.data_ptr(),
            output=output.data_ptr(),
            threads=torch.get_num_threads(),
        )
        self._attend(plan.argument, cache.argument, tensors)
        return output.to(query.dtype)

    def _readable(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor as the C++ can read it, copied only if it must be."""
        if tensor.shape != shape or tensor.device != CPU:
            raise ValueError(f"expected {shape} on the CPU, got {tuple(tensor.shape)} on {tensor.device}")
        tensor = tensor.detach().to(self._dtype)
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def checked(plan: AttentionPlan, pages_per_block: int) -> CheckedPlan:
    """Raises ValueError. Rows without queries are allowed."""
    slots = plan.slots.to(CPU, torch.int64).contiguous()
    starts, lens, table = (
        tensor.to(CPU, torch.int32).contiguous() for tensor in (plan.query_starts, plan.kv_lens, plan.block_table)
    )
    rows, block_size = len(lens), pages_per_block * LANES
    if slots.dim() != 1 or starts.shape != (rows + 1,) or lens.dim() != 1 or table.dim() != 2 or len(table) != rows:
        raise ValueError("the plan's tensors have shapes that do not belong together")
    if rows == 0 or len(slots) == 0:
        raise ValueError("the plan has no tokens")
    counts = starts.diff()
    if int(starts[0]) or int(starts[-1]) != len(slots) or bool((counts < 0).any()):
        raise ValueError("query_starts does not divide the tokens into rows")
    if bool((lens < counts).any()) or int(lens.max()) > table.shape[1] * block_size:
        raise ValueError("a row has more queries than keys, or more keys than its blocks hold")
    if int(slots.min()) < 0 or int(table.min()) < 0:
        raise ValueError("slots and blocks count from 0")
    argument = PlanArgument(
        slots=slots.data_ptr(),
        query_starts=starts.data_ptr(),
        kv_lens=lens.data_ptr(),
        block_table=table.data_ptr(),
        tokens=len(slots),
        rows=rows,
        table_width=table.shape[1],
        pages_per_block=pages_per_block,
    )
    blocks = 1 + max(int(table.max()), int(slots.max()) // block_size)
    return CheckedPlan((slots, starts, lens, table), argument, len(slots), blocks * pages_per_block)


def padded(value_dim: int) -> int:
    """Values are padded so that a token's are whole vectors."""
    return -(-value_dim // LANES) * LANES


def aligned_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Like engine_core.memory.zeros, at an address that vectors load from without straddling cache lines."""
    count = 1
    for extent in shape:
        count *= extent
    flat = zeros((count + ALIGNMENT // dtype.itemsize,), dtype, CPU)
    skipped = -flat.data_ptr() % ALIGNMENT // dtype.itemsize
    return flat[skipped : skipped + count].view(shape)


# -------------------------------------------------------------------------------------------------- the library


def entry_point(dtype: torch.dtype) -> Callable[[PlanArgument, LayerArgument, TensorsArgument], None]:
    """The C++ function for this dtype. Raises CannotCompile."""
    function: Any = getattr(library(), ENTRY_POINTS[dtype])
    function.argtypes = tuple(ctypes.POINTER(kind) for kind in (PlanArgument, LayerArgument, TensorsArgument))
    function.restype = None

    def attend(plan: PlanArgument, layer: LayerArgument, tensors: TensorsArgument) -> None:
        function(plan, layer, tensors)

    return attend


@functools.cache
def library() -> ctypes.CDLL:
    return native.load(SOURCE)


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """The kernel is there and gives what torch gives."""
    try:
        backend = CpuAttention(LANES, dtype)
    except native.CannotCompile as reason:
        logger.warning("attention runs in plain torch: %s", reason)
        return False
    error = largest_error(backend, LANES, dtype)
    if error < TOLERANCE[dtype]:
        return True
    logger.error("attention runs in plain torch: the compiled kernel is off by %g", error)
    return False
