"""One model in two places: the device computes the head, the gateway the tail, and the outputs are the whole model's.

hybrid gateway serve                                   # in another terminal; prints where it serves
export HYBRID_GATEWAY=http://127.0.0.1:8700 HYBRID_TOKEN=$(cat hybrid-gateway/admin.token)
hybrid models push "$(python examples/03_forced_split.py --path)" --name angle
python examples/03_forced_split.py
"""

import sys
from importlib.metadata import PackageNotFoundError, files

import numpy as np

import hybrid

try:
    model = next(str(file.locate()) for file in files("rapidocr") or [] if file.name.endswith("v2.0_cls_mobile.onnx"))
except PackageNotFoundError:
    sys.exit("this example takes a trained model from another package: pip install 'hybrid-split[demo]'")
if "--path" in sys.argv:
    sys.exit(print(model))

image = np.random.default_rng(1).standard_normal((1, 3, 48, 192)).astype(np.float32)

with hybrid.InferenceSession(model, gateway=None) as alone:
    [whole] = alone.run(None, {"x": image})

# fallback=False: where no split can be had, say so instead of computing here. `split:CUT_ID` forces one cut.
options = hybrid.Options(placement="split", fallback=False)
with hybrid.InferenceSession(model, options=options) as session:
    [joined] = session.run(None, {"x": image})
    report = session.report
    print(f"cut {report.cut}, codec {report.codec}: {report.bytes_up} bytes up for {image.nbytes} bytes of input")
    print(f"head {1000 * report.head_s:.2f} ms, tail {1000 * report.tail_s:.2f} ms")
    print(f"largest difference from the whole model: {np.abs(joined - whole).max():.2e}")
