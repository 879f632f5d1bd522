"""What the routes for operators answer."""

from typing import Literal

from msgspec import Struct


class Alive(Struct, frozen=True):
    status: Literal["ok"] = "ok"


class EngineHealth(Struct, frozen=True):
    """The engine core as this process knows it. Its epoch counts its lives; ages are in seconds."""

    state: str
    epoch: int
    heartbeat_age_s: float
    last_step_age_s: float
    running: int
    waiting: int


class Health(Struct, frozen=True):
    """`status` is `ok`, or what is in the way."""

    status: str
    engine: EngineHealth
    draining: bool


class Versions(Struct, frozen=True):
    """Of this software, and of what its processes speak among themselves."""

    version: str
    protocol_version: int
