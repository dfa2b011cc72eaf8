"""`RoundCalls` over HTTPS: what an admitted box asks of campaigns."""

from typing import Final, TypeVar

from hybrid.artifact.names import check_word
from hybrid.errors import BadMessage, LinkError, StorageError, TooLarge
from hybrid.federated.messages import (
    EvaluationAnswer,
    EvaluationCall,
    SecureAnswer,
    SecureCall,
    TaskAnswer,
    TaskCall,
    UpdateAnswer,
    UpdateCall,
    Weights,
    encoded,
)
from hybrid.fleet.messages import Message
from hybrid.transport.fleet_client import SLACK_S, STALL_S
from hybrid.transport.fleet_link import CALL_TIMEOUT_S, FleetLink, body_of, decoded
from hybrid.transport.rounds_paths import EVALUATION_PATH, SECURE_PATH, STEPS_PATH, TASK_PATH, UPDATE_PATH

MAX_WEIGHTS_BYTES: Final = 4 << 30
_BLOCK_BYTES: Final = 256 << 10
_MOST_BREAKS: Final = 8
_Answer = TypeVar("_Answer", bound=Message)


class RoundsClient:
    """The calls of `hybrid.federated.calls.RoundCalls` over one link."""

    def __init__(self, link: FleetLink) -> None:
        self._link = link

    async def task(self, call: TaskCall) -> TaskAnswer:
        """See `RoundCalls`."""
        return await self._ask(TASK_PATH, call, TaskAnswer, call.wait_s + SLACK_S)

    async def update(self, call: UpdateCall) -> UpdateAnswer:
        """See `RoundCalls`."""
        wait_s = call.next.wait_s if call.next is not None else 0.0
        return await self._ask(UPDATE_PATH, call, UpdateAnswer, wait_s + CALL_TIMEOUT_S)

    async def evaluation(self, call: EvaluationCall) -> EvaluationAnswer:
        """See `RoundCalls`."""
        return await self._ask(EVALUATION_PATH, call, EvaluationAnswer, CALL_TIMEOUT_S)

    async def secure(self, call: SecureCall) -> SecureAnswer:
        """See `RoundCalls`."""
        return await self._ask(SECURE_PATH, call, SecureAnswer, call.wait_s + CALL_TIMEOUT_S)

    async def weights(self, campaign: str, step: int, have: int) -> Weights:
        """See `RoundCalls`; what broke goes on from where it stood."""
        path = STEPS_PATH.format(campaign=check_word(campaign, "campaign"), step=step, have=have)
        data = bytearray()
        n_breaks = 0
        while True:
            try:
                if await self._more(path, data):
                    return decoded(bytes(data), Weights, "msgpack")
            except LinkError:
                n_breaks += 1
                if n_breaks > _MOST_BREAKS:
                    raise

    async def _more(self, path: str, data: bytearray) -> bool:
        """The next bytes of an answer; whether those were the last."""
        headers = {"Range": f"bytes={len(data)}-"} if data else {}
        async with self._link.call("GET", path, headers=headers, answer_s=STALL_S) as response:
            if data and response.status != 206:
                data.clear()  # a proxy ignored the range: the answer begins anew
            n_left = int(response.headers.get("Content-Length", "-1"))
            if not 0 <= n_left <= MAX_WEIGHTS_BYTES - len(data):
                raise TooLarge(f"an answer of {n_left} bytes of weights; refused")
            wanted = len(data) + n_left
            while block := await response.content.read(_BLOCK_BYTES):
                data += block
            if len(data) > wanted:
                raise BadMessage("more bytes of weights came than were announced")
            return len(data) == wanted

    async def _ask(self, path: str, call: Message, kind: type[_Answer], answer_s: float) -> _Answer:
        try:
            async with self._link.call("POST", path, data=encoded(call), answer_s=answer_s) as response:
                return decoded(await body_of(response), kind, "msgpack")
        except StorageError as exc:  # the gateway's disk, not this box's
            raise LinkError(f"the gateway cannot keep anything now: {exc}", advice=exc.advice) from exc
