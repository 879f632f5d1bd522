"""Why an engine core can't start. Everything else that may go wrong at load is a bug and keeps its traceback."""


class CannotStart(Exception):
    """Its message is the one line that the operator sees: what is wrong with which path or memory, and what to change.
    The process ends with exit code 3."""


class UnsupportedModel(CannotStart):
    """The architecture can't be driven by a flattened batch over a paged cache, or can't be shown to be."""
