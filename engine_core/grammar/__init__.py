"""Structured outputs: which tokens a request's grammar allows next.

llguidance compiles grammars and follows them, and neither is bounded by what a client sends: some take gigabytes, some
minutes for one mask. So it runs in processes of its own and the engine never loads it. One process, the nursery, holds
the tokenizer and forks a follower for each grammar (a few milliseconds, a few megabytes). The follower compiles it,
within limits that the kernel enforces, and then follows all requests with that grammar: tokens go in through a socket,
masks come out in shared memory. When one dies, its requests alone are concerned.

`grammars` is the way in; `nursery` and `follower` are what runs in the processes, `processes` the engine's end of them.
"""
