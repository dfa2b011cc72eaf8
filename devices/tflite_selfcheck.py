"""Two tiny models with known answers, run once a process: an engine that computes something else is not used.

Both are one layer, W x with W = [[3, -5, 2, 7], [-4, 1, 6, -2], [5, 5, -3, 1]]: in float, and in static int8.
"""

import base64
import zlib
from typing import Any, Final

import numpy as np

_FLOAT: Final = (
    "eNpNULENwjAQPIiFEsVCLlJQZAgk6HFFRckCSBQgAS3QpWQABsgIjJBR2MTc2x/kj96+f9/5L24B7Le7FWLM0cDBoiQ2rMAKODFfE6DgPhU+00"
    "b+jEzDVdjAMva8B/pBAPBldsTdBhiIQdz7lF77Kd4hBI7g/ORj8XeSfEi/ZR7Vz0VnXg/nmyhybRN9W9SZllE6xSZ+SSP/U6gHqYP6mGoNPZeZ"
    "a535IafUNxDOM+MXse/imXi3GW/c79lcE/vpxaH8/O5Hdvfo2ammzjRVslr9AOtFIIA="
)
_INT8: Final = (
    "eNqNkTsOwjAMQN0mhVatoBIdGHoEBiQYi8SAmDohLoDEABKwAvfgCByGAe6DxCfYjgsRC6RyHf+e4yQHgOm47AGvBmSQQgIh7jVagBbAEOXqAS"
    "jUPkoHJeH8GmZq/FO29ambX797tWcQPDzKOBhjaJMJv/3uYPnkz1HmKAuUlbDWs+WGKtzajM+TQOzU4gpT2Wv+bA2dU9k420bO4YsNEj9Jb6qb"
    "YA6xujYckR6hLxR+VQcO93IuB6T3Dls5s7a+Zu1/OMw//snfOjNp562adAHCp3sshF3we9hXonjC+nefnTNHdZepsGLOtqxI+rwAsUMpxw=="
)

_GIVEN: Final = (10, -20, 30, 5)
_WANTED: Final = (("float32", _FLOAT, (225, 110, -135), 0), ("int8", _INT8, (11, 6, -7), 1))
"""Datatype, model, answers, and how far an answer may be: int8 may round either way."""


def fault(module: Any) -> str:
    """What this engine computes wrongly; empty where both answers are right.

    Args:
        module: of its interpreter.
    """
    for dtype, model, wanted, slack in _WANTED:
        try:
            interpreter = module.Interpreter(model_content=zlib.decompress(base64.b64decode(model)))
            interpreter.allocate_tensors()
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.array([_GIVEN], dtype))
            interpreter.invoke()
            found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
        except Exception as exc:  # noqa: BLE001  (whatever a broken build raises)
            return f"it does not run a {dtype} layer: {exc}"
        if np.abs(found.astype(np.float64) - wanted).max() > slack:
            return f"a {dtype} layer answers {found.tolist()} where {list(wanted)} is right"
    return ""
