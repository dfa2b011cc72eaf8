"""How long an attempt may be silent or late, and the trace that it belongs to."""

import sys

from hybrid.transport.client import GatewayClient

LEAST_STALL_S = 0.5
MOST_STALL_S = 3.0
LEAST_RESERVE_S = 0.010
"""Kept free before a deadline beside the device's own seconds: waking a thread takes milliseconds on a busy machine."""


def stall_s(client: GatewayClient) -> float:
    """Silence after which a connection counts as stalled: a few round trips and two chunks of 16 KiB at its rate."""
    link = client.link.view
    chunks_s = 2 * 8 * 16384 / link.uplink_bps if link.uplink_bps else 0.0
    return min(MOST_STALL_S, max(LEAST_STALL_S, 4 * (link.rtt_s or 0.0) + chunks_s))


def current_traceparent() -> str:
    """W3C trace context of the caller's OpenTelemetry span, or an empty string; the library itself never imports it."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return ""
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
