"""What a grammar may cost, in its own process and in number."""

from typing import Final

# In a follower. The kernel enforces them, whatever the process is stuck in.
COMPILE_S: Final = 2  # of processor time, whole seconds, the rehearsal included
COMPILE_WALL_S: Final = 10.0  # by the clock on the wall: on a busy machine it may take longer, but not for ever
COMPILE_BYTES: Final = 512 << 20  # of address space, beyond what the process has when it is forked
KEPT_BYTES: Final = 64 << 20  # of memory that a compiled grammar may go on to hold
FOLLOW_BYTES: Final = 64 << 20  # of address space, beyond what it has when it is compiled
MASK_CPU_S: Final = 0.25  # of processor time for one token; nearly all take less than a millisecond
HEAVY_MASK_CPU_S: Final = 0.01  # of processor time for one token: this and more is heavy
HEAVY_CPU_S: Final = 1.0  # of processor time for heavy ones; who has taken more only gets what nobody else wants
REHEARSAL_TOKENS: Final = 32  # followed at random before a grammar passes: what it is like shows after its first token
TOKENIZER_S: Final = 60.0  # of processor time to load the tokenizer; one of 150,000 tokens takes 1.3 s

# In the engine.
REQUESTS_WAITING_MAX: Final = 512  # whose grammar is yet to be compiled
GRAMMARS_WAITING_MAX: Final = 64  # that these have among them: one after another, each may take COMPILE_S
FOLLOWERS_MAX: Final = 64  # processes; one that follows nothing gives way to a new one, the longest unused first
REFUSALS_MAX: Final = 256  # remembered
REFUSED_S: Final = 60.0  # for which a grammar that exceeded a limit of the kernel's is not tried again
REOPENED_MAX: Final = 3  # times that a request goes on in another process, before it counts as what ended them
PATIENCE_S: Final = 0.02  # that a step may wait for masks; later ones miss it, and their requests wait for them
