"""The examples run as they are shown, and reach what they are shown for."""

import ast
import io
import runpy
import sys
import tokenize
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentseg.images import read_image, read_mask

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "examples" / "latent_to_mask.py"
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def lines_of_code(source: str) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    spoken = {
        line
        for token in tokens
        if token.type not in LAYOUT | {tokenize.ENDMARKER}
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            spoken -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(spoken)


def mean_iou(masks: Tensor, truths: Tensor) -> float:
    """Mean over images of the IoU of their foregrounds, (B, H, W) bool."""
    both, either = (masks & truths).sum(dim=(1, 2)), (masks | truths).sum(dim=(1, 2))
    return float((both / either).mean())


def test_the_page_of_the_three_ideas_has_forty_lines_of_code():
    assert lines_of_code(PAGE.read_text()) <= 40


@pytest.mark.slow
def test_the_three_ideas_find_what_a_person_has_painted(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [PAGE.name, str(tmp_path / "page.png")])
    made = runpy.run_path(str(PAGE))
    folder = ROOT / "examples" / "street96" / "painted" / "masks"
    painted = [read_mask(folder / f"{seed:08}.png") for seed in made["SEEDS"].tolist()]
    truths = torch.stack([torch.from_numpy(mask) for mask in painted])[1:]
    everything = mean_iou(torch.ones_like(truths) > 0, truths > 0)

    # The first image has taught the heads; a mask of everything reaches 0.2.
    assert everything < 0.25
    assert mean_iou(made["by_directions"][1:] > 0, truths > 0) > 0.6
    assert mean_iou(made["by_style_mixing"][1:] > 0, truths > 0) > 0.4
    assert mean_iou(made["by_painting"][1:] > 0, truths > 0) > 0.6
    assert float((made["by_painting"][1:] == truths).double().mean()) > 0.8

    picture = read_image(tmp_path / "page.png")
    assert picture.shape == (4 * 96, 10 * 64, 3)
    assert all(len(row.unique()) > 1 for row in torch.from_numpy(picture).split(96))
