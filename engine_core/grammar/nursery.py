"""`python -m engine_core.grammar.nursery`: loads the tokenizer once, and forks a follower for each grammar.

Started by the engine, with a socket to it as standard input; ends when the engine closes the other end, or is gone.
Has one thread, imports neither torch nor transformers, and touches no grammar itself.
"""

import gc
import mmap
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from engine_core.grammar import follower
from engine_core.grammar.bounds import TOKENIZER_S
from engine_core.grammar.compiler import Compiler
from engine_core.grammar.messages import FRAME_BYTES, Ended, Fork, Setup, Unusable, decode, encode
from protocol.lifeline import die_with_parent

OOM_SCORE: Final = "1000"  # if the machine runs out of memory, rather one of these ends than the engine


def main() -> int:
    """Exit status: 0 when the engine has closed its end."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal's are the engine's affair
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a follower's death is nothing to look into
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(OOM_SCORE)
    control = socket.socket(fileno=sys.stdin.fileno())
    frame, descriptors, _, _ = socket.recv_fds(control, FRAME_BYTES, 1)
    if not frame:
        return 0
    setup = decode(frame)
    assert isinstance(setup, Setup)
    signal.setitimer(signal.ITIMER_PROF, TOKENIZER_S)
    try:
        compiler = Compiler(_text(descriptors[0]), setup.width, setup.eos_token_ids)
    except ValueError as error:
        control.send(encode(Unusable(str(error))))
        return 0
    signal.setitimer(signal.ITIMER_PROF, 0)
    gc.collect()
    gc.freeze()  # or the collector would copy, by touching them, the pages that followers share
    Nursery(control, compiler, setup.slots).serve()
    return 0


class Nursery:
    """Forks, and tells what became of whom."""

    def __init__(self, control: socket.socket, compiler: Compiler, slots: int) -> None:
        self._control = control
        self._compiler = compiler
        self._slots = slots
        self._followers: dict[int, int] = {}  # the engine's number by process id
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)

    def serve(self) -> None:
        """Until the engine closes its end."""
        control = self._control.fileno()
        while True:
            readable, _, _ = select.select([control, self._woken], [], [])
            if self._woken in readable:
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                for ended in self._reap():
                    self._control.send(encode(ended))
            if control in readable:
                frame, descriptors, _, _ = socket.recv_fds(self._control, FRAME_BYTES, 1)
                if not frame:
                    return
                command = decode(frame)
                assert isinstance(command, Fork)
                with socket.socket(fileno=descriptors[0]) as channel:
                    self._fork(command.follower, channel)

    def _fork(self, number: int, channel: socket.socket) -> None:
        parent = os.getpid()
        if child := os.fork():
            self._followers[child] = number
            return
        code = 1
        try:
            _become_follower(parent)
            code = follower.run(channel, self._compiler, self._slots)
        finally:
            os._exit(code)

    def _reap(self) -> Iterator[Ended]:
        while self._followers:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            yield Ended(self._followers.pop(child), os.waitstatus_to_exitcode(status))


def _become_follower(parent: int) -> None:
    """Leaves what is the nursery's, its socket to the engine above all: while that is open here, too, the engine would
    not see the nursery's end."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 2)  # where Rust says that an allocation failed


def _text(descriptor: int) -> str:
    with open(descriptor, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[:].decode()


if __name__ == "__main__":
    sys.exit(main())
