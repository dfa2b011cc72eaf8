"""Answers and seconds of TensorFlow Lite files in whichever runtime is installed: IMAGES.npz OUT.npz N_RUNS MODEL..."""

import sys
import time
from typing import Any

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter


class Opened:
    """A file in one thread; quantizes what it is given where the file wants that."""

    def __init__(self, path: str) -> None:
        self.interpreter = Interpreter(path, num_threads=1)
        self.interpreter.allocate_tensors()
        self.taken = self.interpreter.get_input_details()[0]
        self.given = self.interpreter.get_output_details()[0]

    def scores(self, image: np.ndarray) -> np.ndarray:
        """One image to its scores, as numbers of whatever the file gives."""
        array, kind = image[None], self.taken["dtype"]
        if kind != np.float32:
            scale, zero = self.taken["quantization"]
            limits = np.iinfo(kind)
            array = np.clip(np.round(array / scale) + zero, limits.min, limits.max).astype(kind)
        self.interpreter.set_tensor(self.taken["index"], array.reshape(self.taken["shape"]))
        self.interpreter.invoke()
        scores: np.ndarray = self.interpreter.get_tensor(self.given["index"])[0].astype(np.float32)
        return scores


images, out, n_runs, *models = sys.argv[1:]
arrays = next(iter(np.load(images).values()))
opened = {model: Opened(model) for model in models}
found: dict[str, Any] = {
    f"scores:{model}": np.stack([each.scores(array) for array in arrays]) for model, each in opened.items()
}
seconds: dict[str, list[float]] = {model: [] for model in models}
for _ in range(int(n_runs)):
    for model, each in opened.items():
        began = time.perf_counter()
        each.scores(arrays[0])
        seconds[model].append(time.perf_counter() - began)
found |= {f"seconds:{model}": np.array(each) for model, each in seconds.items()}
np.savez(out, **found)
