"""A device, a link and a gateway on one virtual clock, and a stream of requests that a policy decides.

Design: a discrete-event loop over a heap. Device, link and gateway each serve first come, first served, in the order
in which requests reach them; so heads, uploads and tails of several requests overlap as they do in a live session. A
policy is told what a live session sees, when it sees it, and nothing else: a cancelled attempt tells how long it had
run and how many of its bytes had arrived. There is no other clock than the heap's.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf, nan
from typing import Any

import numpy as np

from hybrid.simulation.device import Device, Job
from hybrid.simulation.gateway import Gateway
from hybrid.simulation.link import Link
from hybrid.simulation.luck import N_DRAWS
from hybrid.simulation.outcome import Outcome, Rows
from hybrid.simulation.policy import Conduct, Load, Move, Policy, Reply
from hybrid.simulation.request import Request
from hybrid.simulation.scene import Scene

LEAST_STALL_S, MOST_STALL_S, CHUNK_BITS = 0.5, 3.0, 8.0 * 16384
HEARTBEAT_S = 1.0
"""How often the connection is heard of, and how often a session looks whether a probe is due."""

TRIAL_S = -30.37
"""A session tries its ways before it offers them to requests; these trials are its first measurements."""

MOST_PAUSE_S = 0.5
"""Between two attempts to connect, while requests come."""

N_HANDSHAKES = 3.0
"""Round trips of a new connection: TCP, TLS 1.3, the channel's own greeting."""

_LOCAL, _HEAD = 0, 1
_Event = Callable[[Any, float], None]


