"""Post-training quantization by AIMET, as QDQ: MODEL.onnx CALIBRATION.npz OUT.onnx."""

import sys

import numpy as np
import onnx
from aimet_onnx.quantsim import QuantizationSimModel

model, samples, out = sys.argv[1:4]
(name, arrays), *_ = np.load(samples).items()
feeds = [{name: array[None]} for array in arrays]
simulated = QuantizationSimModel(onnx.load(model), dummy_input=feeds[0], providers=["CPUExecutionProvider"])
simulated.compute_encodings(feeds)
onnx.save(simulated.to_onnx_qdq(prequantize_constants=True), out)
