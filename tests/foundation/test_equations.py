"""Each published equation stands at its line of the source, and in docs/methods.md beside it."""

import re
from pathlib import Path

import pytest

from latentseg.inversion.search import Inversion
from latentseg.labelers import losses
from latentseg.labelers.direction_search import find_direction
from latentseg.labelers.directions import foreground
from latentseg.labelers.features import Hypercolumns, hypercolumn
from latentseg.labelers.variants import descriptors

ROOT = Path(__file__).parents[2]
METHODS = (ROOT / "docs" / "methods.md").read_text()
TEXTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py")])
OTHER_SPELLING = re.compile(r"\beqs?\. ?\d|\bEqs\. ?\d|\bEq\.\d|\bEq \d|\bequations? \(?\d")
MELAS_KYRIAZI, KARRAS = "Melas-Kyriazi et al. 2021", "Karras et al. 2020, appendix D"


@pytest.mark.parametrize(
    ("implementation", "source", "in_methods"),
    [
        (find_direction, f"{MELAS_KYRIAZI}, Eq. 1", r"loss\(v\) = .*\(paper, Eq\. 1\)"),
        (foreground, f"{MELAS_KYRIAZI}, Eq. 2", r"mask = .*v_light.*v_dark.*\(paper, Eq\. 2\)"),
        (foreground, "Eq. 3", r"mask = .*v_light.*G\(z\).*\(paper, Eq\. 3\)"),
        *[
            (getattr(pair, term), f"{term.capitalize()} term of {MELAS_KYRIAZI}", rf"\| {term} \|")
            for pair in losses.LOSSES.values()
            for term in ("contrast", "structure")
        ],
        (descriptors, "Feng et al. 2023, step 3", r"2 C \(1 - correlation\)"),
        (descriptors, "2 C (1 - correlation)", r"2 C \(1 - correlation\)"),
        (hypercolumn, "Tritrong et al. 2021, section 3", r"describe each pixel \(a hypercolumn\)"),
        (Hypercolumns, "Tritrong et al. 2021, section 3", r"each layer is projected by its slice"),
        (Inversion.find, "Abdal et al. 2019, Eq. 1, for w+", r"w\+.*Abdal et al\. 2019, Eq\. 1"),
        (Inversion.find, KARRAS, r"noise regularization of Karras et al\. 2020"),
    ],
)
def test_equation_is_named_at_its_line_and_in_the_methods(implementation, source, in_methods):
    assert source in " ".join(implementation.__doc__.split())
    assert re.search(in_methods, METHODS)


@pytest.mark.parametrize("name", re.findall(r"`(\w+/[\w/]+\.py)`", METHODS))
def test_code_that_the_methods_name_exists(name: str) -> None:
    assert (ROOT / "src" / "latentseg" / name).exists() or list(
        ROOT.glob(f"src/latentseg/*/{name}")
    )


def test_equations_have_one_spelling() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {hit[0]}"
        for path in TEXTS
        for hit in OTHER_SPELLING.finditer(path.read_text())
    ]
    assert not found
