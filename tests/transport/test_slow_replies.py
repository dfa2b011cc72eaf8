"""Replies that come in many pieces, as over every real link, are read to their end."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import aiohttp

from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.transport.http_reply import whole_body

REPLY = json.dumps({"cuts": [{"id": f"{number:016x}", "tail_s": 0.01} for number in range(400)]}).encode()


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(REPLY)))
        self.end_headers()
        self.wfile.write(REPLY)

    def log_message(self, *words: object) -> None:
        """Keeps stderr clean."""


async def test_a_reply_over_a_slow_link_is_whole() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        slow = Shape(down=Direction(rate_bps=400e3, delay_s=0.01))
        try:
            with ShapedProxy(server.server_address[1], slow) as link:
                async with aiohttp.ClientSession() as session:
                    async with session.get(f"http://127.0.0.1:{link.port}/") as reply:
                        assert len(await reply.content.read(1 << 20)) < len(REPLY), (
                            "one read gives what has come so far"
                        )
                    async with session.get(f"http://127.0.0.1:{link.port}/") as reply:
                        assert await whole_body(reply, 1 << 20) == REPLY
                    async with session.get(f"http://127.0.0.1:{link.port}/") as reply:
                        assert await whole_body(reply, 5000) == REPLY[:5000]
        finally:
            server.shutdown()
            thread.join()
