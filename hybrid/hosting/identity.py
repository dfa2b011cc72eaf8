"""Who is asking, and what they may do."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from hybrid.errors import Forbidden

Role = Literal["admin", "publisher", "device"]
Right = Literal["read", "infer", "publish", "admin"]

ROLES: Final[tuple[Role, ...]] = get_args(Role)

RIGHTS: Final[dict[Role, frozenset[Right]]] = {
    "device": frozenset({"read", "infer"}),
    "publisher": frozenset({"read", "infer", "publish"}),
    "admin": frozenset({"read", "infer", "publish", "admin"}),
}
"""What each role may do; docs/security.md says what each right covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The holder of a verified token.

    Attributes:
        token_id: the public part of the token; safe to log.
        role: what the token was made for.
        name: what its maker called it, for people.
    """

    token_id: str
    role: Role
    name: str = ""

    def may(self, right: Right) -> bool:
        """Whether this identity has a right."""
        return right in RIGHTS[self.role]

    def require(self, right: Right) -> None:
        """Return if this identity has a right.

        Raises:
            Forbidden: it has not.
        """
        if not self.may(right):
            raise Forbidden(
                f"token {self.token_id} has the role {self.role}, which lacks the right {right!r}; "
                f"use a token of the role {' or '.join(role for role in ROLES if right in RIGHTS[role])}",
                token_id=self.token_id,
                right=right,
            )


ANYONE: Final = Identity(token_id="no-auth", role="admin", name="anyone on this machine")  # noqa: S106 (no secret)
"""Who asks while the gateway runs without authentication, which it does on loopback only."""
