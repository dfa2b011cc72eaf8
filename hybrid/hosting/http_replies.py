"""JSON replies of the services, errors among them: always `{"error": …, "code": …}`."""

from typing import Any, Final

import msgspec
from aiohttp import web

from hybrid.errors import EngineFailed, HybridError

_encoder = msgspec.json.Encoder()

_CODE_OF_STATUS: Final = {401: "unauthenticated", 403: "forbidden", 404: "not_found", 413: "too_large"}


def json_reply(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Anything msgspec encodes, as a JSON response."""
    return web.Response(body=_encoder.encode(content), status=status, headers=headers, content_type="application/json")


def error_reply(error: HybridError) -> web.Response:
    """The response of a typed error: its status, its message, its code and, where it has one, Retry-After.

    An engine that raised on a request's values answers 400: the values came with the request.
    """
    body: dict[str, object] = {"error": str(error), "code": error.code}
    headers: dict[str, str] = {}
    if error.advice is not None:
        body["advice"] = error.advice
    retry_after_s = error.fields.get("retry_after_s")
    if isinstance(retry_after_s, int | float):
        body["retry_after_s"] = retry_after_s
        headers["Retry-After"] = str(max(1, round(retry_after_s)))
    if error.http_status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="hybrid"'
    status = 400 if isinstance(error, EngineFailed) else error.http_status
    return json_reply(body, status=status, headers=headers)


def http_error_reply(error: web.HTTPException) -> web.Response:
    """aiohttp's own errors in our form; a 405 keeps its Allow header."""
    code = _CODE_OF_STATUS.get(error.status, "protocol")
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    text = error.text if error.text and not error.text.startswith(str(error.status)) else error.reason
    return json_reply({"error": text, "code": code}, status=error.status, headers=headers)
