"""A session that was told no address: it finds a gateway, has it prove itself, and uses it."""

import time
from pathlib import Path

import pytest

import hybrid
from hybrid.errors import ModelUnavailable
from tests import zoo
from tests.live_gateway import LiveGateway
from tests.session.test_placements import assert_same, whole

pytestmark = pytest.mark.slow


def settles(session: hybrid.InferenceSession, name: str, placement: str, limit_s: float = 60.0) -> bool:
    deadline_s = time.monotonic() + limit_s
    feeds = zoo.feeds(name)
    while time.monotonic() < deadline_s:
        assert_same(session.run(None, feeds), whole(name, feeds))
        assert session.report is not None
        if session.report.placement == placement:
            return True
        time.sleep(0.05)  # what prepares that has the machine meanwhile
    return False


def test_found_proved_used_and_lost(tmp_path: Path) -> None:
    options = hybrid.Options(placement="offload")
    with LiveGateway(tmp_path / "data", "--host", "0.0.0.0") as gateway:
        assert gateway.url.startswith("https://")
        gateway.push(zoo.path("ppocr_cls"), "cls")
        with hybrid.InferenceSession(zoo.path("ppocr_cls"), token=gateway.token, options=options) as session:
            assert settles(session, "ppocr_cls", "offload")
            assert session.report is not None
            assert session.report.gateway.startswith("https://")
            gateway.kill()
            assert settles(session, "ppocr_cls", "local")


def test_without_a_token_nothing_is_looked_for(tmp_path: Path) -> None:
    with LiveGateway(tmp_path / "data", "--host", "0.0.0.0") as gateway:
        gateway.push(zoo.path("ppocr_cls"), "cls")
        with hybrid.InferenceSession(zoo.path("ppocr_cls")) as session:
            session.run(None, zoo.feeds("ppocr_cls"))
            assert not session.prepare(zoo.feeds("ppocr_cls"), timeout_s=5)
            assert session.explain()[0].reason == "no gateway, or no request yet"


def test_a_named_gateway_with_its_own_certificate_is_proved_by_the_token(tmp_path: Path) -> None:
    with LiveGateway(tmp_path / "data", "--host", "0.0.0.0", "--no-announce") as gateway:
        gateway.push(zoo.path("ppocr_cls"), "cls")
        url = f"https://127.0.0.1:{gateway.port}"
        options = hybrid.Options(placement="offload", fallback=False)
        feeds = zoo.feeds("ppocr_cls")
        with hybrid.InferenceSession(
            zoo.path("ppocr_cls"), gateway=url, token=gateway.token, options=options
        ) as session:
            assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))


def test_models_by_name_come_from_the_gateway_and_then_from_the_cache(gateway: LiveGateway) -> None:
    feeds = zoo.feeds("ppocr_cls")
    with hybrid.InferenceSession("ppocr-cls", gateway=gateway.url, token=gateway.token) as session:
        assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))
    with hybrid.InferenceSession("ppocr-cls:1", gateway="http://127.0.0.1:9", token=gateway.token) as session:
        assert_same(session.run(None, feeds), whole("ppocr_cls", feeds))
    with pytest.raises(ModelUnavailable, match="nonesuch"):
        hybrid.InferenceSession("nonesuch", gateway=gateway.url, token=gateway.token)
    with pytest.raises(ModelUnavailable, match="no gateway is named or found"):
        hybrid.InferenceSession("nonesuch", gateway=None)


def test_a_folder_of_the_names_own_is_pointed_at(tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    with pytest.raises(ModelUnavailable, match=r"the folder that is here is \./small"):
        hybrid.InferenceSession("small", gateway=None)
