"""Boxes come into a fleet through real gateways over TLS: once, again, too late, too many, with a person's word."""

from pathlib import Path

from tests.enrolled_box import ask, enrolled_box
from tests.live_gateway import LiveGateway


async def test_a_box_enrols_and_holds_a_token(gateway: LiveGateway, tmp_path: Path) -> None:
    async with enrolled_box(tmp_path / "box", gateway, tags={"site": "oslo"}) as access:
        assert access.enrolment is not None
        box_id = access.enrolment.box_id
        assert access.token_source.text.startswith("hyb_")
        assert access.enrolment.tags == {"site": "oslo"}
        (box,) = (await ask(gateway, "GET", "/v2/hybrid/fleet/boxes"))["boxes"]
        assert (box["id"], box["admission"], box["run"]) == (box_id, "admitted", access.run_id)
        models = await ask(gateway, "GET", "/v2/hybrid/models", token=access.token_source.text)
        assert models == {"models": []}
