"""`hybrid rounds export`: a step of a campaign as one ordinary model file."""

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.rounds.commands.campaigns import CampaignId, campaign_path
from cloud_gateway.rounds.commands.telling import size
from cloud_gateway.rounds.messages import LearnedPart
from hybrid.artifact.cache import cache_dir
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json, ask_registry
from hybrid.errors import Conflict, CorruptContent, ModelUntrainable

if TYPE_CHECKING:
    from hybrid.artifact.folder import Artifact
    from hybrid.transport.registry_client import RegistryClient


def export(
    campaign: CampaignId,
    out: Annotated[Path, typer.Option("--out", help="The model; a file that is there is never overwritten.")],
    step: Annotated[int | None, typer.Option("--step", help="Which; without it the newest.")] = None,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Write a step as one ordinary ONNX file: the whole model with what was learned, and how it came to be.

    What else is made of a model (int8, pruned, cut) is made of it anew: `hybrid compress FILE --data …`; the manifest
    takes the lineage over.
    """
    if out.exists():
        raise Conflict(f"{out}: there is a file already; name another one with --out")
    asker = Asker(gateway, token)
    part, weights = _learned(asker, campaign, step)
    base = _base(gateway, token, part)
    n_bytes = _written(part, weights, base, out)
    label = f"{part.model}:{part.version}"
    data = {
        "path": out, "campaign": part.campaign, "step": part.step, "base": label, "base_digest": part.base_digest,
        "variant": part.variant, "n_bytes": n_bytes, "lineage": part.lineage,
    }  # fmt: skip
    result(data, f"{out}: step {part.step} of campaign {part.campaign}, {label} learned, {size(n_bytes)}", json=json)
    if not json:
        note(part.lineage[-2].detail)
        note(f"next: hybrid compress {out} --data SAMPLES --labels LABELS --name {part.model} --out {out.stem}-small")


def _learned(asker: Asker, campaign: str, step: int | None) -> tuple[LearnedPart, bytes]:
    """The last part, and all weights. Raises `CorruptContent`."""
    content, chosen = b"", "" if step is None else f"step={step}&"
    while True:
        part = asker.get(f"{campaign_path(campaign, 'export')}?{chosen}first={len(content)}", LearnedPart)
        chosen = f"step={part.step}&"  # a campaign that runs goes on meanwhile
        content += part.content
        if len(content) >= part.n_bytes or not part.content:
            break
    if sha256(content).hexdigest() != part.sha256:
        raise CorruptContent(f"what came of step {part.step} is not what the gateway has; ask again")
    return part, content


def _base(gateway: str, token: str | None, part: LearnedPart) -> "Artifact":
    """The version that the campaign began with. Raises `Conflict`."""
    from hybrid.transport.model_pull import pull

    async def work(client: "RegistryClient") -> "Artifact":
        return await pull(client, part.model, part.version, cache_dir())

    artifact = ask_registry(gateway, token, work)
    if artifact.digest != part.base_digest:
        raise Conflict(f"{part.model}:{part.version} is another version than campaign {part.campaign} began with")
    return artifact


def _written(part: LearnedPart, weights: bytes, base: "Artifact", out: Path) -> int:
    """Bytes of the file. Raises `ModelUntrainable`, `DiskFull`, `StorageError`."""
    import numpy as np

    from hybrid.federated.learning.head import open_head
    from hybrid.federated.learning.whole_file import whole_model, write_whole
    from hybrid.federated.lite_variant import onnx_twin

    twin = onnx_twin(base.manifest, part.variant)
    head = open_head(base.folder, base.manifest, twin.id)
    if head.layout != part.layout:
        raise ModelUntrainable(f"variant {twin.id!r} has the bytes of this head and other tensors in them")
    learned = part.layout.arrays(np.frombuffer(weights, "<f4"))
    model = whole_model(head, learned)
    write_whole(model, out, part.lineage)
    return out.stat().st_size
