"""The lossless codecs that are worth a try for what crosses."""

from collections.abc import Mapping

import numpy as np


def exact_codecs(crossing: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The lossless codecs for these tensors: pictures have one more, smaller and slower, for slow links."""
    from compression.codecs import catalog
    from compression.codecs.lossless_picture import LosslessWebpCodec

    pictures = catalog.CODECS.get("lossless-webp")
    if isinstance(pictures, LosslessWebpCodec) and any(map(pictures.carries, crossing.values())):
        return "none", "lossless", pictures.name
    return "none", "lossless"
