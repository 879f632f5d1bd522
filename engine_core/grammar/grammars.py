"""Everything that the engine has to do with grammars, put together."""

import time
from collections.abc import Callable

from engine_core.grammar.admission import Admission
from engine_core.grammar.followings import Followings
from engine_core.grammar.messages import Setup
from engine_core.grammar.pool import Pool
from engine_core.grammar.processes import Processes
from protocol.messages import ModelCard


class Grammars:
    """The grammars of one model's requests. Starts no process before the first one comes."""

    def __init__(self, card: ModelCard, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`slots` is the number of sequences that run at a time; `clock` is monotonic, in seconds."""
        self.pool = Pool(Processes(card.tokenizer, Setup(card.vocab_size, card.eos_token_ids, slots)))
        self.admission = Admission(self.pool, clock)
        self.followings = Followings(self.pool)

    def close(self) -> None:
        """Ends all processes."""
        self.pool.close()
