"""Flags of the commands that judge by samples: what they are, how pixels become inputs, what counts as the same."""

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path, typer.Option("--data", help="Samples: an .npz or .npy of ready inputs, or a folder of these or of images.")
]
Labels = Annotated[
    Path | None, typer.Option("--labels", help="Right classes: a .csv of file and class, an .npy, or one a line.")
]
PixelsOption = Annotated[
    str | None,
    typer.Option("--pixels", help="How pixels become inputs: unit, signed, imagenet, raw, JSON, or a JSON file."),
]
Shape = Annotated[
    list[str] | None, typer.Option("--shape", help="Sizes of an image input that leaves them open: 1x3x224x224.")
]
Tolerance = Annotated[
    float, typer.Option("--tolerance", help="For fidelity: relative distance that counts as the same.", min=0.0)
]
