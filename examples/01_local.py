"""hybrid in place of onnxruntime: the same call, the same outputs, no gateway.

python examples/01_local.py
"""

import sys
from importlib.metadata import PackageNotFoundError, files

import numpy as np

import hybrid

# A trained text detector from rapidocr's wheel (extra `demo`); any .onnx file will do.
try:
    model = next(str(file.locate()) for file in files("rapidocr") or [] if file.name == "PP-OCRv6_det_small.onnx")
except PackageNotFoundError:
    sys.exit("this example takes a trained model from another package: pip install 'hybrid-split[demo]'")
image = np.full((1, 3, 160, 320), 0.5, np.float32)

with hybrid.InferenceSession(model, gateway=None) as session:
    [chances] = session.run(None, {"x": image})
    report = session.report
    print(f"output {chances.shape}, computed {report.placement} in {1000 * report.total_s:.1f} ms")
