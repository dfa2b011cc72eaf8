"""Who may change a box's models: every signer, every kind of past."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from edge_agent.install.rules import Papers, Past, Permit, permit
from hybrid.artifact.manifest import Golden
from hybrid.artifact.signature import Signature, sign
from hybrid.errors import BadMessage, CorruptContent, Forbidden, HybridError, VersionReplayed
from hybrid.fleet.rollback import Rollback, read_rollback, signed_rollback
from hybrid.fleet.trust_bundle import TrustBundle
from tests.install.box_lab import Fleet, Made, make, npy

GOLDEN = Golden(inputs={"x": "golden/x.npy"}, outputs={"y": "golden/y.npy"}, tolerance={"onnxruntime": 1e-4})
FILES = {
    "model.onnx": b"body",
    "head.bin": b"head",
    "golden/x.npy": npy(np.zeros(2)),
    "golden/y.npy": npy(np.ones(2)),
}


def papers(made: Made) -> Papers:
    return Papers(manifest=made.data, signature=Signature.of_text(made.signature) if made.signature else None)


def ask(made: Made, trust: TrustBundle | None, past: Past | None = None, rollback: Rollback | None = None) -> Permit:
    return permit(papers(made), made.digest, "net", past=past or Past(), trust=trust, rollback=rollback)


@pytest.fixture(scope="module")
def trust(fleet: Fleet) -> TrustBundle:
    return fleet.trust()


@pytest.fixture(scope="module")
def base(fleet: Fleet) -> Made:
    return make(FILES, key=fleet.publisher, sequence=4, trainable=("head.bin",), golden=GOLDEN, classes=("a", "b"))


def learned(base: Made, key: bytes | None, /, files: dict[str, bytes] | None = None, **changes: object) -> Made:
    """A version of a round: the head has learned, and its golden outputs with it."""
    terms: dict[str, object] = {
        "key": key, "version": "1.r1", "sequence": 5, "base": base.digest, "trainable": ("head.bin",),
        "golden": GOLDEN, "classes": ("a", "b"), **changes,
    }  # fmt: skip
    return make({**FILES, "head.bin": b"wiser", "golden/y.npy": npy(np.full(2, 3.0)), **(files or {})}, **terms)


def test_a_publisher_may(fleet: Fleet, trust: TrustBundle, base: Made) -> None:
    assert ask(base, trust).signed_by == sign(b"", fleet.publisher).key_id


@pytest.mark.parametrize("kind", ["none", "unknown", "revoked", "false", "other bytes"])
def test_nobody_else_may(fleet: Fleet, trust: TrustBundle, base: Made, kind: str) -> None:
    made, wanted = base, Forbidden
    if kind == "none":
        made = replace(base, signature=None)
    elif kind == "unknown":
        made = replace(base, signature=sign(base.data, fleet.other).text)
    elif kind == "revoked":
        trust = fleet.trust(publishers=[fleet.other])
    elif kind == "false":
        signature = sign(base.data, fleet.publisher)
        made, wanted = replace(base, signature=replace(signature, signature=bytes(64)).text), CorruptContent
    else:
        made, wanted = replace(base, signature=sign(base.data + b" ", fleet.publisher).text), CorruptContent
    with pytest.raises(wanted):
        ask(made, trust)


def test_nothing_is_parsed_before_its_signature_is_right(fleet: Fleet, trust: TrustBundle, base: Made) -> None:
    nonsense = replace(base, data=b"{no manifest", signature=sign(b"{no manifest", fleet.other).text)
    with pytest.raises(Forbidden):
        ask(nonsense, trust)
    signed = replace(nonsense, signature=sign(b"{no manifest", fleet.publisher).text)
    with pytest.raises(BadMessage):
        ask(signed, trust)


def test_a_trust_bundle_without_keys_lets_nobody_in(base: Made) -> None:
    with pytest.raises(Forbidden):
        ask(base, TrustBundle(schema=1, root_key="0" * 64, sequence=-1))


def test_a_fleet_without_a_root_installs_what_the_gateway_assigns(base: Made) -> None:
    assert ask(replace(base, signature=None), None, Past(sequence=99)).signed_by == ""


def test_another_manifest_than_the_assigned_one_is_refused(fleet: Fleet, trust: TrustBundle, base: Made) -> None:
    with pytest.raises(CorruptContent, match="assigned"):
        permit(papers(base), "0" * 64, "net", past=Past(), trust=trust, rollback=None)
    with pytest.raises(CorruptContent, match="is of net"):
        permit(papers(base), base.digest, "other", past=Past(), trust=trust, rollback=None)


# -- sequences


def test_the_sequence_does_not_fall(trust: TrustBundle, base: Made) -> None:
    assert ask(base, trust, Past(sequence=4)).manifest.sequence == 4
    with pytest.raises(VersionReplayed) as caught:
        ask(base, trust, Past(sequence=5))
    assert caught.value.fields == {"sequence": 4, "had": 5}


def test_the_box_may_go_back_to_its_own_last_good_version(trust: TrustBundle, base: Made) -> None:
    assert ask(base, trust, Past(sequence=9, own=frozenset({base.digest})))


def test_a_publishers_rollback_leads_back_once(fleet: Fleet, trust: TrustBundle, base: Made) -> None:
    word = signed_rollback(Rollback(name="net", artifact_digest=base.digest, below=7), fleet.publisher)
    rollback = read_rollback(word, trust.trusted("publisher"))
    assert ask(base, trust, Past(sequence=7), rollback)
    with pytest.raises(VersionReplayed):  # a newer version was committed since: the old word is worth nothing
        ask(base, trust, Past(sequence=8), rollback)
    for other in (replace_word(rollback, name="other"), replace_word(rollback, artifact_digest="0" * 64)):
        with pytest.raises(VersionReplayed):
            ask(base, trust, Past(sequence=7), other)


def replace_word(rollback: Rollback, **changes: object) -> Rollback:
    return msgspec.structs.replace(rollback, **changes)


@pytest.mark.parametrize("signer", ["rounds", "other", "nobody's bytes", "another document", "too long"])
def test_nobody_else_signs_a_rollback(fleet: Fleet, trust: TrustBundle, base: Made, signer: str) -> None:
    rollback = Rollback(name="net", artifact_digest=base.digest, below=7)
    word = signed_rollback(rollback, {"rounds": fleet.rounds, "other": fleet.other}.get(signer, fleet.publisher))
    if signer == "nobody's bytes":
        word = (word[0].replace(b":7", b":8"), word[1])
    elif signer == "another document":  # what a publisher signed otherwise does not read as a rollback
        word = (base.data, base.signature or "")
    elif signer == "too long":
        word = (word[0] + b" " * 5000, word[1])
    with pytest.raises(HybridError) as caught:
        read_rollback(word, trust.trusted("publisher"))
    assert isinstance(caught.value, Forbidden | CorruptContent | BadMessage)


# -- rounds


def test_a_round_may_change_what_learns(fleet: Fleet, trust: TrustBundle, base: Made) -> None:
    past = Past(sequence=4, bases=(papers(base),))
    assert ask(learned(base, fleet.rounds), trust, past).manifest.version == "1.r1"


def test_a_round_needs_a_base_that_a_publisher_signed_and_the_box_holds(
    fleet: Fleet, trust: TrustBundle, base: Made
) -> None:
    with pytest.raises(Forbidden, match="base"):
        ask(learned(base, fleet.rounds), trust, Past(sequence=4))
    first = learned(base, fleet.rounds)
    second = learned(first, fleet.rounds, sequence=6, version="1.r2")
    with pytest.raises(Forbidden):  # a round's version is no base for the next
        ask(second, trust, Past(sequence=5, bases=(papers(first), papers(base))))
    with pytest.raises(Forbidden):
        ask(learned(base, fleet.rounds, base=None), trust, Past(sequence=4, bases=(papers(base),)))


CHANGES: dict[str, dict[str, object]] = {
    "another model file": {"files": {"model.onnx": b"evil"}},
    "another golden input": {"files": {"golden/x.npy": npy(np.full(2, 9.0))}},
    "one file more": {"files": {"more.bin": b"x"}},
    "more may learn": {"trainable": ("head.bin", "model.onnx")},
    "a wider tolerance": {
        "golden": Golden(inputs=GOLDEN.inputs, outputs=GOLDEN.outputs, tolerance={"onnxruntime": 1e9})
    },
    "no golden outputs": {"golden": None},
    "other labels": {"classes": ("b", "a")},
    "other preprocessing": {"pre": msgspec.Raw(b'{"kind":"image"}')},
    "another postprocessing": {"post": msgspec.Raw(b'{"k":1}')},
}


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_a_round_may_not_change_anything_else(fleet: Fleet, trust: TrustBundle, base: Made, what: str) -> None:
    made = learned(base, fleet.rounds, **CHANGES[what])  # type: ignore[arg-type]
    past = Past(sequence=4, bases=(papers(base),))
    with pytest.raises(Forbidden, match="may not change"):
        ask(made, trust, past)
    assert ask(learned(base, fleet.publisher, **CHANGES[what]), trust, past)  # type: ignore[arg-type]


def test_a_round_may_not_bring_a_field_that_nobody_knows(fleet: Fleet, trust: TrustBundle, base: Made) -> None:
    fields = msgspec.json.decode(learned(base, fleet.rounds).data)
    data = msgspec.json.encode({**fields, "later_releases_obey": True}, order="sorted")
    made = replace(learned(base, fleet.rounds), data=data, signature=sign(data, fleet.rounds).text)
    with pytest.raises(Forbidden, match="later_releases_obey"):
        ask(made, trust, Past(sequence=4, bases=(papers(base),)))


def test_a_round_does_not_go_back_either(fleet: Fleet, trust: TrustBundle, base: Made) -> None:
    with pytest.raises(VersionReplayed):
        ask(learned(base, fleet.rounds, sequence=3), trust, Past(sequence=4, bases=(papers(base),)))


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "a/../../b", "manifest.json", "manifest.sig", "attachments/x", "C:evil", "a\\b", "a\0b",
     "..", "\uff0e\uff0e/x", "LABELS.TXT", "model.onnx/below"],
)  # fmt: skip
def test_a_publisher_cannot_name_a_file_outside_the_slot(fleet: Fleet, trust: TrustBundle, name: str) -> None:
    fields = msgspec.json.decode(make({"model.onnx": b"m", "labels.txt": b"l"}, key=fleet.publisher).data)
    fields["files"][name] = fields["files"]["labels.txt"]
    data = msgspec.json.encode(fields)
    made = replace(make({"model.onnx": b"m"}, key=None), data=data, signature=sign(data, fleet.publisher).text)
    with pytest.raises(BadMessage):
        ask(made, trust)
