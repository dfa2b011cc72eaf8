"""The error codes of the floors below the library: `compression` and `devices` own their errors."""

from typing import Final

from hybrid.cli.explanation import Explanation

BELOW: Final[dict[str, Explanation]] = {
    # tensors to bytes
    "compression": Explanation(
        "A tensor could not be made into bytes, or bytes into a tensor.",
        "The message says what was seen.",
        "Choose another codec, or `none`.",
    ),
    "unknown_datatype": Explanation(
        "A datatype that the inference protocol does not name.",
        "Complex numbers, dates and records do not travel.",
        "Convert the array to one of the datatypes that the message lists.",
    ),
    "unknown_codec": Explanation(
        "There is no codec of this name.",
        "A typing error, or the peer is newer than this side.",
        "Use one of the names that the message lists; upgrade the older side.",
    ),
    "not_encodable": Explanation(
        "This codec cannot carry this tensor.",
        "Each codec wants certain datatypes and shapes: jpeg wants images, fp16 wants floats.",
        "Choose `auto`, `lossless` or `none`.",
    ),
    "corrupt_payload": Explanation(
        "Encoded bytes do not decode to exactly the declared tensor.",
        "The payload was damaged or declared wrongly, or somebody tries to exhaust memory.",
        "Upgrade both sides; report it with the message if it remains.",
    ),
    "not_quantizable": Explanation(
        "A model, or a part of one, does not fit this way of quantizing.",
        "An operator, a datatype or the samples do not allow it; the message says which.",
        "Nothing, in `hybrid compress`: the candidate is left out. Elsewhere, another recipe, or nodes kept float.",
    ),
    "not_prunable": Explanation(
        "No channel can be taken from the model without guessing what depends on it.",
        "Its operators cannot be followed, or inputs and outputs fix all of its widths; the message names them.",
        "Give the torch module by --train-script, or leave pruning out: quantization goes on without it.",
    ),
    "training_needed": Explanation(
        "Something was asked for that only training can do.",
        "No training set was given, or torch is not installed.",
        "Give --train-script, and install the extra `compression`.",
    ),
    "not_exportable": Explanation(
        "A torch module cannot be written in the wanted form, or answers otherwise there.",
        "An operator has no counterpart in that form, or a library of the export is not installed.",
        "Read the reason; replace that operator in the module, or install the extra that the message names.",
    ),
    "not_measurable": Explanation(
        "A device did not time what it was given.",
        "It cannot be reached, has no room for the model, or its engine refuses it.",
        "Check the device's URL and token, or name a machine of `hybrid devices`, or `this`.",
    ),
    "training_set_invalid": Explanation(
        "What the training script gives is no training set for this model.",
        "The function is not there or failed, or module, inputs and labels do not fit one another.",
        "Mend the script as the message says; docs/training.md shows one that works.",
    ),
    "not_trainable": Explanation(
        "The module, or the part of a model that was named, cannot be trained so.",
        "It has no free parameter or nothing to learn from; or no head with float weights stands on the tensor.",
        "Do what the message says; a module wants labels or a teacher, and parameters that require gradients; "
        "`--head auto` finds a tensor by itself.",
    ),
    # machines, their engines and their emulation
    "device": Explanation(
        "Something is wrong with this machine or one of its engines.",
        "The message says what was seen.",
        "Read the message; run again with -v for the traceback.",
    ),
    "model_file_missing": Explanation(
        "The model's file, or a file of external data that it names, is not there or cannot be read.",
        "A wrong path, weights that were left behind when the model was copied, or missing rights.",
        "Copy the external data beside the model, under the names that the message gives.",
    ),
    "model_rejected": Explanation(
        "The engine read the model and found it corrupt or no valid graph.",
        "A download broke off, or the exporter wrote an invalid graph.",
        "Transfer the file again, or export the model again.",
    ),
    "operator_unsupported": Explanation(
        "A sound graph with an operator, opset or type that this engine has no kernel for.",
        "The model is newer than the engine, or a custom operator's library is not registered.",
        "Upgrade onnxruntime, export with an older opset, or register the operator's library.",
    ),
    "emulation": Explanation(
        "The emulated machine or link cannot do what was asked.",
        "A rate, a delay or a slowdown is out of range, or the emulation has ended already.",
        "Read the message for the value that it wants.",
    ),
    "emulation_unavailable": Explanation(
        "This machine, or this user on it, is not allowed what the emulation needs.",
        "Real packets need /dev/net/tun and network namespaces (of root or of users), a quota needs control groups.",
        "Run as root, let a container have /dev/net/tun and NET_ADMIN, or take --kind proxy and --slowdown pacing.",
    ),
    "catalog_invalid": Explanation(
        "A description of a machine or a link does not say what it must.",
        "A field of the TOML file is missing, has another type, or a value that no machine has.",
        "Mend the field that the message names; `hybrid devices show NAME --json` shows a sound one.",
    ),
    "catalog_unknown": Explanation(
        "No machine or link of that name is known.",
        "The catalog that comes with the package does not hold it, and no file has that path.",
        "See `hybrid devices` for the names, or give the path of a TOML file of your own.",
    ),
    "trace_invalid": Explanation(
        "The trace of a link cannot be used.",
        "Times must begin at 0 and rise, rates and losses are numbers from 0 on, and columns have one length.",
        "Mend the file; the form is in docs/lab.md.",
    ),
    "trace_missing": Explanation(
        "There is no file at the path of the trace.",
        "The path is mistyped, or relative to another folder.",
        "Check the path; `draw` draws a trace from the link's statistics; the form of a file is in docs/lab.md.",
    ),
}
