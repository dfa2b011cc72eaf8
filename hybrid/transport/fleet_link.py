"""A box's link to its gateway: hello, enrolment, access, and the fleet's calls with a token that renews itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeVar

import aiohttp
import msgspec
from yarl import URL

from hybrid.errors import (
    BadMessage,
    ConnectionLost,
    GatewayStalled,
    GatewayUnreachable,
    GatewayUntrusted,
    HybridError,
    NotAdmitted,
    StaleNonce,
    Unauthenticated,
)
from hybrid.fleet.enrolment_token import EnrolmentToken
from hybrid.fleet.messages import AccessAnswer, AccessCall, EnrollAnswer, EnrollCall
from hybrid.fleet.signing import access_bytes, enroll_bytes
from hybrid.transport.environment_proxy import EnvironmentProxies
from hybrid.transport.fleet_hello import Met
from hybrid.transport.fleet_paths import ACCESS_PATH, ENROLL_PATH
from hybrid.transport.http_reply import ended_in_a_call, error_of_reply, plainly, whole_body
from hybrid.transport.token_source import RenewedToken

MAX_ANSWER_BYTES: Final = 16 << 20
CONNECT_TIMEOUT_S: Final = 10.0
CALL_TIMEOUT_S: Final = 60.0
_ERROR_BYTES: Final = 64 << 10
_TURNS: Final = 4
"""Of the loop before a call: a connection that ended while the loop was busy is seen to have, and not used again."""
_T = TypeVar("_T")
Form = Literal["json", "msgpack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxCredentials:
    """Who a box is, towards its gateway.

    Attributes:
        box_id: its id.
        authority_sha256: fingerprint of the only gateway that it believes.
        epoch: gives that of the installation; it may change.
        run: of this start of the agent.
        sign: ECDSA with SHA-256 by the box's key.
        software: version of the agent.
    """

    box_id: str
    authority_sha256: bytes
    epoch: Callable[[], str]
    run: str
    sign: Callable[[bytes], bytes]
    software: str = ""


class Request(NamedTuple):
    """One HTTP request of a box.

    Attributes:
        method, path, data, headers: of the request.
        answer_s: longest time without a byte.
    """

    method: str
    path: str
    data: bytes | None
    headers: dict[str, str]
    answer_s: float


class FleetLink:
    """One gateway as an enrolled box sees it. Runs on one event loop.

    A gateway is met (hello) before anything is sent, its certificate pinned from then on. A connection that meets
    another certificate, and a token that is not known any more, lead to a new hello and one more attempt, without
    anybody's help.

    Attributes:
        token: the source of the access token; also for sessions.
        admission: what the gateway said last; empty before the first answer.
        met: the gateway as it was met last.
        trouble: why it could not be reached last; None after an answer.
    """

    def __init__(
        self,
        locate: Callable[[], Awaitable[Met]],
        *,
        learn_time: Callable[[float], None],
        now_s: Callable[[], float] | None = None,
    ) -> None:
        """Nothing is sent before the first call.

        Args:
            locate: finds and meets the gateway, wherever it is now.
            learn_time: told the gateway's signed time at each hello.
            now_s: a clock that only runs forward; the event loop's by default.
        """
        self.token = RenewedToken()
        self.admission = ""
        self.met: Met | None = None
        self.trouble: HybridError | None = None
        self.credentials: BoxCredentials | None = None
        self._locate = locate
        self._learn_time = learn_time
        self._now_s = now_s or (lambda: asyncio.get_running_loop().time())
        self._renewing = asyncio.Lock()
        self._n_renewals = 0
        self._got_s = 0.0
        self._life_s = 0.0
        self._session: aiohttp.ClientSession | None = None
        self._pin: tuple[str, aiohttp.Fingerprint] | None = None
        self._proxies = EnvironmentProxies()

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def renew_in_s(self) -> float:
        """How long until half of the token's life is over; 0 when there is none."""
        if not self.token.text:
            return 0.0
        return max(0.0, self._got_s + self._life_s / 2 - self._now_s())

    async def meet(self) -> Met:
        """Meet the gateway anew: its certificate is pinned from now on, its time learned.

        Raises:
            LinkError: it is nowhere, or what is there is not it.
        """
        self._proxies.forget()
        try:
            self.met = await self._locate()
        except HybridError as exc:
            self.trouble = exc
            raise
        self.trouble = None
        self._learn_time(self.met.hello.time_s)
        return self.met

    async def enroll(self, token: EnrolmentToken, call: EnrollCall, sign: Callable[[bytes], bytes]) -> EnrollAnswer:
        """Ask to be admitted; `call` is completed with nonce and signature.

        Raises:
            Forbidden: the token does not let this box in.
            LinkError: it is unknown what became of it: ask again.
        """

        async def ask(met: Met) -> EnrollAnswer:
            message = enroll_bytes(token.id, met.hello.nonce, met.spki_sha256, call.epoch)
            whole = msgspec.structs.replace(
                call,
                token_id=token.id,
                secret=token.secret,
                nonce=met.hello.nonce,
                signature=sign(message),
                protocol=met.protocol,
            )
            return await self._post(met, ENROLL_PATH, whole, EnrollAnswer)

        return await self._signed(ask)

    async def renew(self) -> AccessAnswer:
        """Ask for a new access token; of several who ask at once, one asks.

        Raises:
            NotAdmitted: there is none for this box now; says why. NotFound: the gateway does not know it.
            LinkError: no answer.
        """
        n_before = self._n_renewals
        async with self._renewing:
            if self._n_renewals != n_before and self.token.text:
                return AccessAnswer(admission="admitted", token=self.token.text)
            who = self._who()

            async def ask(met: Met) -> AccessAnswer:
                epoch = who.epoch()
                message = access_bytes(who.box_id, epoch, who.run, met.hello.nonce, met.spki_sha256)
                call = AccessCall(
                    box_id=who.box_id, epoch=epoch, run=who.run, nonce=met.hello.nonce, signature=who.sign(message),
                    software=who.software, protocol=met.protocol,
                )  # fmt: skip
                return await self._post(met, ACCESS_PATH, call, AccessAnswer)

            answer = await self._signed(ask)
            self.admission = answer.admission
            if not answer.token:
                self.token.text = ""
                raise not_admitted(answer.admission)
            self.token.text, self._got_s, self._life_s = answer.token, self._now_s(), answer.expires_in_s
            self._n_renewals += 1
            return answer

    @asynccontextmanager
    async def call(
        self,
        method: str,
        path: str,
        *,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        fine: tuple[int, ...] = (),
        answer_s: float = CALL_TIMEOUT_S,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One call with the access token, sent again once after what a new hello or token mends.

        Args:
            method, path, data, headers: of the request.
            fine: statuses of 400 and above that are no error.
            answer_s: longest time without a byte.

        Raises:
            HybridError: a `LinkError` where it is unknown whether it was done, else what the gateway answered.
        """
        async with AsyncExitStack() as stack:
            yield await self._begun(stack, Request(method, path, data, dict(headers or {}), answer_s), fine)

    async def _begun(self, stack: AsyncExitStack, request: "Request", fine: tuple[int, ...]) -> aiohttp.ClientResponse:
        """The answer's beginning; the stack ends the exchange."""
        for is_last in (False, True):
            shown = ""
            try:
                if not self.token.text or self.met is None:
                    await self.renew()
                shown = self.token.text
                async with AsyncExitStack() as attempt:  # also what breaks while an error is read is told as ours
                    exchange = self._exchange(self._known(), request, authorized=True)
                    response = await attempt.enter_async_context(exchange)
                    if response.status >= 300 and response.status not in fine:
                        raise await _error(response)
                    await stack.enter_async_context(attempt.pop_all())
                    return response
            except _CertificateChanged as exc:
                self.met = None
                if is_last:
                    raise exc.told() from exc
                await self.meet()
            except Unauthenticated:
                if self.token.text == shown:  # else somebody renewed it meanwhile
                    self.token.text = ""
                if is_last:
                    raise
        raise AssertionError("unreachable")

    async def ask(self, path: str, call: Any, kind: type[_T], *, form: Form, answer_s: float = CALL_TIMEOUT_S) -> _T:
        """One message there, one back. Raises as `call`; BadMessage where the answer is none."""
        data = (msgspec.json if form == "json" else msgspec.msgpack).encode(call)
        headers = {"Content-Type": f"application/{form}"}
        async with self.call("POST", path, data=data, headers=headers, answer_s=answer_s) as response:
            return decoded(await body_of(response), kind, form)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _who(self) -> BoxCredentials:
        if self.credentials is None:
            raise NotAdmitted(
                "this box is not enrolled", admission="none", advice="Enrol it: hybrid agent enroll TOKEN."
            )
        return self.credentials

    def _known(self) -> Met:
        if self.met is None:
            raise ConnectionLost("the gateway is to be met anew")
        return self.met

    async def _signed(self, ask: Callable[[Met], Awaitable[_T]]) -> _T:
        """A call that signs a challenge: after a new hello, and once more when the challenge went stale meanwhile."""
        for is_last in (False, True):
            met = await self.meet()
            try:
                return await ask(met)
            except StaleNonce:
                if is_last:
                    raise
            except _CertificateChanged as exc:
                if is_last:
                    raise exc.told() from exc
        raise AssertionError("unreachable")

    async def _post(self, met: Met, path: str, call: Any, kind: type[_T]) -> _T:
        headers = {"Content-Type": "application/json"}
        request = Request("POST", path, msgspec.json.encode(call), headers, CALL_TIMEOUT_S)
        async with self._exchange(met, request, authorized=False) as response:
            if response.status != 200:
                raise await _error(response)
            return decoded(await body_of(response), kind, "json")

    @asynccontextmanager
    async def _exchange(
        self, met: Met, request: "Request", *, authorized: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=16),
                auto_decompress=False,
                skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            )
        url, proxy = URL(met.url), await self._proxies.of(met.url)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        headers = request.headers | ({"Authorization": f"Bearer {self.token.text}"} if authorized else {})
        try:
            async with self._session.request(
                request.method,
                url.joinpath(request.path.lstrip("/")),
                data=request.data,
                headers=headers if url.scheme == "https" else {**proxy.headers, **headers},
                proxy=proxy.url,
                proxy_headers=proxy.headers,
                ssl=self._pinned(met.certificate_sha256) if met.certificate_sha256 else True,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=request.answer_s),
                allow_redirects=False,
            ) as response:
                self.trouble = None
                yield response
        except HybridError:
            raise  # some of ours are OSErrors too
        except aiohttp.ServerFingerprintMismatch as exc:
            raise _CertificateChanged(met.url, exc.got.hex()) from exc
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            self.trouble = _link_error(met.url, exc)
            raise self.trouble from exc

    def _pinned(self, certificate_sha256: str) -> aiohttp.Fingerprint:
        """The same object for the same certificate: aiohttp uses a connection again only for the very same one."""
        if self._pin is None or self._pin[0] != certificate_sha256:
            self._pin = (certificate_sha256, aiohttp.Fingerprint(bytes.fromhex(certificate_sha256)))
        return self._pin[1]


