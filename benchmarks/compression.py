"""What `hybrid compress` and its rooms gain beside other tools: one record a claim.

python -m benchmarks.compression [shapes] [photos] [digits] [fashion] [tflite]    # all by default; the last three train
"""

import argparse
import sys
from typing import Final

from benchmarks.compression_parts import digits, fashion, photos, shapes, tflite
from benchmarks.report import publish

PARTS: Final = {
    "shapes": shapes.measured,
    "photos": photos.measured,
    "digits": digits.measured,
    "fashion": fashion.measured,
    "tflite": tflite.measured,
}


def main() -> int:
    """Measures the parts named; 1 where a bar was missed."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("parts", nargs="*", choices=[[], *PARTS], help="of the benchmark")
    names = asked.parse_args().parts or list(PARTS)
    return max([publish(PARTS[name]()) for name in names])


if __name__ == "__main__":
    sys.exit(main())
