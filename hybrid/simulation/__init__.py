"""One device, one link and one gateway on a virtual clock: the session's own deciding, and that of others beside it."""
