"""What an opened model will hold in memory, estimated from its files before it is opened."""

from pathlib import Path

from hybrid.errors import ModelInvalid


def model_bytes(path: Path) -> int:
    """Bytes of a model file and of the external weights that it names; an estimate of its session's memory.

    Raises:
        ModelInvalid: the file cannot be read.
    """
    try:
        n_bytes = path.stat().st_size
        is_alone = len([file for file in path.parent.iterdir() if file.is_file()]) == 1
    except OSError as exc:
        raise ModelInvalid(f"{path} cannot be read: {exc.strerror}", path=str(path)) from exc
    return n_bytes if is_alone else n_bytes + _external_bytes(path)


def _external_bytes(path: Path) -> int:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as exc:
        raise ModelInvalid(f"{path} is no ONNX model: {exc}", path=str(path)) from exc
    lengths = (
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length" and entry.value.isdigit()
    )
    return sum(lengths)
