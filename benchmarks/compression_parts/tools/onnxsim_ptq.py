"""Post-training quantization by onnxsim: MODEL.onnx CALIBRATION.npz OUT.onnx [full]."""

import sys

import numpy as np
import onnx
import onnxsim

model, samples, out, *full = sys.argv[1:]
(name, arrays), *_ = np.load(samples).items()
feeds = [{name: array[None]} for array in arrays]
onnx.save(onnxsim.quantize_static(onnx.load(model), calibration_data=feeds, full_graph=bool(full)), out)
