"""From logits to the next token. `sampler` is the way in; the rest are its parts, each a function of its arguments."""
