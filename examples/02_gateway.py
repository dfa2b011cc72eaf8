"""The same program with a gateway: every request goes where its answer comes soonest, and one always comes.

hybrid gateway serve                                   # in another terminal; prints where it serves
export HYBRID_GATEWAY=http://127.0.0.1:8700 HYBRID_TOKEN=$(cat hybrid-gateway/admin.token)
HYBRID_PACE=8 python examples/02_gateway.py            # as a device eight times slower than this machine
"""

import sys
import time
from importlib.metadata import PackageNotFoundError, files

import numpy as np
import onnxruntime

import hybrid

try:
    model = next(str(file.locate()) for file in files("rapidocr") or [] if file.name == "PP-OCRv6_det_small.onnx")
except PackageNotFoundError:
    sys.exit("this example takes a trained model from another package: pip install 'hybrid-split[demo]'")
# A picture of stripes, as a camera would give it: bytes, then normalised.
picture = np.tile(np.arange(320, dtype=np.uint8) % 7 * 36, (160, 1))
image = np.stack([(picture / 255 - 0.5) / 0.5] * 3)[np.newaxis].astype(np.float32)

one_thread = onnxruntime.SessionOptions()
one_thread.intra_op_num_threads = 1  # as on a small board; HYBRID_PACE counts this thread's time

# push_model: the administrator's token may also publish, so a model that the gateway lacks is uploaded on the way.
with hybrid.InferenceSession(model, one_thread, options=hybrid.Options(push_model=True)) as session:
    for number in range(20):
        [chances] = session.run(None, {"x": image})
        report = session.report
        why = f", since {report.fallback}" if report.fallback else ""
        print(f"{number:2}  {report.placement:8} {1000 * report.total_s:7.1f} ms  {report.bytes_up:7} bytes up{why}")
        time.sleep(0.5)
    for candidate in session.explain():
        mark = "->" if candidate.chosen else "  "
        print(f"{mark} {candidate.placement:8} {candidate.cut or '-':16} {candidate.codec:9} {candidate.reason}")
