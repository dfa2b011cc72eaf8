"""Who is asked when, who stays and who goes: pure state, no clock."""

from hypothesis import given
from hypothesis import strategies as st

from hybrid.discovery.candidate import Candidate
from hybrid.discovery.ledger import MAX_ASKED_AT_ONCE, MAX_BACKOFF_S, REPROVE_S, Ledger

PIN = "ab" * 32
OTHER_PIN = "cd" * 32


def candidate(*addresses: str, gateway_id: str = "aa", fingerprint: str = "") -> Candidate:
    chosen = addresses or ("192.0.2.1",)
    return Candidate(name="gw", gateway_id=gateway_id, addresses=chosen, port=8700, tls=True, fingerprint=fingerprint)


def ledger(*candidates: Candidate, random: float = 0.0) -> Ledger:
    made = Ledger(lambda: random)
    made.announce(candidates, 0.0)
    return made


URL = "https://192.0.2.1:8700"
STEPS = ["announce", "withdraw", "ask", "prove", "refute", "silence"]


def test_a_candidate_is_asked_once_and_found_when_it_proves_itself() -> None:
    search = ledger(candidate())
    assert search.gateways() == ()
    assert search.take_due(0.0) == [URL]
    assert search.take_due(0.0) == [], "not twice at the same time"
    search.proved(URL, PIN, 0.01, 0.1)
    (found,) = search.gateways()
    assert (found.url, found.certificate_sha256, found.rtt_s) == (URL, PIN, 0.01)
    assert search.reasons() == ()
    assert search.take_due(1.0) == []
    assert search.take_due(0.1 + REPROVE_S) == [URL], "it is asked again later"


def test_a_plain_http_candidate_is_never_asked() -> None:
    plain = Candidate(name="gw", gateway_id="aa", addresses=("192.0.2.1",), port=8700, tls=False)
    assert ledger(plain).take_due(1e9) == []


def test_a_failure_is_told_and_repeated_ever_more_rarely() -> None:
    search = ledger(candidate(), random=1.0)
    now_s, waits = 10.0, []
    for _ in range(10):
        assert search.take_due(now_s) == [URL]
        search.refuted(URL, "it is a relay", now_s)
        due_s = search.next_due_s()
        assert due_s is not None
        waits.append(due_s - now_s)
        now_s = due_s
    assert search.gateways() == ()
    assert search.reasons() == ("it is a relay",)
    assert waits == sorted(waits)
    assert waits[0] == 1.0
    assert waits[-1] == MAX_BACKOFF_S


def test_two_gateways_nearest_first() -> None:
    near, far = candidate("192.0.2.1", gateway_id="aa"), candidate("192.0.2.2", gateway_id="bb")
    search = ledger(far, near)
    search.take_due(0.0)
    search.proved("https://192.0.2.2:8700", OTHER_PIN, 0.2, 0.1)
    search.proved(URL, PIN, 0.1, 0.1)
    assert [found.gateway_id for found in search.gateways()] == ["aa", "bb"]


def test_one_gateway_at_two_addresses_is_one_and_keeps_its_address() -> None:
    search = ledger(candidate("192.0.2.1", "fd00::1"))
    search.take_due(0.0)
    search.proved(URL, PIN, 0.1, 0.1)
    assert [found.url for found in search.gateways()] == [URL]
    search.proved("https://[fd00::1]:8700", PIN, 0.05, 0.2)
    assert [found.url for found in search.gateways()] == [URL], "a nearer address is no reason to move"
    search.take_due(200.0)
    search.refuted(URL, "gone bad", 200.1)
    assert [found.url for found in search.gateways()] == ["https://[fd00::1]:8700"]


def test_an_address_that_is_announced_no_more_gives_way_to_one_that_is() -> None:
    search = ledger(candidate("192.0.2.1"))
    search.take_due(0.0)
    search.proved(URL, PIN, 0.1, 0.1)
    search.announce([candidate("192.0.2.9")], 1.0)
    search.take_due(2.0)
    assert [found.url for found in search.gateways()] == [URL], "as long as the new one has not proved itself"
    search.proved("https://192.0.2.9:8700", PIN, 0.5, 2.1)
    assert [found.url for found in search.gateways()] == ["https://192.0.2.9:8700"]


