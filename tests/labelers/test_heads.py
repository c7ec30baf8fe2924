import pytest
import torch
from torch import nn

from latentseg.errors import InputError
from latentseg.labelers.features import Hypercolumns
from latentseg.labelers.heads import (
    HEADS,
    build_heads,
    class_probabilities,
    entropy,
    jensen_shannon,
    rest_in_rows,
)
from tests.labelers.test_features import LATENTS, Maps, whole


class SingleMaps(Maps):
    """The maps in single precision."""

    dtype = torch.float32


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_cnn_when_as_official_then_it_has_its_parameters_and_sees_61_pixels():
    (head,) = build_heads("cnn", 5056, 10).heads
    assert n_parameters(head) == 927_082
    assert 2 * head.halo + 1 == 61
    assert head.is_projecting


@pytest.mark.parametrize(("name", "seen"), [("cnn-s", 15), ("cnn-m", 31), ("cnn-l", 63)])
def test_cnn_when_of_another_size_then_it_sees_as_far_as_published(name, seen):
    (head,) = build_heads(name, 6, 4).heads
    assert 2 * head.halo + 1 == seen
    assert not head.is_projecting


def test_heads_when_built_then_their_parameters_are_as_published():
    counts = {name: n_parameters(build_heads(name, 20, 4).members[0]) for name in HEADS}
    assert counts["mlp"] == 20 * 2000 + 2000 + 2000 * 200 + 200 + 200 * 4 + 4
    assert counts["ensemble"] == 20 * 128 + 128 + 256 + 128 * 32 + 32 + 64 + 32 * 4 + 4
    assert counts["cnn-s"] == 9 * (20 * 128 + 128 * 64 + 64 * 64 + 64 * 32 + 32 * 4) + 292
    assert len(build_heads("ensemble", 20, 4).heads) == 10
    for name, kind in HEADS.items():
        assert build_heads(name, 20, 4).heads[0].first.kernel_size == (kind.first, kind.first)
    assert build_heads("ensemble", 20, 40).heads[0].first.out_channels == 256


@pytest.mark.parametrize("name", HEADS)
def test_head_when_streamed_then_it_equals_itself_on_the_concatenation(name):
    columns = Hypercolumns(Maps())
    heads = build_heads(name, columns.n_channels, 5, seed=3).double().eval()
    with torch.no_grad():
        expected = torch.stack([head(whole(columns)).softmax(dim=1) for head in heads.heads])
    found = class_probabilities(heads, columns, LATENTS)
    assert found.shape == (HEADS[name].members, 2, 5, 16, 24)
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", HEADS)
def test_head_when_in_row_blocks_then_it_equals_the_whole(name):
    columns = Hypercolumns(SingleMaps(), memory=3000)
    heads = build_heads(name, columns.n_channels, 5, seed=3)
    expected = class_probabilities(heads, Hypercolumns(SingleMaps()), LATENTS)
    found = class_probabilities(heads, columns, LATENTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_rest_when_in_row_blocks_then_few_rows_are_seen_at_once():
    (head,) = build_heads("cnn", 6, 4).heads
    x = torch.randn(1, 128, 160, 8, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    for layer in head.layers[1:]:
        layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[2]))
    found = rest_in_rows(head, x, memory=4 * 4 * 128 * 8 * 40)
    with torch.no_grad():
        torch.testing.assert_close(found, head.rest(x), rtol=0, atol=1e-5)
    in_blocks = seen[: -len(head.layers[1:])]
    assert max(in_blocks[:-1]) <= 88
    assert len(in_blocks) > 10


def test_heads_when_built_again_then_weights_depend_on_seed_and_member_only():
    state = torch.random.get_rng_state()
    one, same, other = (build_heads("ensemble", 6, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [ensemble.heads[2].first.weight for ensemble in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], one.heads[3].first.weight)


def test_jensen_shannon_when_members_agree_then_it_is_0_and_when_they_contradict_then_1():
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, None, :, None, None]
    assert float(jensen_shannon(sure)) == pytest.approx(1)
    assert float(jensen_shannon(sure[:1].expand(2, -1, -1, -1, -1))) == pytest.approx(0)
    assert float(entropy(torch.full((1, 4, 1, 1), 0.25))) == pytest.approx(1)


@pytest.mark.parametrize(("name", "n_classes"), [("cnn-xl", 4), ("mlp", 1)])
def test_heads_when_impossible_then_they_are_refused(name, n_classes):
    with pytest.raises(InputError, match=r"expected one of|at least 2"):
        build_heads(name, 6, n_classes)
