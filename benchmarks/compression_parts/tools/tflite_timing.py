"""Answers and seconds of TensorFlow Lite files in whichever runtime is installed: IMAGES.npz OUT.npz N_RUNS MODEL..."""

import sys
import time

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter

images, out, n_runs, *models = sys.argv[1:]
arrays = np.load(images)["x"]


def quantized(array, detail):
    scale, zero = detail["quantization"]
    if detail["dtype"] == np.float32:
        return array
    return np.clip(
        np.round(array / scale) + zero, *((-128, 127) if detail["dtype"] == np.int8 else (-32768, 32767))
    ).astype(detail["dtype"])


opened = []
for model in models:
    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    opened.append((interpreter, interpreter.get_input_details()[0], interpreter.get_output_details()[0]))

found = {}
for model, (interpreter, taken, given) in zip(models, opened):
    scores = []
    for array in arrays:
        interpreter.set_tensor(taken["index"], quantized(array[None], taken).reshape(taken["shape"]))
        interpreter.invoke()
        scores.append(interpreter.get_tensor(given["index"])[0].astype(np.float32))
    found[f"scores:{model}"] = np.stack(scores)
seconds = {model: [] for model in models}
for _ in range(int(n_runs)):
    for model, (interpreter, taken, given) in zip(models, opened):
        began = time.perf_counter()
        interpreter.set_tensor(taken["index"], quantized(arrays[:1], taken).reshape(taken["shape"]))
        interpreter.invoke()
        interpreter.get_tensor(given["index"])
        seconds[model].append(time.perf_counter() - began)
for model, each in seconds.items():
    found[f"seconds:{model}"] = np.array(each)
np.savez(out, **found)
