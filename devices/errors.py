"""What can go wrong with a machine, its engines and its emulation."""


class DeviceError(Exception):
    """Root of this package's errors: what was seen, what was wanted, what to do.

    Attributes:
        path: the file that was read, or "" for a model given as bytes.
        operator: the graph operator that the engine named, or None.
    """

    code = "device"

    def __init__(self, message: str, *, path: str = "", operator: str | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.operator = operator


class ModelFileMissing(DeviceError, FileNotFoundError):
    """The model's file, or a file of external data that it names, is not there or cannot be read."""

    code = "model_file_missing"


class ModelRejected(DeviceError, ValueError):
    """The engine read the model and found it corrupt or no valid graph."""

    code = "model_rejected"


class OperatorUnsupported(DeviceError, NotImplementedError):
    """A sound graph with an operator, opset or type that this engine has no kernel for."""

    code = "operator_unsupported"


class EmulationError(DeviceError, RuntimeError):
    """The emulated machine or link cannot do what was asked."""

    code = "emulation"


class EmulationUnavailable(EmulationError):
    """This machine, or this user on it, is not allowed what the emulation needs."""

    code = "emulation_unavailable"


class CatalogInvalid(DeviceError, ValueError):
    """A description of a machine or a link that does not say what it must."""

    code = "catalog_invalid"


class CatalogUnknown(DeviceError, LookupError):
    """No machine or link of that name is in the catalog, and no file is there either."""

    code = "catalog_unknown"


class TraceInvalid(DeviceError, ValueError):
    """A trace of a link that is no trace."""

    code = "trace_invalid"


class TraceMissing(TraceInvalid, FileNotFoundError):
    """No file of a trace at the path that was given."""

    code = "trace_missing"
