"""What can go wrong between a tensor and its bytes."""


class CompressionError(Exception):
    """Root of this package's errors: what was seen, what was wanted, what to do."""

    code = "compression"


class UnknownDatatype(CompressionError, ValueError):
    """A datatype that the inference protocol does not name, or that numpy cannot hold."""

    code = "unknown_datatype"


class UnknownCodec(CompressionError, ValueError):
    """A codec name that the catalog does not hold."""

    code = "unknown_codec"


class NotEncodable(CompressionError, ValueError):
    """This codec cannot carry this tensor (its dtype or shape); choose another codec."""

    code = "not_encodable"


class CorruptPayload(CompressionError, ValueError):
    """Encoded bytes that do not decode to exactly the declared tensor."""

    code = "corrupt_payload"


class NotQuantizable(CompressionError, ValueError):
    """A model, or a part of one, that this way of quantizing does not fit."""

    code = "not_quantizable"


class NotPrunable(CompressionError, ValueError):
    """A model from which no channel can be taken without guessing what depends on it."""

    code = "not_prunable"


class NothingPrunable(NotPrunable):
    """A model from which no channel can be taken at any ratio: another one need not be tried."""


class TrainingNeeded(CompressionError):
    """Something that only training can do was asked for, and no training set or no torch is there."""

    code = "training_needed"


class NotExportable(CompressionError, ValueError):
    """A torch module that cannot be written in the wanted form, or whose written form answers otherwise."""

    code = "not_exportable"


class NotMeasurable(CompressionError):
    """A device that did not time what it was given: unreachable, too small, or it refused."""

    code = "not_measurable"


class InvalidTrainingSet(CompressionError, ValueError):
    """A training script, or what it returned, that cannot be trained with: the message names the part at fault."""

    code = "training_set_invalid"


class NotTrainable(CompressionError, ValueError):
    """A model, or a part of one, that cannot be trained, or not by itself."""

    code = "not_trainable"
