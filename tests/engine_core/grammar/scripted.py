"""Processes that do what the test says; nothing is started."""

import struct

import numpy as np

from engine_core.grammar.messages import Answer, Order, Orders, Release, State
from engine_core.grammar.processes import Process, Processes
from engine_core.request import Request
from protocol.sampling import Grammar

BYTES = 8


class Scripted(Processes):
    """The first one has compiled at once, later ones when the test says so."""

    def __init__(self) -> None:
        self.unusable = ""
        self.dropped: list[Process] = []
        self.forked: list[Process] = []
        self.sent: list[tuple[Process, Orders | Release]] = []
        self.turns = 0

    def fork(self, grammar: Grammar) -> Process:
        process = Process(len(self.forked), grammar, None)  # type: ignore[arg-type]
        process.compiled = not self.forked
        process.masks = np.zeros((4, BYTES), np.uint8)
        self.forked.append(process)
        return process

    def send(self, process: Process, message: Orders | Release) -> None:
        self.sent.append((process, message))

    def drop(self, process: Process) -> None:
        self.dropped.append(process)

    def turn(self, timeout_s: float = 0.0) -> None:
        self.turns += 1

    def orders(self, process: Process) -> list[Order]:
        return [order for to, said in self.sent if to is process and isinstance(said, Orders) for order in said.orders]

    def answer(self, request: Request, state: State = State.OPEN, process: Process | None = None) -> None:
        process = process or self.forked[-1]
        order = [order for order in self.orders(process) if order.slot == request.slot][-1]
        process.answers[order.slot] = Answer(order.ticket, order.slot, state, "why")

    def die(self, code: int, guilty: Request | None = None) -> None:
        process = self.forked[-1]
        process.code = code
        orders = [order for order in self.orders(process) if guilty is not None and order.slot == guilty.slot]
        process._ticket = np.frombuffer(struct.pack("<Q", orders[-1].ticket if orders else 0), np.uint8)
