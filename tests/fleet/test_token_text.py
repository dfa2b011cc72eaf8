"""The enrolment token's text: whole or refused, on paper, on a terminal and in a QR code."""

import random

import pytest

from hybrid.errors import TokenMistyped
from hybrid.fleet.enrolment_token import EnrolmentToken, qr_lines

TOKEN = EnrolmentToken.fresh(authority_sha256=b"a" * 32, root_sha256=b"r" * 32, url="https://gw.example.org:8700")


@pytest.mark.parametrize(
    "token",
    [
        TOKEN,
        EnrolmentToken.fresh(authority_sha256=b"a" * 32),
        EnrolmentToken.fresh(authority_sha256=bytes(range(32)), url="https://[fe80::1]:8700/grüße"),
    ],
)
def test_it_reads_back_as_it_was_in_any_case_and_wrapped(token: EnrolmentToken) -> None:
    text = token.text
    assert text.startswith("hybe_")
    wrapped = "\n  ".join(text[at : at + 40] for at in range(0, len(text), 40)) + "\n"
    assert EnrolmentToken.parse(text) == EnrolmentToken.parse(text.upper()) == EnrolmentToken.parse(wrapped) == token


def test_every_mistyped_character_is_noticed() -> None:
    """Each place once with a drawn other character, drawn swaps, and every shorter beginning."""
    rng, text = random.Random(4), TOKEN.text
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    wrong = [
        text[:at] + rng.choice(alphabet.replace(text[at], "")) + text[at + 1 :] for at in range(len("hybe_"), len(text))
    ]
    for _ in range(200):
        at = rng.randrange(5, len(text) - 1)
        if text[at] != text[at + 1]:
            wrong.append(text[:at] + text[at + 1] + text[at] + text[at + 2 :])
    wrong += [text[:at] for at in range(len(text))]
    for mistyped in wrong:
        with pytest.raises(TokenMistyped):
            EnrolmentToken.parse(mistyped)


@pytest.mark.parametrize(
    "text", ["", "hyb_abc_def", "hybe_", "hybe_01890", "hybe_" + "a" * 5000, "é" * 50, "\0", "hybe_ü"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(TokenMistyped):
        EnrolmentToken.parse(text)


def test_a_token_of_a_later_form_says_so() -> None:
    import base64
    import hashlib

    raw = base64.b32decode(TOKEN.text.removeprefix("hybe_").upper() + "=" * (-len(TOKEN.text[5:]) % 8))
    content = b"\x02" + raw[1:-4]
    later = base64.b32encode(content + hashlib.sha256(content).digest()[:4]).decode().rstrip("=").lower()
    with pytest.raises(TokenMistyped, match="form 2"):
        EnrolmentToken.parse(f"hybe_{later}")


def test_the_secret_is_not_shown() -> None:
    assert TOKEN.secret not in repr(TOKEN)


def test_the_code_on_the_terminal_is_smaller_than_the_text_as_it_stands() -> None:
    import segno

    lines = qr_lines(TOKEN.text).splitlines()
    width = len(max(lines, key=len))
    assert width < segno.make(TOKEN.text, micro=False, error="m").symbol_size()[0]
    assert 40 < width <= 80  # it fits a terminal
    assert len(lines) <= width // 2 + 1
