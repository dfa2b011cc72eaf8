"""Who is asking, and what they may do."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from hybrid.errors import Forbidden

Role = Literal["admin", "publisher", "device", "box"]
Right = Literal["read", "infer", "publish", "admin", "fleet"]

ROLES: Final[tuple[Role, ...]] = tuple(role for role in get_args(Role) if role != "box")
"""The roles of tokens that a person makes; a box gets its own by its key, for an hour."""

RIGHTS: Final[dict[Role, frozenset[Right]]] = {
    "device": frozenset({"read", "infer"}),
    "publisher": frozenset({"read", "infer", "publish"}),
    "admin": frozenset({"read", "infer", "publish", "admin"}),
    "box": frozenset({"read", "infer", "fleet"}),
}
"""What each role may do; docs/security.md says what each right covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The holder of a verified token.

    Attributes:
        token_id: the public part of the token; safe to log.
        role: what the token was made for.
        name: what its maker called it, for people.
        box_id: which box of the fleet it is, 32 hex digits; empty for anybody else.
    """

    token_id: str
    role: Role
    name: str = ""
    box_id: str = ""

    def may(self, right: Right) -> bool:
        """Whether this identity has a right."""
        return right in RIGHTS[self.role]

    def require(self, right: Right) -> None:
        """Return if this identity has a right.

        Raises:
            Forbidden: it has not.
        """
        if not self.may(right):
            holders = [role for role in RIGHTS if right in RIGHTS[role]]
            raise Forbidden(
                f"token {self.token_id} has the role {self.role}, which lacks the right {right!r}; "
                f"use a token of the role {' or '.join(holders)}",
                token_id=self.token_id,
                right=right,
            )


ANYONE: Final = Identity(token_id="no-auth", role="admin", name="anyone on this machine")  # noqa: S106 (no secret)
"""Who asks while the gateway runs without authentication, which it does on loopback only."""
