"""Where latents and classes come from."""

import pytest
import torch

from latentseg.errors import InputError
from latentseg.generators.priors import Prior


def test_row_depends_on_its_seed_only() -> None:
    prior = Prior((3,), n_classes=4, limit=2.0)
    z, labels = prior.draw(torch.tensor([5, 9, 5]))
    assert labels is not None
    assert torch.equal(z[0], z[2])
    assert labels[0] == labels[2]
    alone, _ = prior.draw(torch.tensor([9]))
    assert torch.equal(alone[0], z[1])


@pytest.mark.parametrize("limit", [None, 2.0, 0.5])
def test_spread_is_the_deviation_of_what_is_drawn(limit: float | None) -> None:
    prior = Prior((2,), scale=0.4, limit=limit)
    z, labels = prior.draw(torch.arange(4000))
    assert labels is None
    torch.testing.assert_close(prior.spread, z.std(dim=0), rtol=0.05, atol=0)
    if limit is not None:
        assert z.abs().max() <= 0.4 * limit


def test_truncated_normal_equals_that_of_scipy() -> None:
    import scipy.stats

    z, _ = Prior((1,), limit=1.5).draw(torch.arange(4000))
    result = scipy.stats.kstest(z[:, 0].numpy(), scipy.stats.truncnorm(-1.5, 1.5).cdf)
    assert result.pvalue > 0.01


def test_bank_is_drawn_row_by_row_and_noise_widens_it() -> None:
    bank = torch.tensor([[0.0, 1.0, 7.0], [2.0, 5.0, 7.0]])
    z, _ = Prior((3,), bank=bank).draw(torch.arange(50))
    assert {tuple(row) for row in z.tolist()} == {(0.0, 1.0, 7.0), (2.0, 5.0, 7.0)}
    noisy = Prior((3,), bank=bank, bank_noise=0.5)
    drawn, _ = noisy.draw(torch.arange(4000))
    torch.testing.assert_close(noisy.spread[:2], drawn.std(dim=0)[:2], rtol=0.05, atol=0)
    assert noisy.spread[2] > 0  # a step moves the coordinate that never changes, too


def test_classes_are_drawn_equally_or_by_weight_or_only_some() -> None:
    seeds = torch.arange(3000)

    def shares(**options: object) -> torch.Tensor:
        _, labels = Prior((1,), n_classes=4, **options).draw(seeds)  # pyright: ignore[reportArgumentType]
        assert labels is not None
        return torch.bincount(labels, minlength=4) / len(seeds)

    torch.testing.assert_close(shares(), torch.full((4,), 0.25), atol=0.03, rtol=0)
    weighted = shares(class_weights=(1.0, 0.0, 2.0, 1.0))
    torch.testing.assert_close(weighted, torch.tensor([0.25, 0, 0.5, 0.25]), atol=0.03, rtol=0)
    assert shares(classes=(3, 1))[[0, 2]].sum() == 0
    both = shares(class_weights=(1.0, 0.0, 2.0, 1.0), classes=(2, 3))
    torch.testing.assert_close(both, torch.tensor([0, 0, 2 / 3, 1 / 3]), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "greater than 0"),
        ({"limit": -1.0}, "greater than 0"),
        ({"bank": torch.zeros(4, 5)}, r"expected finite numbers in \(N, 3\)"),
        ({"bank": torch.full((4, 3), torch.nan)}, "finite"),
        ({"bank": torch.zeros(0, 3)}, "finite"),
        ({"class_weights": (1.0,)}, "1 class weights for 2 classes"),
        ({"classes": (2,)}, "0 to 1"),
        ({"class_weights": (0.0, 0.0)}, "weights"),
        ({"class_weights": (-1.0, 2.0)}, "none below"),
        ({"class_weights": (float("nan"), 2.0)}, "none below"),
        ({"class_weights": (1.0, 0.0), "classes": (1,)}, "weights"),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prior((3,), n_classes=2, **options)  # pyright: ignore[reportArgumentType]
