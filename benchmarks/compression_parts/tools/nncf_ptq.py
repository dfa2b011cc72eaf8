"""Post-training quantization by NNCF: MODEL.onnx CALIBRATION.npz OUT.onnx."""

import sys

import nncf
import numpy as np
import onnx

model, samples, out = sys.argv[1:4]
(name, arrays), *_ = np.load(samples).items()
given = nncf.Dataset([{name: array[None]} for array in arrays])
onnx.save(nncf.quantize(onnx.load(model), given, subset_size=len(arrays)), out)
