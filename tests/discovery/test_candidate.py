"""What strangers announce is cut to size and runs out."""

from hypothesis import given
from hypothesis import strategies as st

from hybrid.discovery.candidate import (
    MAX_ADDRESSES,
    MAX_CANDIDATES,
    MAX_SAME_NAME,
    RIVAL_S,
    SERVICE_TYPE,
    Candidate,
    CandidateBook,
    candidate_of,
)

GOOD = {b"tls": b"1", b"id": b"abcdef01", b"fp": b"0011223344556677", b"version": b"1", b"path": b"/"}


def candidate(port: int = 8700, address: str = "192.0.2.1", gateway_id: str = "aa") -> Candidate:
    return Candidate(name="gw", gateway_id=gateway_id, addresses=(address,), port=port, tls=True)


def test_a_good_announcement_becomes_https_urls() -> None:
    found = candidate_of(f"Büro.{SERVICE_TYPE}", 8700, ["192.0.2.1", "fd00::1", "fe80::1%3"], GOOD)
    assert found is not None
    assert found.name == "Büro"
    assert found.urls == ("https://192.0.2.1:8700", "https://[fd00::1]:8700", "https://[fe80::1%3]:8700")
    assert (found.gateway_id, found.fingerprint, found.version) == ("abcdef01", "0011223344556677", "1")


def test_a_gateway_behind_a_path_keeps_it() -> None:
    found = candidate_of("gw", 443, ["192.0.2.1"], GOOD | {b"path": b"/edge/"})
    assert found is not None
    assert found.urls == ("https://192.0.2.1:443/edge",)


def test_plain_http_has_no_url() -> None:
    for tls in (b"0", b"", b"yes", None):
        found = candidate_of("gw", 8700, ["192.0.2.1"], GOOD | {b"tls": tls})
        assert found is not None
        assert found.urls == ()


def test_what_nobody_can_connect_to_is_no_candidate() -> None:
    assert candidate_of("gw", None, ["192.0.2.1"], GOOD) is None
    assert candidate_of("gw", 0, ["192.0.2.1"], GOOD) is None
    assert candidate_of("gw", 65536, ["192.0.2.1"], GOOD) is None
    assert candidate_of("gw", 8700, [], GOOD) is None
    assert candidate_of("gw", 8700, ["224.0.0.251", "0.0.0.0", "ff02::fb", "::", "host", "240.0.0.1"], GOOD) is None


@given(
    name=st.text(max_size=300),
    port=st.one_of(st.none(), st.integers(-1, 70000)),
    addresses=st.lists(st.one_of(st.text(max_size=60), st.ip_addresses().map(str)), max_size=30),
    txt=st.dictionaries(
        st.sampled_from([b"tls", b"id", b"fp", b"version", b"path"]), st.one_of(st.none(), st.binary(max_size=255))
    ),
)
def test_no_announcement_breaks_anything(
    name: str, port: int | None, addresses: list[str], txt: dict[bytes, bytes | None]
) -> None:
    found = candidate_of(name, port, addresses, txt)
    if found is None:
        return
    assert len(found.name) <= 63
    assert found.name.isprintable()
    assert len(found.addresses) <= MAX_ADDRESSES
    assert len(found.gateway_id) <= 64
    for url in found.urls:
        assert url.startswith("https://")
        assert url.isascii()
        assert not set(url) & set(" \r\n?#@\\")


def test_a_second_announcer_under_a_name_stands_beside_the_first_for_a_while() -> None:
    book = CandidateBook()
    honest, rogue = candidate(8700, gateway_id="aa"), candidate(6666, gateway_id="bb")
    assert book.seen("gw", honest, 0.0)
    assert not book.seen("gw", honest, 1.0), "nothing new"
    assert book.seen("gw", rogue, 2.0)
    assert set(book.candidates(3.0)) == {honest, rogue}
    assert not book.seen("gw", honest, 4.0), "the honest one again, known already"
    assert set(book.candidates(2.0 + RIVAL_S + 1)) == {honest, rogue}, "the rogue stays until 4 + RIVAL_S"
    assert book.candidates(4.0 + RIVAL_S) == (honest,)


def test_a_withdrawn_name_is_forgotten() -> None:
    book = CandidateBook()
    book.seen("gw", candidate(), 0.0)
    assert book.gone("gw")
    assert not book.gone("gw")
    assert book.candidates(0.0) == ()


def test_a_flood_of_names_and_of_namesakes_is_bounded() -> None:
    book = CandidateBook()
    for number in range(1000):
        book.seen(f"gw{number}", candidate(1 + number), 0.0)
    assert len(book.candidates(0.0)) == MAX_CANDIDATES
    book.clear()
    for number in range(1000):
        book.seen("gw", candidate(1 + number), float(number) / 1000)
    assert len(book.candidates(1.0)) == MAX_SAME_NAME
    assert candidate(1000) in book.candidates(1.0), "the latest is kept"
