"""Which gateway `hybrid models` talks to when it is not told, or told too much."""

import socket
import threading

import pytest
import typer

from hybrid.cli import gateway_choice
from hybrid.cli.gateway_choice import LOOPBACK, LOOPBACK_TLS, choose
from hybrid.errors import GatewayUnreachable


@pytest.mark.parametrize("text", ["https://a:1", " https://a:1 , https://b:2", "https://a:1,"])
def test_a_named_gateway_is_taken_the_first_of_several(text):
    choice = choose(text, None)
    assert choice.url == "https://a:1"
    assert choice.trust.is_explicit


def test_none_is_refused():
    with pytest.raises(typer.BadParameter):
        choose("none", None)


@pytest.mark.parametrize("text", ["auto", "", " "])
def test_this_machines_gateway_is_preferred(monkeypatch, text):
    monkeypatch.setattr(gateway_choice, "_answers", lambda: True)
    assert choose(text, "hyb_aaaaaaaa_" + "a" * 32).url == LOOPBACK


@pytest.mark.parametrize(("answer", "url"), [(b"HTTP/1.1 200 OK\r\n\r\n", LOOPBACK), (b"", LOOPBACK_TLS)])
def test_this_machines_gateway_may_speak_tls(monkeypatch, answer, url):
    """One that does ends a plain call without a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(gateway_choice, "_PORT", listener.getsockname()[1])

        def serve():
            for _ in range(2):
                link, _ = listener.accept()
                with link:
                    if link.recv(100):
                        link.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert choose("auto", None).url == url
        thread.join(10)


def test_without_any_it_says_why(monkeypatch):
    monkeypatch.setattr(gateway_choice, "_answers", lambda: False)
    with pytest.raises(GatewayUnreachable, match="no token") as caught:
        choose("auto", None)
    assert "--gateway URL" in str(caught.value)