class World:
    """One run of one policy in one scene; `run` may be called once."""

    def __init__(self, scene: Scene, policy: Policy) -> None:
        self._policy = policy
        self._conduct: Conduct = policy.conduct
        self._stream = scene.stream
        self._truth = scene.work.truth()
        self._luck = scene.luck()
        self._device = Device(scene.device)
        self._half_attempt_s = 0.5 * scene.device.attempt_s
        self._link = Link(scene.link)
        self._gateway = Gateway(scene.gateway, np.random.default_rng([scene.seed, 2]))
        self._events: list[tuple[float, int, _Event, object]] = []
        self._n_events = 0
        self._rows = Rows()
        self._arrivals = self._stream.arrivals(np.random.default_rng([scene.seed, 3]))
        self._n_in_flight = self._n_shadows = 0
        self._shadow_bytes = 0.0
        self._connected_s = TRIAL_S  # trials come before the first request

    def run(self) -> Outcome:
        """Carries out the whole stream."""
        stream, events = self._stream, self._events
        if stream.kind == "open":
            for slot, at_s in enumerate(self._arrivals):
                self._at(at_s, self._arrive, Request(slot, at_s, Move(0)))
        else:
            self._at(0.0, self._arrive, Request(0, 0.0, Move(0)))
        self._at(TRIAL_S, self._look, None)
        while events:
            now_s, _, event, request = heappop(events)
            if now_s == inf:
                break
            event(request, now_s)
        return self._rows.outcome(stream.duration_s)

    def _at(self, time_s: float, event: _Event, request: object) -> None:
        self._n_events += 1
        heappush(self._events, (time_s, self._n_events, event, request))

    # -- on the device

    def _arrive(self, request: Request, now_s: float) -> None:
        move = request.move = self._policy.choose(now_s, Load(self._device.n_jobs, self._n_in_flight))
        self._n_in_flight += 1
        if move.prospect == 0:
            self._compute_locally(request, now_s)
        else:
            self._set_out(request, now_s)

    def _set_out(self, request: Request, now_s: float) -> None:
        move = request.move
        seconds = self._truth.head_s[move.prospect]
        if not self._is_beside(request):
            seconds += self._truth.encode_s[move.prospect]
        request.remote_open = True
        if seconds:
            job = Job(seconds * self._luck.device[request.slot % N_DRAWS], request, _HEAD)
            self._started(self._device.add(job, now_s))
        else:
            self._depart(request, now_s)

    def _compute_locally(self, request: Request, now_s: float) -> None:
        if request.over or request.local_job is not None:
            return
        seconds = self._truth.head_s[0] * self._luck.device[request.slot % N_DRAWS]
        if request.remote_open:
            seconds += self._device.model.attempt_cpu_s
        job = Job(seconds, request, _LOCAL)
        request.local_job = job
        self._started(self._device.add(job, now_s))

    def _started(self, job: Job | None) -> None:
        if job is not None:
            self._at(job.end_s, lambda _, now_s: self._job_ended(job, now_s), None)

    def _job_ended(self, job: Job, now_s: float) -> None:
        if job.dropped:
            return
        assert job.start_s is not None
        seconds = now_s - job.start_s
        self._started(self._device.finished(now_s))
        request: Request = job.request  # type: ignore[assignment]
        request.device_s += seconds
        if job.kind == _HEAD:
            request.head_s = seconds
            if self._conduct.unsure_ratio is not None and self._is_sure(request):
                request.remote_open = False
                self._finish(request, now_s, 0)
            else:
                self._depart(request, now_s)
            return
        self._policy.local_done(now_s, seconds, is_beside_attempt=request.remote_open)
        if request.remote_open:
            self._cancel_remote(request, now_s)
        self._finish(request, now_s, 0)

    def _is_sure(self, request: Request) -> bool:
        return self._luck.hard[request.slot % N_DRAWS] >= (self._conduct.unsure_ratio or 0.0)

    # -- up, there, and down again

    def _is_beside(self, request: Request) -> bool:
        """Whether another core encodes: in a race, beside the device's run; and for shadows, which nobody waits for."""
        return (request.is_shadow or request.move.hedge_s == 0) and self._device.model.n_cores > 1

    def _depart(self, request: Request, now_s: float) -> None:
        if self._is_beside(request):
            luck = self._luck.device[request.slot % N_DRAWS]
            encode_s = self._truth.encode_s[request.move.prospect] * luck * self._device.model.slowdown.at(now_s)
            request.head_s += encode_s
            request.departed_s = now_s + encode_s
            if not request.is_shadow:
                self._compute_locally(request, now_s)
            self._at(request.departed_s, self._send, request)
            return
        request.departed_s = request.departed_s or now_s
        hedge_s = request.move.hedge_s
        if request.attempts == 0 and hedge_s is not None:
            if hedge_s <= 0:
                self._compute_locally(request, now_s)
            else:
                self._at(now_s + hedge_s, self._compute_locally, request)
        self._send(request, now_s)

    def _send(self, request: Request, now_s: float) -> None:
        if request.over:
            return
        request.attempts += 1
        if now_s < self._connected_s:
            if not self._conduct.waits_for_gateway:
                self._at(now_s, self._fail, request)
                return
            now_s = self._connected_s
        link, number = self._link, request.slot % N_DRAWS
        n_bytes = self._truth.bytes_of(request.move.prospect, self._luck.sample[number])
        rtt_s = link.rtt_s(now_s)
        start_s, end_s = link.up.send(now_s + self._half_attempt_s, n_bytes, rtt_s)
        request.up_start_s, request.up_end_s, request.n_up = start_s, end_s, n_bytes
        if link.has_outages:
            still_s = link.up.curve.still_from(now_s, end_s, self._patience_s(now_s))
            if still_s is not None:
                self._at(still_s, self._lose_connection, request)
                return
        there_s = end_s + max(0.0, 0.5 * rtt_s + link.jitter_each_way_s * self._luck.jitter_up[number])
        if link.is_lossy:
            there_s += link.loss_delay_s(end_s, n_bytes, self._luck.loss_up[number])
        self._at(there_s, self._received, request)

    def _received(self, request: Request, now_s: float) -> None:
        if request.over:
            return
        gateway, index = self._gateway, request.move.prospect
        overhead_s = gateway.model.overhead_s
        begin_s = now_s
        fault = gateway.fault_at(now_s)
        if fault is not None and fault.kind == "freeze":
            begin_s = fault.end_s
        queue_s = gateway.queued_s(begin_s)
        luck = self._luck.gateway[request.slot % N_DRAWS]
        compute_s = gateway.computes_s(self._truth.tail_s[index], begin_s + queue_s, luck)
        decode_s = self._truth.decode_s[index]
        done_s = begin_s + queue_s + compute_s + 2.0 * overhead_s + decode_s
        later = gateway.fault_within(now_s, done_s)
        if later is not None:
            rtt_s = self._link.rtt_s(now_s)
            if later.kind == "crash":
                self._at(max(now_s, later.start_s) + 0.5 * rtt_s, self._lose_connection, request)
                return
            silent_s = max(now_s, later.start_s)
            if later.end_s - silent_s > self._patience_s(now_s):
                self._at(silent_s + self._patience_s(now_s), self._lose_connection, request)
                return
            if later is not fault:
                done_s += later.end_s - later.start_s
        gateway.free_s = request.computing_to = done_s
        request.queue_s, request.compute_s = done_s - now_s - compute_s - 2.0 * overhead_s - decode_s, compute_s
        self._at(done_s, self._computed, request)

    def _computed(self, request: Request, now_s: float) -> None:
        if request.over:
            return
        link, number = self._link, request.slot % N_DRAWS
        n_bytes = self._truth.bytes_down[request.move.prospect]
        rtt_s = link.rtt_s(now_s)
        start_s, end_s = link.down.send(now_s, n_bytes, rtt_s)
        if link.has_outages:
            still_s = link.down.curve.still_from(now_s, end_s, self._patience_s(now_s))
            if still_s is not None:
                self._at(still_s, self._lose_connection, request)
                return
        back_s = end_s + max(0.0, 0.5 * rtt_s + link.jitter_each_way_s * self._luck.jitter_down[number])
        if link.is_lossy:
            back_s += link.loss_delay_s(end_s, n_bytes, self._luck.loss_down[number])
        request.down_s = end_s - start_s
        self._at(back_s + self._half_attempt_s, self._answered, request)

    def _answered(self, request: Request, now_s: float) -> None:
        if request.over:
            return
        index = request.move.prospect
        request.remote_open = False
        request.up_s += request.up_end_s - request.up_start_s
        request.bytes_up += request.n_up
        request.bytes_down += self._truth.bytes_down[index]
        reply = Reply(
            request.head_s, request.n_up, self._truth.bytes_down[index], now_s - request.departed_s,
            request.up_end_s - request.up_start_s, request.queue_s, request.compute_s, request.down_s,
        )  # fmt: skip
        self._policy.remote_done(now_s, request.move, reply)
        if request.local_job is not None:
            spent_s, following = self._device.drop(request.local_job, now_s)
            request.device_s += spent_s
            request.wasted_s += spent_s
            self._started(following)
        self._finish(request, now_s, index)

    # -- what ends otherwise

    def _cancel_remote(self, request: Request, now_s: float) -> None:
        """The device was first: the rest of the upload is not sent, and the gateway drops its part a little later."""
        request.remote_open = False
        begun_s, sent_before = request.departed_s, request.bytes_up
        acked = self._give_up_upload(request, now_s)
        sent = request.bytes_up - sent_before
        if sent > acked or not sent:  # a PONG behind it says when all that had gone was there
            settled_s = max(now_s, min(self._link.up.free_s, request.up_end_s)) + self._link.rtt_s(now_s)
            self._at(settled_s, self._settle, (sent, settled_s - begun_s))
        else:  # all of it had been acknowledged: the last acknowledgement dates its arrival
            self._settle((sent, request.up_end_s + self._link.rtt_s(now_s) - begun_s), now_s)
        if request.computing_to > now_s and self._gateway.free_s == request.computing_to:
            self._gateway.free_s = min(request.computing_to, now_s + 0.5 * self._link.rtt_s(now_s))
        request.wasted_s += request.device_s - self._last_job_s(request)
        self._policy.remote_cancelled(now_s, request.move, max(0.0, now_s - request.departed_s), acked)

    def _settle(self, sent: tuple[float, float], now_s: float) -> None:
        self._policy.upload_settled(now_s, *sent)

    def _last_job_s(self, request: Request) -> float:
        job = request.local_job
        assert job is not None
        return job.end_s - (job.start_s or 0.0)

    def _give_up_upload(self, request: Request, now_s: float) -> float:
        """Counts what was sent in vain; the bytes that had arrived."""
        up, residue = self._link.up, self._link.residue_bits
        end_s = request.up_end_s
        if now_s < end_s:
            up.cut_short(now_s, end_s, residue)
            end_s = max(up.free_s, now_s)
        sent = acked = 0.0
        if end_s > request.up_start_s:
            curve, seen_s = up.curve, now_s - 0.5 * self._link.rtt_s(now_s)
            begun = curve.passed_bits(request.up_start_s)
            sent = min(request.n_up, (curve.passed_bits(min(end_s, request.up_end_s)) - begun) / 8.0)
            acked = min(sent, max(0.0, curve.passed_bits(max(0.0, seen_s)) - begun) / 8.0)
        request.up_s += max(0.0, min(end_s, request.up_end_s) - request.up_start_s)
        request.bytes_up += sent
        request.wasted_bytes += sent
        request.n_up = 0.0
        return acked

    def _lose_connection(self, request: Request, now_s: float) -> None:
        """Silence or a reset: the connection is replaced as soon as the other side can be reached."""
        if request.over:
            return
        if now_s >= self._connected_s:
            back_s, pause_s, rtt_s = now_s, 0.25, self._link.rtt_s(now_s)
            while self._is_away(back_s) and back_s < now_s + 1e4:
                back_s, pause_s = back_s + pause_s, min(MOST_PAUSE_S, pause_s * 2.0)
            self._connected_s = back_s + N_HANDSHAKES * rtt_s
            self._link.reconnected(now_s)
            self._policy.connection(now_s, is_up=False)
            self._at(self._connected_s, self._reconnect, None)
        self._fail(request, now_s)

    def _reconnect(self, _: Request | None, now_s: float) -> None:
        self._policy.connection(now_s, is_up=True)

    def _is_away(self, at_s: float) -> bool:
        return self._gateway.fault_at(at_s) is not None or not self._link.up.curve.rate_bps(at_s)

    def _fail(self, request: Request, now_s: float) -> None:
        if request.over:
            return
        self._give_up_upload(request, now_s)
        self._policy.remote_failed(now_s, request.move, now_s - request.departed_s)
        if request.attempts < self._conduct.n_attempts and not request.is_shadow:
            self._at(now_s + self._conduct.pause_s, self._send, request)
            return
        request.remote_open = False
        if self._conduct.unsure_ratio is not None or request.is_shadow:
            self._finish(request, now_s, 0)
        else:
            self._compute_locally(request, now_s)

    def _patience_s(self, now_s: float) -> float:
        given_s = self._conduct.patience_s
        if given_s is not None:
            return given_s
        rate = self._link.up.curve.rate_bps(now_s)
        chunks_s = 2.0 * CHUNK_BITS / rate if rate else 0.0
        return min(MOST_STALL_S, max(LEAST_STALL_S, 4.0 * self._link.rtt_s(now_s) + chunks_s))

    def _look(self, _: Request | None, now_s: float) -> None:
        """What a session does once a second beside its requests: a heartbeat, and a probe where one is due."""
        if now_s >= self._connected_s and not self._is_away(now_s):
            self._policy.round_trip(now_s, self._link.rtt_s(now_s))
        move = self._policy.probe(now_s)
        if move is not None and not self._n_shadows:
            self._n_shadows += 1
            self._set_out(Request(int(now_s), now_s, move, is_shadow=True), now_s)
        if now_s + HEARTBEAT_S < self._stream.duration_s:
            self._at(now_s + HEARTBEAT_S, self._look, None)

    def _finish(self, request: Request, now_s: float, winner: int) -> None:
        request.over = True
        if request.is_shadow:
            self._n_shadows -= 1
            if request.start_s >= 0:  # trials are paid once in the life of a way, not by this stream
                self._shadow_bytes += request.bytes_up + request.bytes_down
            return
        move, stream = request.move, self._stream
        self._n_in_flight -= 1
        self._policy.answered(now_s, move, now_s - request.start_s)
        self._rows.rows.append((
            request.slot, request.start_s, now_s - request.start_s, winner, move.prospect,
            nan if move.hedge_s is None else move.hedge_s, nan if move.predicted_s is None else move.predicted_s,
            request.device_s, request.wasted_s, request.up_s, request.down_s, request.bytes_up + self._shadow_bytes,
            request.bytes_down, request.wasted_bytes + self._shadow_bytes, request.attempts, move.is_switch,
        ))  # fmt: skip
        self._shadow_bytes = 0.0
        if stream.kind == "paced":
            slot = stream.next_slot(request.slot, now_s)
            if slot < len(self._arrivals):
                self._at(self._arrivals[slot], self._arrive, Request(slot, self._arrivals[slot], Move(0)))
        elif stream.kind == "closed" and now_s + stream.period_s < stream.duration_s:
            next_s = now_s + stream.period_s
            self._at(next_s, self._arrive, Request(request.slot + 1, next_s, Move(0)))
