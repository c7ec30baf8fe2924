"""What is said about the package and its dependencies agrees with pyproject.toml."""

import re
import runpy
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())


def normalized(requirement: str) -> str:
    """The name in a requirement, as locks write it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement)[0]).lower()


def test_the_lock_is_that_of_the_dependencies():
    own = next(package for package in LOCK["package"] if package["name"] == "latentseg")
    locked = {each["name"] for each in own["dependencies"]}
    assert locked == {normalized(each) for each in PROJECT["dependencies"]}, "run `make lock`"
    extras = {
        extra: {normalized(each) for each in wanted} - {"latentseg"}
        for extra, wanted in PROJECT["optional-dependencies"].items()
    }
    for extra, names in extras.items():
        found = {each["name"] for each in own["optional-dependencies"][extra]}
        assert names <= found, f"extra {extra}: run `make lock`"


def test_the_lock_names_public_addresses_and_a_hash_of_every_file():
    text = (ROOT / "uv.lock").read_text()
    hosts = set(re.findall(r'"[a-z+]+://([^/"]+)', text))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    files = [
        file
        for package in LOCK["package"]
        for file in [*package.get("wheels", []), *filter(None, [package.get("sdist")])]
    ]
    assert files
    assert all(file["hash"].startswith("sha256:") for file in files)


def test_the_licenses_of_all_that_users_may_install_are_listed():
    page = (ROOT / "docs" / "licenses.md").read_text()
    listed = re.findall(r"^\| ([\w.-]+) \| (.+) \|$", page, re.MULTILINE)[1:]
    needed = runpy.run_path(str(ROOT / ".ci" / "licenses.py"))["needed"](LOCK)
    assert [name for name, _ in listed] == needed, "run `make licenses`"
    assert not re.search("AGPL|Affero", "".join(license for _, license in listed))


def test_workflows_run_on_three_systems_and_call_targets_that_exist():
    workflows = [yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/workflows/*.yml")]
    systems = {
        system
        for workflow in workflows
        for job in workflow["jobs"].values()
        for system in job.get("strategy", {}).get("matrix", {}).get("os", [])
    }
    assert systems == {"ubuntu-latest", "macos-latest", "windows-latest"}
    steps = [s for w in workflows for job in w["jobs"].values() for s in job["steps"]]
    called = {target for s in steps for target in re.findall(r"make ([\w-]+)", s.get("run", ""))}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert called
    assert called <= targets


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "src" / "latentseg" / "py.typed").is_file()
