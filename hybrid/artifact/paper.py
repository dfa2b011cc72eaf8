"""What is written about a model for certain shapes: the form that profiles and calibrations share, checked once."""

from typing import Protocol, TypeVar

import msgspec

from hybrid.artifact.names import check_digest, check_word
from hybrid.errors import BadMessage, TooLarge
from hybrid.graph.shape_key import ShapeKey


class Paper(Protocol):
    """What each of them says of itself."""

    @property
    def kind(self) -> str:
        """What it is, as people call it too."""
        ...

    @property
    def schema(self) -> int:
        """The version of its form."""
        ...

    @property
    def model_digest(self) -> str:
        """The model that it is about."""
        ...

    @property
    def variant(self) -> str:
        """The variant that it is about."""
        ...

    @property
    def shape_key(self) -> str:
        """Canonical text of the input shapes that it holds for."""
        ...


PaperT = TypeVar("PaperT", bound=Paper)


def parse_paper(content: bytes, form: type[PaperT], kind: str, *, schema: int, most_bytes: int) -> PaperT:
    """The paper that these bytes say: its form is right, what it is about has names that may be; no number is checked.

    Raises:
        BadMessage: no paper of this form and schema.
        TooLarge: more bytes than that; nothing was parsed.
    """
    if len(content) > most_bytes:
        raise TooLarge(f"a {kind} of {len(content)} bytes is refused: {most_bytes} are allowed")
    try:
        paper = msgspec.json.decode(content, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the {kind} does not parse: {exc}") from exc
    if paper.schema != schema:
        raise BadMessage(f"the {kind} is of schema {paper.schema}, this version reads {schema}")
    check_digest(paper.model_digest)
    check_word(paper.variant, "variant id")
    if ShapeKey.parse(paper.shape_key).text != paper.shape_key:
        raise BadMessage(f"the {kind}'s shape key is not in its canonical form")
    return paper