def test_a_failed_proof_ends_it_at_once() -> None:
    search = ledger(candidate())
    search.take_due(0.0)
    search.proved(URL, PIN, 0.1, 0.1)
    search.recheck(URL, 1.0)
    assert search.take_due(1.0) == [URL]
    search.refuted(URL, "revoked", 1.1)
    assert search.gateways() == ()


def test_silence_does_not_end_it_while_it_is_announced() -> None:
    search = ledger(candidate(), random=1.0)
    search.take_due(1.0)
    search.proved(URL, PIN, 0.1, 1.0)
    for number in range(10):
        search.recheck(URL, 100.0 * number)
        search.take_due(100.0 * number)
        search.silent(URL, "no answer", 100.0 * number)
    assert len(search.gateways()) == 1


def test_a_forged_farewell_takes_nothing_away_and_a_true_one_does() -> None:
    search = ledger(candidate(), random=1.0)
    search.take_due(1.0)
    search.proved(URL, PIN, 0.1, 1.0)
    search.announce([], 2.0)
    assert search.take_due(2.0) == [URL], "it is asked at once whether it is still there"
    search.proved(URL, PIN, 0.1, 2.1)
    assert len(search.gateways()) == 1
    now_s = 100.0
    for n_left in (1, 1, 0):
        search.recheck(URL, now_s)
        search.take_due(now_s)
        search.silent(URL, "no answer", now_s)
        assert len(search.gateways()) == n_left
        now_s += 100
    assert search.next_due_s() is None, "and then it is forgotten"


def test_an_unproved_candidate_goes_with_its_announcement() -> None:
    search = ledger(candidate())
    assert search.take_due(0.0) == [URL]
    search.announce([], 1.0)
    search.proved(URL, PIN, 0.1, 2.0)  # the answer comes too late
    assert search.gateways() == ()
    assert search.take_due(1e9) == []


def test_a_new_fingerprint_means_a_new_question_at_once() -> None:
    search = ledger(candidate(fingerprint="aa"))
    search.take_due(0.0)
    search.proved(URL, PIN, 0.1, 0.1)
    search.announce([candidate(fingerprint="bb")], 1.0)
    assert search.take_due(1.0) == [URL]
    search.proved(URL, OTHER_PIN, 0.1, 1.1)
    assert [found.certificate_sha256 for found in search.gateways()] == [OTHER_PIN]


def test_a_flood_is_asked_a_few_at_a_time_and_bounded() -> None:
    search = ledger(*(candidate(f"192.0.2.{number}") for number in range(256)))
    asked = search.take_due(1.0)
    assert len(asked) == MAX_ASKED_AT_ONCE
    assert search.take_due(1.0) == []
    n_urls = 0
    while asked:
        n_urls += len(asked)
        for url in asked:
            search.refuted(url, "no", 1.0)
        asked = search.take_due(1.0)
    assert n_urls == 128


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3))))
def test_only_what_proved_itself_is_ever_offered(steps: list[tuple[str, int]]) -> None:
    everyone = [candidate(f"192.0.2.{number}", gateway_id=f"a{number}") for number in range(4)]
    search, announced, asked, proved = Ledger(lambda: 0.5), set(), [], set()
    for now_s, (step, number) in enumerate(steps):
        if step in {"announce", "withdraw"}:
            announced = announced | {number} if step == "announce" else announced - {number}
            search.announce([everyone[n] for n in sorted(announced)], float(now_s))
        elif step == "ask":
            asked += search.take_due(float(now_s))
        elif asked:
            url = asked.pop(0)
            if step == "prove":
                search.proved(url, PIN, 0.1, float(now_s))
                proved.add(url)
            elif step == "refute":
                search.refuted(url, "no", float(now_s))
                proved.discard(url)
            else:
                search.silent(url, "?", float(now_s))
        assert {found.url for found in search.gateways()} <= proved
