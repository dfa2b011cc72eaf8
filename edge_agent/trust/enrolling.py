"""How a box comes into a fleet: meets the gateway of its token, shows its key, keeps what it is told."""

import asyncio
import socket
from typing import Final

import msgspec

from edge_agent.trust.identity import BoxIdentity, Enrolment
from edge_agent.trust.locating import Browse, Locator
from edge_agent.trust.trusted_time import TrustedTime
from hybrid.errors import Conflict
from hybrid.fleet.enrolment_token import EnrolmentToken
from hybrid.fleet.messages import EnrollAnswer, EnrollCall
from hybrid.transport.fleet_link import FleetLink

MAX_NAME: Final = 64


async def enroll(
    identity: BoxIdentity,
    token: EnrolmentToken,
    *,
    time: TrustedTime,
    name: str = "",
    software: str = "",
    gateway: str = "",
    anew: bool = False,
    browse: Browse | None = None,
) -> EnrollAnswer:
    """Enrol this box; asking again with the same key and token is fine, whatever became of it before.

    Args:
        identity: of the box; gets its key and its enrolment.
        token: that lets it in.
        time: learns the gateway's.
        name: wished, for people; the host's name by default.
        software: version of the agent.
        gateway: URL in place of the token's.
        anew: become another box, with another key; what this one is, it stays until that is done.
        browse: gives candidates for a token without a URL; by multicast DNS when it is None.

    Raises:
        Conflict: it is enrolled elsewhere already, or its key is lost.
        Forbidden: the token does not let it in.
        LinkError: no gateway, or none that proved to be the token's: nothing was sent to it.
        StorageError: the enrolment could not be kept; ask again.
    """
    known = None if anew else identity.enrolment
    if known is not None and known.authority_sha256 != token.authority_sha256.hex():
        raise Conflict(
            f"this box belongs to another fleet (gateway {known.url}); give that up first: "
            "hybrid agent enroll --anew TOKEN"
        )
    key = await asyncio.to_thread(identity.next_key if anew else identity.make_key)
    url = gateway or token.url or (known.url if known is not None else "")
    locator = Locator(token.authority_sha256, url, may_look=not (gateway or token.url), browse=browse)
    link = FleetLink(locator, learn_time=time.learn)
    call = EnrollCall(
        token_id=token.id,
        secret="",
        box_key=key.public_key,
        epoch=identity.epoch,
        nonce=b"",
        signature=b"",
        name=(name or socket.gethostname())[:MAX_NAME],
        software=software,
        machine=identity.machine.words,
    )
    try:
        answer = await link.enroll(token, call, key.sign)
    finally:
        await link.close()
    enrolment = _enrolment(token, answer, key.box_id, link.met.url if link.met is not None else url)
    if gateway:
        enrolment = msgspec.structs.replace(enrolment, is_discovered=False)
    await asyncio.to_thread(identity.enrolled, enrolment, answer.trust)
    return answer


def _enrolment(token: EnrolmentToken, answer: EnrollAnswer, box_id: str, url: str) -> Enrolment:
    return Enrolment(
        url=url,
        is_discovered=not token.url,
        authority_sha256=token.authority_sha256.hex(),
        root_sha256=token.root_sha256.hex() if token.root_sha256 is not None else "",
        box_id=box_id,
        name=answer.name,
        tags=answer.tags,
    )
