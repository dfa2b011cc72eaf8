"""What each error code means: what, why and what to do; the source of `hybrid explain` and of docs/errors.md."""

from typing import Final

from hybrid.cli.explanation import Explanation
from hybrid.cli.explanations_below import BELOW

PAGE: Final = "docs/errors.md"
"""Where the same texts stand, one heading a code."""

KINDS: Final = {
    "error": "anything",
    "model": "the model",
    "plan": "a wish",
    "link": "the way there",
    "protocol": "a message",
    "refused": "a refusal",
    "engine_failed": "this machine",
    "compression": "a codec",
    "device": "an engine",
    "emulation": "emulation",
    "usage": "the command",
}
"""What the codes from this one on are about, in the order below."""


EXPLANATIONS: Final[dict[str, Explanation]] = {
    # the library, in the order of hybrid/errors.py
    "error": Explanation(
        "Something failed that has no name of its own.",
        "A part raised the root of all errors; the message says what it saw.",
        "Read the message; run again with -v for the traceback if that does not help.",
    ),
    "model": Explanation(
        "Something is wrong with the model itself.",
        "The file, its weights or its graph cannot be used as they are.",
        "Mend the file, export it again, or name another model.",
    ),
    "model_invalid": Explanation(
        "The model file is corrupt, lacks a part, or is not a valid graph.",
        "A download broke off, external data files were left behind, or the exporter wrote an invalid graph.",
        "Name an .onnx file with its external data beside it; where it is one, fetch or export it again.",
    ),
    "model_missing": Explanation(
        "There is no file at the path of the model.",
        "The path is mistyped, relative to another folder, or the file was moved.",
        "Check the path; it is relative to the folder that the program runs in.",
    ),
    "model_unsupported": Explanation(
        "The model is sound but holds something that no engine here runs.",
        "An operator, opset or datatype is newer than the engine, or a custom operator's library is not registered.",
        "Upgrade onnxruntime, export with an older opset, or register the operator's library in the session options.",
    ),
    "model_over_budget": Explanation(
        "The model alone needs more memory than the gateway may use for models.",
        "Its weights, or what the engine makes of them, are larger than --session-memory-bytes (on a GPU: "
        "--gpu-memory-bytes).",
        "Give the gateway more memory, or serve a smaller model (`hybrid models push` a quantized one).",
    ),
    "model_unavailable": Explanation(
        "The model is neither on this machine nor to be had from a gateway.",
        "The name is not known to the gateway, nothing is cached, or no gateway can be reached.",
        "Check the name with `hybrid models ls`, and the gateway's address and token; or give the path of a file.",
    ),
    "golden_differs": Explanation(
        "A new version does not give its own golden outputs on this box; it was not put into use.",
        "The engine or its provider computes the model otherwise here, or the golden outputs are of another model.",
        "Compare engine versions; export with other settings, or widen the tolerance of that engine in the manifest.",
    ),
    "model_untrainable": Explanation(
        "Nothing of the model can learn here, or not the part that was named.",
        "The variant has no trainable files, its head holds an operator without a gradient, or it was exported for "
        "batches of one.",
        "Do what the message says: publish it with `hybrid compress --head`, choose a later feature tensor, or train "
        "the full model with torch.",
    ),
    "plan": Explanation(
        "The wanted placement cannot be had.",
        "The model, the codec or the gateway does not allow it.",
        "Choose another placement, or `auto`; `session.explain()` lists what there is and why not.",
    ),
    "unknown_cut": Explanation(
        "The cut id is not in this model's table for these input shapes.",
        "Cuts belong to a model and a shape key: another file or another input shape has other cuts.",
        "List the cuts with `hybrid plan MODEL` for the shapes that you use.",
    ),
    "unknown_split": Explanation(
        "The gateway does not hold the split by which the device wants to send, or holds other files under its name.",
        "Another artifact with the same model was pushed there, or none with splits.",
        "Push the artifact that the device has opened; sessions take other ways meanwhile.",
    ),
    "placement_unavailable": Explanation(
        "A forced placement with fallback=False could not be had.",
        "No trusted gateway, a gateway without this model, or a cut whose head or tail cannot be built.",
        "Read the reason in the message; allow the fallback to get the device's own answer instead.",
    ),
    "data_unfit": Explanation(
        "The samples or labels do not allow the judgement that was asked for.",
        "There are too few to show so small a drop, a sample holds no numbers, the labels are not this model's, or its "
        "outputs are the same whatever goes in.",
        "Do what the message says: more samples, other labels, or a larger --max-drop.",
    ),
    "campaign_impossible": Explanation(
        "The campaign of rounds that was ordered cannot be had, or not with all of its wishes together.",
        "Some wishes exclude each other (secure aggregation and a robust rule, say), or the model's variant has no "
        "tensors that may learn.",
        "Do what the message says; docs/rounds.md lists what goes together.",
    ),
    "link": Explanation(
        "The way to the gateway failed.",
        "Networks end, stall and come back.",
        "Wait and try again; requests are computed locally meanwhile.",
    ),
    "gateway_unreachable": Explanation(
        "No connection to the gateway.",
        "It is not running, its address or port is wrong, a firewall refuses, or none is configured.",
        "Check that `hybrid gateway serve` runs, and the address: `curl URL/v2/health/ready`.",
    ),
    "connection_lost": Explanation(
        "The connection ended while a request was on it.",
        "The gateway stopped, or the network dropped the connection.",
        "Nothing needs to be done: the session connects again by itself. Look at the gateway's log if it repeats.",
    ),
    "gateway_stalled": Explanation(
        "The connection stands, but nothing moves on it.",
        "A dead radio link, a full queue on the way, or a frozen gateway.",
        "Nothing needs to be done: the connection is replaced. Check the signal if it repeats.",
    ),
    "gateway_untrusted": Explanation(
        "The gateway did not prove who it is.",
        "Its certificate is not the pinned one, it does not hold your token, or something stands between you and it.",
        "Check the pin and the token; make a new token with `hybrid gateway token create`. Do not turn the check off.",
    ),
    "protocol": Explanation(
        "Bytes that do not follow the protocol.",
        "One of the two peers has a fault, or something on the way changes the bytes.",
        "Upgrade both sides to the same version; report it with the message if it remains.",
    ),
    "bad_frame": Explanation(
        "A frame of unknown kind, wrong length, or out of turn.",
        "The peer has a fault, or it is no hybrid gateway at all.",
        "Check that the address is a hybrid gateway and upgrade both sides.",
    ),
    "bad_message": Explanation(
        "A message, or a value in it, does not parse or lacks what it needs.",
        "A value was mistyped, the client built the request wrongly, or the body was cut off on the way.",
        "Mend the value that the message names; what a request must hold is in docs/wire.md.",
    ),
    "tensor_mismatch": Explanation(
        "A tensor's bytes, shape or datatype contradict what was declared or what the model wants.",
        "The feed has another shape or dtype than the model's input, or its size was declared wrongly.",
        "Compare with the model's inputs: `session.get_inputs()`, `hybrid plan MODEL` or `GET /v2/models/NAME`.",
    ),
    "too_large": Explanation(
        "A header or a body is beyond the limit; it was refused before memory was taken.",
        "Limits keep one client from taking the gateway's memory.",
        "Send smaller batches, or raise the limit in the gateway's configuration.",
    ),
    "version_mismatch": Explanation(
        "The two sides share no protocol version.",
        "One of them is much older than the other.",
        "Upgrade the older side; `hybrid --version` tells which one that is.",
    ),
    "version_unsupported": Explanation(
        "A box and its gateway are too many releases apart to understand each other.",
        "Each side speaks its own version of the fleet's calls and two before it; the message names both.",
        "Upgrade the older side. The box goes on meanwhile with the models that it has.",
    ),
    "token_mistyped": Explanation(
        "The enrolment token has a mistake in it: its own checksum does not fit.",
        "A character was mistyped or lost, or only a part of the line was copied. No gateway was asked.",
        "Copy the whole line again, scan the QR code, or pass it on a pipe: `hybrid agent enroll -`.",
    ),
    "refused": Explanation(
        "The gateway understood and declined.",
        "A rule or a limit of the gateway stands against it.",
        "Read the message; ask the gateway's operator.",
    ),
    "unauthenticated": Explanation(
        "No token, an unknown one, or a revoked one.",
        "The request carried no valid token of this gateway.",
        "Set HYBRID_TOKEN or --token; the operator makes one with `hybrid gateway token create`.",
    ),
    "forbidden": Explanation(
        "A good token, or a user, without the right to do this.",
        "Roles are narrow: a device may infer, a publisher may push, an administrator may do both and make tokens.",
        "Use a token with the role that is needed, or mend the permissions of the file that the message names.",
    ),
    "not_admitted": Explanation(
        "The gateway's registry of boxes does not admit this box at the moment.",
        "It waits for a person's approval, was quarantined because its key was seen on two machines, or was revoked.",
        "On the gateway: `hybrid fleet boxes show BOX` says which; `hybrid fleet boxes admit BOX` lets it in.",
    ),
    "masking_refused": Explanation(
        "A device went no further in a masked round (secure aggregation) and revealed nothing.",
        "The gateway asked for what could uncover the device's update (two rosters, two live sets, a device both live "
        "and dead, too few devices or consents), or the campaign promises less than the device insists on.",
        "If it is one round and one device, a fault or a restart did it: the next round goes on. If it repeats, look "
        "at the gateway; docs/secure_aggregation.md says what each refusal means.",
    ),
    "nonce_stale": Explanation(
        "A box signed a challenge of its gateway that does not count any more.",
        "It counts once, for two minutes, under one certificate; an answer was lost, or the gateway began anew.",
        "Nothing: the box asks for another challenge by itself. If it goes on, check the box's link.",
    ),
    "not_found": Explanation(
        "What was asked for does not exist.",
        "A name, a version or a path is wrong, or it was removed.",
        "Check the name or path that the message gives; `hybrid models ls` lists the models of a gateway.",
    ),
    "conflict": Explanation(
        "It exists already with other content, or somebody else holds it.",
        "A version never changes once it is there; a port or a data folder serves one gateway.",
        "Choose another name, version or folder, or remove what is there, as the message says.",
    ),
    "privacy_spent": Explanation(
        "Another round would take boxes over the privacy budget of their model.",
        "Each round with noise costs the boxes that take part in it some epsilon, over all campaigns of the model; the "
        "message says what was spent and what one more round would come to.",
        "Keep the model as it is, wait for boxes that took part less, or begin a campaign with more --noise or a "
        "larger --max-epsilon, knowing what that says.",
    ),
    "version_replayed": Explanation(
        "A box was assigned an older version than it has had.",
        "The sequence of a model never falls by itself, so that nobody can bring back a version with a known fault.",
        "Publish the old model as a new version, or let a publisher sign the rollback (docs/fleet.md).",
    ),
    "digest_mismatch": Explanation(
        "The two sides do not hold the same model or the same cut.",
        "One of them has another file, or normalised the graph differently.",
        "Push the device's model to the gateway; keep onnxruntime's versions close. Requests run locally meanwhile.",
    ),
    "warming": Explanation(
        "The gateway is still building what the request needs.",
        "The first request of a cut or a model loads it; that takes a moment.",
        "Nothing needs to be done: it is computed locally meanwhile. Plain clients try again after Retry-After.",
    ),
    "link_held": Explanation(
        "Models wait for another link, for mains power or for their hour.",
        "The link costs by the byte, the box runs on its battery, or the clock is outside `transfer_hours`: a setting "
        "says that models wait then.",
        "Nothing, if you want it so; else change `metered`, `on_battery` or `transfer_hours` and reload the service.",
    ),
    "overloaded": Explanation(
        "The gateway's queue is full, or it is shutting down.",
        "More requests arrive than it can compute, or an operator stops it.",
        "Try again after Retry-After; give the gateway more cores or add another one.",
    ),
    "outbox_full": Explanation(
        "The box's outbox takes no more results or deferred requests.",
        "The box has been without its gateway for long, or brings more than its link carries; what was acknowledged to "
        "a caller is never dropped, so further ones are refused.",
        "Bring the box online, raise the limits of its outbox, or try later; `hybrid agent outbox` shows what waits.",
    ),
    "deadline_passed": Explanation(
        "The request's deadline passed before it could be answered.",
        "The work, the link or the queue took longer than the deadline allows.",
        "Raise deadline_s, or choose a smaller model.",
    ),
    "cancelled": Explanation(
        "The caller withdrew the request.",
        "The program cancelled it, or closed its session.",
        "Nothing needs to be done.",
    ),
    "engine_failed": Explanation(
        "The engine raised while running a model that it had loaded.",
        "An input that the model cannot digest, too little memory, or a fault of the engine.",
        "Read the engine's words in the message; run the same input with plain onnxruntime to compare.",
    ),
    "engine_crashed": Explanation(
        "The process that ran a model ended by itself, had no memory left, or did not end in time.",
        "A fault of the engine on this model, or a model that is too large for this machine.",
        "Nothing on the box: it keeps its last good version. Try the model on such a machine, or make it smaller.",
    ),
    "training_diverged": Explanation(
        "A training on this machine left the finite numbers; nothing of it was sent.",
        "The learning rate is too high for this model, or features or weights are broken.",
        "Lower the campaign's learning rate; see whether the base model's answers are finite.",
    ),
    "storage": Explanation(
        "The disk did not do what it should.",
        "A full disk, missing rights, or damaged content.",
        "Check the folder that the message names.",
    ),
    "disk_full": Explanation(
        "There is no room; nothing was half-stored.",
        "The disk, or the quota, is full.",
        "Make room in the folder that the message names, then do it again.",
    ),
    "corrupt_content": Explanation(
        "Stored or received bytes do not have the declared digest.",
        "A damaged disk, a broken transfer, or a file that was changed by hand.",
        "Transfer it again; if it was stored here, remove it and pull it anew.",
    ),
    **BELOW,
    # the command itself
    "usage": Explanation(
        "The command line does not parse.",
        "An unknown word or flag, or a value is missing.",
        "Add --help to the command to see its examples and flags.",
    ),
    "missing_extra": Explanation(
        "The command needs a package that is not installed.",
        "What is heavy comes only with an extra of the distribution.",
        "Install the extra: pip install 'hybrid-split[gateway]' (or agent, compression, tflite, gpu, demo).",
    ),
    "interrupted": Explanation(
        "The command was stopped by Ctrl-C.",
        "Somebody, or a signal, asked for it.",
        "Run it again; uploads go on where they stopped.",
    ),
    "internal": Explanation(
        "Something that nobody foresaw.",
        "A fault in this program.",
        "Run it again with -v and report the traceback.",
    ),
}
