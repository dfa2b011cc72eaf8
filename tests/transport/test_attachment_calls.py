"""What a gateway answers about attachments: one that is none costs only itself."""

import pytest

from hybrid.errors import BadMessage
from hybrid.transport.attachment_calls import attachments_of

URL = "http://127.0.0.1:9"
SOUND = {"content": '{"kind":"report","model_digest":"%s","variant":"original"}' % ("a" * 64)}


@pytest.mark.parametrize(
    "broken",
    [
        {"content": "{"},
        {"content": "[" * 100_000},
        {"content": SOUND["content"].replace("report", "horoscope")},
        SOUND | {"signature": "x"},
        {"content": "\udcff"},
        {"content": '"' + "x" * (17 << 20) + '"'},
    ],
    ids=["half", "deep", "unknown kind", "signature", "no text", "large"],
)
def test_a_broken_one_does_not_hide_the_others(broken):
    (found,) = attachments_of({"attachments": [broken, SOUND, broken]}, URL)
    assert found.kind == "report"


@pytest.mark.parametrize("answer", [[], {"attachments": {}}, {"attachments": [5]}, {"attachments": [{"content": 5}]}])
def test_an_answer_of_another_form_is_said(answer):
    with pytest.raises(BadMessage, match="do not parse"):
        attachments_of(answer, URL)
