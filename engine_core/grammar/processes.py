"""The engine's end of the nursery and its followers: starts them, sends, hears what they say and what becomes of them.

Nothing here waits unless it is told to. Knows no requests and no policy.
"""

import hashlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine_core.grammar.messages import (
    FRAME_BYTES,
    TICKET,
    Answer,
    Answers,
    Compile,
    Compiled,
    Ended,
    Fork,
    Message,
    Orders,
    Release,
    Setup,
    Unusable,
    decode,
    encode,
    socket_pair,
)
from protocol.sampling import Grammar

LOST: Final = -signal.SIGKILL  # what became of followers whose nursery is gone


def digest_of(grammar: Grammar) -> bytes:
    """Names what a grammar says, whoever asked for it."""
    said = (grammar.kind, grammar.text, grammar.frame)
    return hashlib.blake2b(msgspec.msgpack.encode(said), digest_size=16).digest()


class Process:
    """A follower, as far as the engine knows."""

    def __init__(self, number: int, grammar: Grammar, channel: socket.socket) -> None:
        self.number = number
        self.grammar = grammar
        self.digest = digest_of(grammar)
        self.users = 0  # requests that hold on to it
        self.compiled = False
        self.refusal = ""  # why the grammar can't be used
        self.code: int | None = None  # how it ended
        self.answers: dict[int, Answer] = {}  # the last one, by slot
        self.masks: NDArray[np.uint8] = np.empty((0, 0), np.uint8)  # [slots, bytes], written by the follower
        self.channel: socket.socket | None = channel
        self.backlog: deque[bytes] = deque()  # what its socket had no room for
        self._ticket: NDArray[np.uint8] = np.zeros(TICKET.size, np.uint8)

    @property
    def spent(self) -> bool:
        """It follows nothing any more, or never will."""
        return self.code is not None or bool(self.refusal)

    @property
    def ticket(self) -> int:
        """Of the order that it is carrying out, or died of; 0 is none."""
        ticket: int = TICKET.unpack(self._ticket.tobytes())[0]
        return ticket

    def share(self, descriptor: int, row_bytes: int) -> None:
        """Maps what it writes."""
        memory = np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
        self.masks = memory[: -TICKET.size].reshape(-1, row_bytes)
        self._ticket = memory[-TICKET.size :]


class Processes:
    """All of them. The nursery is started when the first follower is wanted, and again after its death."""

    def __init__(self, tokenizer: bytes, setup: Setup) -> None:
        """`tokenizer` is the text of a tokenizer.json; without one, no grammar can be followed."""
        self.unusable = "" if tokenizer else "it has no tokenizer"  # why no grammar can ever be followed
        self._tokenizer = tokenizer
        self._setup = setup
        self._nursery: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._poll = select.epoll()
        self._processes: dict[int, Process] = {}  # by number, until the nursery says that it ended
        self._by_fileno: dict[int, Process] = {}
        self._number = 0

    @property
    def nursery_pid(self) -> int | None:
        return None if self._nursery is None else self._nursery.pid

    def fork(self, grammar: Grammar) -> Process:
        """A new follower, which has begun to compile."""
        if self._control is None:
            self._start()
        assert self._control is not None
        self._number += 1
        ours, theirs = socket_pair()
        process = Process(self._number, grammar, ours)
        with theirs:
            ours.setblocking(False)
            ours.send(encode(Compile(grammar)))
            self._processes[process.number] = process
            self._by_fileno[ours.fileno()] = process
            self._poll.register(ours, select.EPOLLIN)
            try:
                socket.send_fds(self._control, [encode(Fork(process.number))], [theirs.fileno()])
            except OSError:  # the nursery is gone, or takes nothing more
                self._lose_nursery()
        return process

    def send(self, process: Process, message: Orders | Release) -> None:
        """Now, or when its socket has room. To a follower that is gone nothing is sent."""
        process.backlog.append(encode(message))
        self._flush(process)

    def drop(self, process: Process) -> None:
        """Nobody wants it any more: it ends."""
        self._processes.pop(process.number, None)
        self._hang_up(process)

    def turn(self, timeout_s: float = 0.0) -> None:
        """Takes in what has come from them, waiting at most `timeout_s` for the first of it."""
        if self._control is None:
            return
        for process in self._processes.values():
            if process.backlog:
                self._flush(process)
        for fileno, _ in self._poll.poll(timeout_s):
            if (speaker := self._by_fileno.get(fileno)) is not None:
                self._hear(speaker)
            elif self._control is not None and fileno == self._control.fileno():
                self._hear_nursery(self._control)

    def close(self) -> None:
        """Ends all of them."""
        self._lose_nursery()
        self._poll.close()

    # ------------------------------------------------------------------------------------------------ inside

    def _start(self) -> None:
        ours, theirs = socket_pair()
        text = os.memfd_create("tokenizer")
        with theirs, open(text, "wb") as file:
            file.write(self._tokenizer)
            file.flush()
            command = (sys.executable, "-m", "engine_core.grammar.nursery")
            self._nursery = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
            socket.send_fds(ours, [encode(self._setup)], [text])
        ours.setblocking(False)
        self._control = ours
        self._poll.register(ours, select.EPOLLIN)

    def _lose_nursery(self) -> None:
        """It is gone, or has to go; its followers go with it."""
        if self._control is None or self._nursery is None:
            return
        self._poll.unregister(self._control)
        self._control.close()
        self._control = None
        self._nursery.kill()
        self._nursery.wait()
        self._nursery = None
        for number in list(self._processes):
            self._end(number, LOST)

    def _hear_nursery(self, control: socket.socket) -> None:
        for message, _ in _messages(control):
            match message:
                case Unusable(reason=reason):
                    self.unusable = reason
                case Ended(follower=number, code=code):
                    self._end(number, code)
                case _:
                    return self._lose_nursery()
        return None

    def _end(self, number: int, code: int) -> None:
        if (process := self._processes.pop(number, None)) is not None:
            self._hear(process)  # its last words may still be there
            self._hang_up(process)
            process.code = code

    def _hear(self, process: Process) -> None:
        if process.channel is None:
            return None
        for message, descriptor in _messages(process.channel):
            match message:
                case Compiled(refusal=refusal, row_bytes=row_bytes):
                    process.refusal = refusal
                    process.compiled = not refusal
                    if descriptor is not None:
                        process.share(descriptor, row_bytes)
                        os.close(descriptor)
                case Answers(answers=answers):
                    process.answers.update((answer.slot, answer) for answer in answers)
                case _:
                    return self._hang_up(process)
        return None

    def _flush(self, process: Process) -> None:
        try:
            while process.backlog and process.channel is not None:
                process.channel.send(process.backlog[0])
                process.backlog.popleft()
        except BlockingIOError:
            pass
        except OSError:  # it is gone, as the nursery will tell
            process.backlog.clear()

    def _hang_up(self, process: Process) -> None:
        if process.channel is not None:
            self._poll.unregister(process.channel)
            del self._by_fileno[process.channel.fileno()]
            process.channel.close()
            process.channel = None


def _messages(channel: socket.socket) -> Iterator[tuple[Message | None, int | None]]:
    """All that are there, each with the descriptor that came along; None is the end, or nonsense."""
    while True:
        try:
            frame, descriptors, _, _ = socket.recv_fds(channel, FRAME_BYTES, 1)
        except BlockingIOError:
            return
        except ConnectionResetError:  # it ended with something unread; what it sent before is still there
            continue
        message: Message | None = None
        with suppress(msgspec.MsgspecError):
            message = decode(frame)
        yield message, descriptors[0] if descriptors else None
        if message is None:
            return
