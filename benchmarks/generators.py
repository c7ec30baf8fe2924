"""Published generators at their real size, random weights: images per second and peak memory.

python benchmarks/generators.py [--names biggan/biggan-128 ...] [--official NAME=FOLDER ...]
"""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import tyro

from measuring import Row, in_fresh_process, seconds_each, show

# The generators of Melas-Kyriazi 2021, Table 2.
TABLE_2: tuple[str, ...] = (
    "studiogan/acgan-tiny64", "studiogan/biggan-tiny64", "studiogan/ggan-tiny64",
    "studiogan/sagan-tiny64", "studiogan/sngan-tiny64", "studiogan/sagan-128",
    "studiogan/sngan-128", "studiogan/contragan-128", "studiogan/biggan-128",
    "selfcond/uncond-128", "selfcond/selfcond-128", "bigbigan/bigbigan-128",
)  # fmt: skip
COMPARED: tuple[str, ...] = ("stylegan2/stylegan2-ada-256", "biggan/biggan-128")


def ours(name: str, device: str, batch: int, gradient: bool, seconds: float) -> Row:
    """Draws with a network of this package."""
    import torch

    from latentseg.devices import pick_device
    from latentseg.generators.family import Sampling
    from latentseg.generators.protocols import GeneratorInfo
    from latentseg.generators.registry import families

    family_name, _, published = name.partition("/")
    family = families()[family_name]
    config = family.published[published]
    torch.manual_seed(0)
    info = GeneratorInfo(name, config.size, (), config.n_classes, "", "", "random weights", "")
    generator = family.adapt(family.build(config), info, Sampling(), {}).to(pick_device(device))
    latents = generator.sample(torch.arange(batch))
    n_parameters = sum(p.numel() for p in generator.network.parameters())

    def draw(values: torch.Tensor) -> torch.Tensor:
        return generator(latents.with_values(values))

    return _measured(name, "latentseg", draw, latents.values, n_parameters, gradient, seconds)


def official_stylegan2(folder: str, device: str, batch: int, gradient: bool, seconds: float) -> Row:
    """Draws with stylegan2-ada-pytorch, lying in `folder`, in its configuration for 256 px."""
    import torch

    generator_class = _imported(folder, "training.networks").Generator
    torch.manual_seed(0)
    network = generator_class(
        z_dim=512, c_dim=0, w_dim=512, img_resolution=256, img_channels=3,
        mapping_kwargs={"num_layers": 8}, synthesis_kwargs={"channel_base": 16384},
    )  # fmt: skip
    network.eval().requires_grad_(False).to(_device(device))
    z = torch.randn(batch, 512, device=_device(device))
    ws = network.mapping(z, None)[:, :1]

    def draw(w: torch.Tensor) -> torch.Tensor:
        styles = w.expand(-1, network.num_ws, -1)
        return network.synthesis(styles, noise_mode="const", force_fp32=True)

    n_parameters = sum(p.numel() for p in network.parameters())
    return _measured(COMPARED[0], "official", draw, ws, n_parameters, gradient, seconds)


def official_biggan(folder: str, device: str, batch: int, gradient: bool, seconds: float) -> Row:
    """Draws with BigGAN-PyTorch, lying in `folder`, in its configuration for 128 px."""
    import torch

    module = _imported(folder, "BigGAN")
    torch.manual_seed(0)
    network = module.Generator(
        G_ch=96, dim_z=120, resolution=128, G_attn="64", n_classes=1000, hier=True, G_shared=True,
        shared_dim=128, G_init="ortho", no_optim=True, G_activation=torch.nn.ReLU(inplace=False),
    )  # fmt: skip
    network.eval().requires_grad_(False).to(_device(device))
    z = torch.randn(batch, network.dim_z, device=_device(device))
    classes = network.shared(torch.arange(batch, device=_device(device)))

    def draw(values: torch.Tensor) -> torch.Tensor:
        return network(values, classes)

    n_parameters = sum(p.numel() for p in network.parameters())
    return _measured(COMPARED[1], "official", draw, z, n_parameters, gradient, seconds)


OFFICIAL: dict[str, Any] = dict(zip(COMPARED, (official_stylegan2, official_biggan), strict=True))


def _imported(folder: str, module: str) -> Any:
    sys.path.insert(0, folder)
    warnings.simplefilter("ignore")
    return importlib.import_module(module)


def _device(name: str) -> Any:
    from latentseg.devices import pick_device

    return pick_device(name)


def _measured(
    name: str,
    code: str,
    draw: Any,
    values: Any,
    n_parameters: int,
    gradient: bool,
    seconds: float,
) -> Row:
    import torch

    def once() -> None:
        if not gradient:
            with torch.no_grad():
                draw(values)
            return
        moved = values.detach().clone().requires_grad_()
        torch.autograd.grad(draw(moved).square().mean(), moved)

    taken = seconds_each(once, values.device, seconds=seconds)
    return {
        "generator": name,
        "code": code,
        "what": "gradient" if gradient else "image",
        "parameters": f"{n_parameters / 1e6:.1f} M",
        "batch": len(values),
        "images/s": len(values) / taken,
    }


def main(
    names: tuple[str, ...] = COMPARED,
    table_2: bool = False,
    official: tuple[str, ...] = (),
    device: str = "auto",
    batches: tuple[int, ...] = (1, 4),
    seconds: float = 5.0,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measures each network in a process of its own, images and gradients with respect to latents.

    Args:
        names: FAMILY/NAME: published configurations of `latentseg.generators`.
        table_2: Those of Melas-Kyriazi 2021, Table 2, instead.
        official: NAME=FOLDER: the official code of that network, measured beside ours. It is run.
        device: auto, cpu, cuda, ...
        batches: Images drawn together.
        seconds: Least time spent on each row.
        json: File for the numbers.
    """
    folders = dict(each.split("=", 1) for each in official)
    rows = []
    for name in TABLE_2 if table_2 else names:
        for gradient in (False, True):
            for batch in batches:
                options = (device, batch, gradient, seconds)
                rows.append(in_fresh_process(ours, name, *options))
                if name in folders:
                    rows.append(in_fresh_process(OFFICIAL[name], folders[name], *options))
    show("Published generators, random weights", rows, device=device, json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
