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