class _CertificateChanged(Exception):
    """The gateway, or whoever answers in its place, shows another certificate than the one that was met."""

    def __init__(self, url: str, got: str) -> None:
        super().__init__(f"{url} shows certificate {got[:16]}…")

    def told(self) -> HybridError:
        """The same for callers."""
        return GatewayUntrusted(f"{self}, not the one that the gateway proved to be its own")


def not_admitted(admission: str) -> NotAdmitted:
    """Why a box gets no token."""
    do = {
        "waiting": "a person has to approve it: hybrid fleet boxes approve BOX",
        "quarantined": "its key was seen on two machines: hybrid fleet boxes show BOX, then admit or revoke it",
        "revoked": "it was let out of the fleet; a person may admit it again: hybrid fleet boxes admit BOX",
    }.get(admission, "see hybrid fleet boxes show BOX on the gateway")
    return NotAdmitted(f"the gateway says that this box is {admission}; {do}", admission=admission)


async def body_of(response: aiohttp.ClientResponse) -> bytes:
    """A whole answer of bounded size.

    Raises:
        BadMessage: it is larger.
    """
    body = await whole_body(response, MAX_ANSWER_BYTES + 1)
    if len(body) > MAX_ANSWER_BYTES:
        raise BadMessage(f"the gateway's answer has more than {MAX_ANSWER_BYTES} bytes; refused")
    return body


def decoded(data: bytes, kind: type[_T], form: Form) -> _T:
    """The message in an answer.

    Raises:
        BadMessage: it is none.
    """
    try:
        return msgspec.json.decode(data, type=kind) if form == "json" else msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the gateway's answer does not parse ({exc})") from exc


def _link_error(url: str, exc: Exception) -> HybridError:
    if isinstance(exc, aiohttp.ClientConnectorError):
        return GatewayUnreachable(f"{url}: no connection ({plainly(exc)})", url=url)
    if isinstance(exc, TimeoutError):
        return GatewayStalled(f"{url}: no byte within the time limit", url=url)
    reason = str(exc) or type(exc).__name__
    return ended_in_a_call(url, reason)


async def _error(response: aiohttp.ClientResponse) -> HybridError:
    return error_of_reply(response.status, await whole_body(response, _ERROR_BYTES), str(response.url.origin()))
