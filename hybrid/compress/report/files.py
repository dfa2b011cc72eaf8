"""The report in its two files beside the artifact: written last, and by the next call where a kill left them out."""

from pathlib import Path

import msgspec

from hybrid.artifact.attachments import attachments_in
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.folder import Artifact, open_folder
from hybrid.artifact.names import MANIFEST_NAME
from hybrid.compress.job import Job
from hybrid.compress.report.page import page
from hybrid.compress.report.report import Report, wanted_of


def report_paths(out: Path) -> tuple[Path, Path]:
    """Where the report's JSON and its page lie."""
    return out.with_name(f"{out.name}.report.json"), out.with_name(f"{out.name}.report.html")


def write_report(report: Report, out: Path) -> tuple[Path, Path]:
    """Writes both forms of the report; raises `DiskFull`, `StorageError`."""
    as_json, as_page = report_paths(out)
    write_atomically(as_json, report.content, is_shown=True)
    write_atomically(as_page, page(report).encode(), is_shown=True)
    return as_json, as_page


def untold(job: Job) -> tuple[Artifact, Report] | None:
    """An artifact that this job has made, with the report in it, of which no report lies beside it.

    A call that was killed between the two leaves it so; the report is whole, and wants only to be written.
    """
    if not (job.out / MANIFEST_NAME).is_file() or any(path.exists() for path in report_paths(job.out)):
        return None
    artifact = open_folder(job.out)
    for attached in attachments_in(job.out, artifact.manifest.model_digest, "report"):
        try:
            report = msgspec.json.decode(attached.content, type=Report)
        except msgspec.MsgspecError:
            continue
        if report.wanted == wanted_of(job):
            return artifact, report
    return None
