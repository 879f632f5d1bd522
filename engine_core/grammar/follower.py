"""A process that compiles one grammar and follows the sequences of all requests that have it.

Runs between a fork and the process's end. Limits are the kernel's: timers and a limit of memory that end the process
wherever it is. The nursery tells the engine what it died of.
"""

import array
import ctypes
import mmap
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from llguidance import LLMatcher

from engine_core.grammar import bounds
from engine_core.grammar.compiler import Compiler, Refused, reason
from engine_core.grammar.messages import (
    FRAME_BYTES,
    GRAMMAR_BYTES,
    TICKET,
    WORN_OUT,
    Answer,
    Answers,
    Compile,
    Compiled,
    Order,
    Orders,
    Release,
    State,
    decode,
    encode,
)

LEAST_URGENT: Final = 19  # of the system's priorities
ANSWER_S: Final = 0.001  # after which answers that are there don't wait for those to come


def run(channel: socket.socket, compiler: Compiler, slots: int) -> int:
    """The process's life, to its exit code."""
    signal.setitimer(signal.ITIMER_REAL, bounds.COMPILE_WALL_S)
    _limit(resource.RLIMIT_CPU, bounds.COMPILE_S)
    command = decode(channel.recv(GRAMMAR_BYTES))
    assert isinstance(command, Compile)
    resident = _pages(1)
    _limit_memory(bounds.COMPILE_BYTES)
    try:
        follower = Follower(channel, compiler.compile(command.grammar), compiler, slots)
        follower.rehearse()
        _give_back_memory()
        if (kept := (_pages(1) - resident) * resource.getpagesize()) > bounds.KEPT_BYTES:
            raise Refused(f"The grammar takes {kept >> 20} MiB, at most {bounds.KEPT_BYTES >> 20}.")
    except Refused as error:
        channel.send(encode(Compiled(str(error), 0)))
        return 0
    except MemoryError:
        os.abort()  # as llguidance does
    _limit_memory(bounds.FOLLOW_BYTES)
    _limit(resource.RLIMIT_CPU, resource.RLIM_INFINITY)
    signal.setitimer(signal.ITIMER_REAL, 0)
    follower.serve()
    return 0


