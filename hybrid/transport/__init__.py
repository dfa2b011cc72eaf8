"""One I/O thread, one connection a gateway: requests out, replies in."""
