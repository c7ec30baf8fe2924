"""From latents to masks: the ideas of three papers on one page, in plain torch.

Only the ideas are here: no filters, no choice of settings, no resuming. The library has all of
those, and computes what the papers print where this page only resembles it. Run it in the root of
a clone; it takes some ten seconds and writes a picture:

    python examples/latent_to_mask.py latent_to_mask.png
"""

import sys

import torch
from torch.nn.functional import interpolate, normalize, one_hot

import latentseg as ls
from latentseg.images import class_colours, read_mask, to_pixels, write_image

# Ten images, all of which a person has painted; the first painting alone is used below.
SEEDS = torch.tensor([67, 3, 6, 27, 28, 36, 39, 41, 52, 63])
painting = torch.from_numpy(read_mask(f"examples/street96/painted/masks/{SEEDS[0]:08}.png"))

generator = ls.load_generator("street96")
latents = generator.sample(SEEDS)
y, x = (torch.linspace(-1, 1, n) for n in generator.info.size)
distance = torch.hypot(y[:, None], x)
prior = distance.mean() - distance  # (H, W): positive in the middle of an image


# Melas-Kyriazi et al. 2021. Eq. 1: one direction v in the latent space makes the center of every
# image lighter (sign 1) or darker (sign -1), and moves no edge. Gradient descent finds it.
def direction(sign, steps=12):
    """A unit vector, in the shape of a latent."""
    v = normalize(torch.randn(generator.info.latent, generator=torch.manual_seed(0)), dim=0)
    for step in range(steps):
        batch = generator.sample(torch.arange(8) + 8 * step)
        images = generator(batch), generator(generator.shift(batch, 2 * v.requires_grad_()))
        edges, moved = (torch.stack(torch.gradient(each, dim=(2, 3))) for each in images)
        contrast = (prior * images[1].mean(dim=1)).mean()
        loss = (moved - edges).square().mean() - sign * contrast
        v = normalize(v - 0.2 * normalize(torch.autograd.grad(loss, v)[0], dim=0), dim=0).detach()
    return v


# Eq. 2: the foreground is what the light direction leaves brighter than the dark one does.
light, dark = (generator(generator.shift(latents, 5 * direction(sign))) for sign in (1, -1))
by_directions = (light.mean(dim=1) > dark.mean(dim=1)).long()

# Feng 2023. Variants keep the layout of an image and change its colors. Pixels that take on new
# colors together, in all variants, are one segment: k-means finds two.
variants = generator.variants(latents, torch.arange(32), keep=2)  # (B, N, 3, H, W)
points = variants.flatten(1, 2).flatten(2).mT  # (B, H W, 3 N)
centers = points[:, [prior.argmin(), prior.argmax()]]  # of the background and of the object
for _ in range(20):
    members = one_hot(torch.cdist(points, centers).argmin(dim=2), 2)
    centers = members.mT.float() @ points / members.sum(dim=1)[..., None]
by_style_mixing = members.argmax(dim=2).unflatten(1, prior.shape)

# Tritrong et al. 2021. The activations behind a pixel, its hypercolumn, know what the pixel shows.
# A linear classifier that has learned from one painted image (here by ridge regression) therefore
# labels all others.
maps = [interpolate(each, prior.shape, mode="bilinear") for each in generator.features(latents)]
columns = torch.cat(maps, dim=1).flatten(2).mT  # (B, H W, C)
targets = one_hot(painting.flatten().long()).float()
gram = columns[0].T @ columns[0] + 10 * torch.eye(columns.shape[2])
weights = torch.linalg.solve(gram, columns[0].T @ targets)
by_painting = (columns @ weights).argmax(dim=2).unflatten(1, prior.shape)

masks = class_colours()[torch.stack([by_directions, by_style_mixing, by_painting]).numpy()]
rows = torch.cat([torch.from_numpy(to_pixels(generator(latents)))[None], torch.from_numpy(masks)])
write_image(sys.argv[1], rows.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2).numpy())
