"""Ctrl-C that another error hides: what cleans up after an interrupt may fail, and its error is what is seen."""


def hides_interrupt(error: BaseException) -> bool:
    """Whether an error came of a `KeyboardInterrupt`, as that of a file that was closed in a write does."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
