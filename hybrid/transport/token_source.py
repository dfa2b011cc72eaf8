"""A token that its owner renews while others use it."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class TokenSource(Protocol):
    """Gives the token of the moment. Compared and hashed as an object: one source is one identity."""

    @property
    def text(self) -> str:
        """The token; empty while there is none. Called from any thread, at once."""
        ...


Credential = str | TokenSource | None
"""Who asks: a token for good, a source of one that is renewed, or nobody."""


def text_of(credential: Credential) -> str | None:
    """The token of the moment, None for nobody; empty while a source has none."""
    return credential.text if isinstance(credential, TokenSource) else credential


class RenewedToken:
    """A source whose owner sets the token."""

    def __init__(self) -> None:
        self.text = ""
