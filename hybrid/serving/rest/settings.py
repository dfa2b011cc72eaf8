"""The trace and logging extensions over HTTP: what is, honestly, and what of it can be changed."""

import logging
from typing import Final

import msgspec
from aiohttp import web

from hybrid.errors import BadMessage
from hybrid.hosting.http_replies import json_reply
from hybrid.serving.rest.repository import decoded
from hybrid.serving.rest.service import InferenceService

_TRACE: Final = {
    "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0", "trace_file": "",
    "trace_mode": "triton",
}  # fmt: skip


class TraceCall(msgspec.Struct, frozen=True):
    """Body of `POST /v2/trace/setting`; only what would switch tracing on matters."""

    trace_level: list[str] | str | None = None


class LoggingCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `POST /v2/logging`; fields that are absent stay as they are."""

    log_file: str | None = None
    log_info: bool | None = None
    log_warning: bool | None = None
    log_error: bool | None = None
    log_verbose_level: int | None = None
    log_format: str | None = None


_trace_call: Final = msgspec.json.Decoder(TraceCall)
_logging_call: Final = msgspec.json.Decoder(LoggingCall)


class SettingsHandlers:
    """Trace settings are fixed (there is no tracer); logging settings move the level of the logger `hybrid`."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def trace(self, request: web.Request) -> web.Response:
        """`GET /v2/trace/setting` and `/v2/models/{name}/trace/setting`: tracing is off."""
        self._service.require(request, "read")
        return json_reply(_TRACE)

    async def change_trace(self, request: web.Request) -> web.Response:
        """`POST` of the same: switching it off succeeds, anything else is refused."""
        self._service.require(request, "admin")
        call = await decoded(request, _trace_call, self._service)
        levels = [call.trace_level] if isinstance(call.trace_level, str) else call.trace_level or []
        if any(level not in ("OFF", "") for level in levels):
            raise BadMessage("this service does not write traces; send traceparent and read its logs and /metrics")
        return json_reply(_TRACE)

    async def logging(self, request: web.Request) -> web.Response:
        """`GET /v2/logging`: what is logged now."""
        self._service.require(request, "read")
        return json_reply(_logging_state())

    async def change_logging(self, request: web.Request) -> web.Response:
        """`POST /v2/logging`: the lowest level that is asked for becomes the logger's."""
        self._service.require(request, "admin")
        call = await decoded(request, _logging_call, self._service)
        if call.log_file or call.log_format not in (None, "default"):
            raise BadMessage("logs go to standard error in one form; redirect it to write a file")
        now = _logging_state()
        logging.getLogger("hybrid").setLevel(_level(call, now))
        return json_reply(_logging_state())


def _logging_state() -> dict[str, object]:
    level = logging.getLogger("hybrid").getEffectiveLevel()
    return {
        "log_file": "",
        "log_info": level <= logging.INFO,
        "log_warning": level <= logging.WARNING,
        "log_error": level <= logging.ERROR,
        "log_verbose_level": 1 if level <= logging.DEBUG else 0,
        "log_format": "default",
    }


def _level(call: LoggingCall, now: dict[str, object]) -> int:
    verbose = now["log_verbose_level"] if call.log_verbose_level is None else call.log_verbose_level
    switches = (
        (bool(verbose), logging.DEBUG),
        (now["log_info"] if call.log_info is None else call.log_info, logging.INFO),
        (now["log_warning"] if call.log_warning is None else call.log_warning, logging.WARNING),
        (now["log_error"] if call.log_error is None else call.log_error, logging.ERROR),
    )
    return next((level for is_on, level in switches if is_on), logging.CRITICAL)
