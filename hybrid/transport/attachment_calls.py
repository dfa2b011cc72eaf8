"""Attachments of a model at a gateway: profiles and calibrations, asked for and brought by content and signature."""

import logging
from typing import Any, Final

import msgspec

from hybrid.artifact.attachments import Attachment, Kind, attachment_of
from hybrid.artifact.signature import Signature
from hybrid.errors import BadMessage, CorruptContent, GatewayUnreachable, HybridError
from hybrid.transport.client import GatewayClient

_log = logging.getLogger("hybrid.transport")

PUT_PATH: Final = "/v2/hybrid/attachments"
FIND_PATH: Final = "/v2/hybrid/attachments/find"
ASK_TIMEOUT_S: Final = 10.0


class AttachmentText(msgspec.Struct, frozen=True):
    """An attachment as it travels: its exact JSON text, and who vouches for it as `KEYID:BASE64`."""

    content: str
    signature: str | None = None

    @classmethod
    def of(cls, attachment: Attachment) -> "AttachmentText":
        """What to send."""
        signature = attachment.signature
        return cls(content=attachment.content.decode(), signature=signature.text if signature else None)

    def attachment(self) -> Attachment:
        """What was sent.

        Raises:
            BadMessage, TooLarge: as `attachment_of`.
        """
        signature = Signature.of_text(self.signature) if self.signature is not None else None
        return attachment_of(self.content.encode("utf-8", "surrogatepass"), signature)


class FindCall(msgspec.Struct, frozen=True, kw_only=True):
    """Body of a search: `subject` is a shape key's id, for profiles `SHAPEID.SETTINGID`; empty for all."""

    model_digest: str
    kind: Kind
    variant: str = "original"
    subject: str = ""


class Found(msgspec.Struct, frozen=True):
    """A gateway's answer to a search, the newest first."""

    attachments: tuple[AttachmentText, ...] = ()


def find_attachments(
    client: GatewayClient, model_digest: str, kind: Kind, variant: str = "original", *, subject: str = ""
) -> tuple[Attachment, ...]:
    """What a gateway has; blocks. What it sends about something else, or what is no attachment, is left out.

    Raises:
        HybridError: it did not answer, or not with attachments; an older gateway says NotFound.
    """
    call = FindCall(model_digest=model_digest, kind=kind, variant=variant, subject=subject)
    answer = _asked(client, FIND_PATH, msgspec.to_builtins(call))
    about = (model_digest, kind, variant)
    return tuple(a for a in attachments_of(answer, client.url) if (a.model_digest, a.kind, a.variant) == about)


def attachments_of(answer: object, url: str) -> list[Attachment]:
    """The attachments in a gateway's answer; what is none is told to the log and costs only itself.

    Raises:
        BadMessage: no such answer.
    """
    try:
        texts = msgspec.convert(answer, Found).attachments
    except msgspec.ValidationError as exc:
        raise BadMessage(f"{url}: its attachments do not parse ({exc}); is it of another version?") from exc
    found = []
    for text in texts:
        try:
            found.append(text.attachment())
        except HybridError as exc:
            _log.warning("attachment.refused url=%s reason=%s", url, exc)
    return found


def put_attachment(client: GatewayClient, attachment: Attachment) -> str:
    """Bring an attachment to a gateway that holds the model; its SHA-256. Blocks.

    Raises:
        NotFound: the gateway does not hold that model.
        Forbidden: the token may not bring this kind.
        HybridError: it did not answer, or refused otherwise.
    """
    answer = _asked(client, PUT_PATH, msgspec.to_builtins(AttachmentText.of(attachment)))
    sha256 = answer.get("sha256")
    if not isinstance(sha256, str):
        raise CorruptContent(f"{client.url} does not say what it kept; is it of another version?")
    return sha256


def _asked(client: GatewayClient, path: str, body: object) -> dict[str, Any]:
    try:
        return client.post_json(path, body, timeout_s=ASK_TIMEOUT_S).result(ASK_TIMEOUT_S + 1)
    except TimeoutError as exc:
        if isinstance(exc, HybridError):
            raise
        raise GatewayUnreachable(f"{client.url}: no answer to {path} in time", url=client.url) from exc