class Follower:
    """A compiled grammar, and the sequences that are followed by slot."""

    def __init__(self, channel: socket.socket, prototype: LLMatcher, compiler: Compiler, slots: int) -> None:
        self._channel = channel
        self._prototype = prototype  # its copies share the lexer's states, which grow with what they see
        self._ends = compiler.eos_token_ids
        self._row_bytes = compiler.row_bytes
        self._matchers: dict[int, LLMatcher] = {}
        self._opened = 0
        self._shared = os.memfd_create("masks")
        os.ftruncate(self._shared, slots * self._row_bytes + TICKET.size)
        self._memory = mmap.mmap(self._shared, 0)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._ticket_at = slots * self._row_bytes
        self._nothing = bytes(self._row_bytes)
        self._heavy_s = 0.0  # processor time that heavy masks have taken

    def rehearse(self) -> None:
        """Follows a sequence drawn at random, or several short ones. Raises Refused."""
        noise = random.Random(0)
        matcher = self._prototype.deep_copy()
        fresh = True
        for _ in range(bounds.REHEARSAL_TOKENS):
            with _limited():
                state, message = self._mask(matcher, 0)
            if state is State.BROKEN:
                raise Refused(f"The grammar can't be followed: {message}")
            if state is not State.COMPLETE:
                matcher.consume_token(_any_token(self._memory[: self._row_bytes], noise))
                fresh = False
            elif fresh:
                raise Refused("The grammar allows no text but the empty one.")
            else:
                matcher = self._prototype.deep_copy()
                fresh = True

    def serve(self) -> None:
        """Until the engine closes its end."""
        told = array.array("i", [self._shared])
        self._channel.sendmsg(
            [encode(Compiled("", self._row_bytes))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, told.tobytes())]
        )
        os.close(self._shared)
        while frame := self._channel.recv(FRAME_BYTES):
            match decode(frame):
                case Orders(orders=orders):
                    self._carry_out(orders)
                case Release(slot=slot):
                    self._matchers.pop(slot, None)

    def _carry_out(self, orders: list[Order]) -> None:
        answers: list[Answer] = []
        since_s = time.perf_counter()
        for order in orders:
            TICKET.pack_into(self._memory, self._ticket_at, order.ticket)
            began_s = time.process_time()
            with _limited():
                state, message = self._follow(order)
            self._make_way(time.process_time() - began_s)
            if order.ticket:
                answers.append(Answer(order.ticket, order.slot, state, message))
            if answers and (state is State.BROKEN or time.perf_counter() - since_s > ANSWER_S):
                self._channel.send(encode(Answers(answers)))
                answers = []
                since_s = time.perf_counter()
        TICKET.pack_into(self._memory, self._ticket_at, 0)
        if answers:
            self._channel.send(encode(Answers(answers)))

    def _make_way(self, seconds: float) -> None:
        """For the engine and for other followers, if this grammar's masks are heavy: an order took so long."""
        if seconds >= bounds.HEAVY_MASK_CPU_S:
            self._heavy_s += seconds
            if self._heavy_s > bounds.HEAVY_CPU_S:
                os.nice(LEAST_URGENT)

    def _follow(self, order: Order) -> tuple[State, str]:
        if order.fresh:
            self._matchers[order.slot] = self._prototype.deep_copy()
            self._opened += 1
        matcher = self._matchers[order.slot]
        if order.tokens and not matcher.consume_tokens(order.tokens):
            return self._broken(matcher)
        return self._mask(matcher, order.slot) if order.ticket else (State.OPEN, "")

    def _mask(self, matcher: LLMatcher, slot: int) -> tuple[State, str]:
        """Writes the slot's mask, without the ends of sequence: when a sentence may end is the engine's to decide."""
        memory, offset, size = self._memory, slot * self._row_bytes, self._row_bytes
        matcher.unsafe_compute_mask_ptr(self._address + offset, size)
        if matcher.is_error():
            return self._broken(matcher)
        for end in self._ends:
            memory[offset + (end >> 3)] &= ~(1 << (end & 7))
        sentence = matcher.is_accepting() or matcher.is_stopped()
        if memory[offset : offset + size] != self._nothing:
            return (State.SENTENCE if sentence else State.OPEN), ""
        return (State.COMPLETE, "") if sentence else (State.BROKEN, "no token leads on")

    def _broken(self, matcher: LLMatcher) -> tuple[State, str]:
        if matcher.stop_reason() == "LexerTooComplex" and self._opened > 1:
            os._exit(WORN_OUT)
        return State.BROKEN, reason(matcher)


@contextmanager
def _limited() -> Iterator[None]:
    """The kernel ends the process if this takes too much processor time."""
    signal.setitimer(signal.ITIMER_PROF, bounds.MASK_CPU_S)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _any_token(mask: bytes, noise: random.Random) -> int:
    """One of those allowed, each about as likely; there must be one."""
    bits = int.from_bytes(mask, "little")
    skipped = noise.randrange(len(mask) * 8)
    rest = bits >> skipped
    if not rest:
        rest, skipped = bits, 0
    return skipped + (rest & -rest).bit_length() - 1


def _pages(column: int) -> int:
    """Of /proc/self/statm: 0 is the size of the address space, 1 what of it is resident."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[column])


def _limit_memory(more: int) -> None:
    """To what there is, and `more` bytes."""
    size = _pages(0) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, size + more)


def _limit(what: int, most: int) -> None:
    """In a way that can be undone."""
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (hard if most == resource.RLIM_INFINITY else most, hard))


def _give_back_memory() -> None:
    """What was freed goes back to the system now, where malloc can be asked to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
