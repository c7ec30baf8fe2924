"""Diffusion models in few steps against what diffusers computes, and their own promises."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_safetensors, write_safetensors
from latentseg.generators.families.diffusers_folders import diffusers_class
from latentseg.generators.families.diffusion import FAMILY, Diffusion, RenoisedDiffusion, Step
from latentseg.generators.family import Family, SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.noise_generator import LayeredNoiseGenerator
from latentseg.generators.protocols import GeneratorInfo, HasFeatures, HasVariants, Latents
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import assert_close, golden
from tests.generators.tiny_autoencoder import VAE, VQ
from tests.generators.tiny_diffusion import TEXT_UNET, UNET

CASES = ("diffusers-consistency/class16", "diffusers-ddim/uncond16")
WEIGHTS = "diffusion_pytorch_model.safetensors"

# Of the schedulers of diffusers, which convert tensors in a way that numpy 2 advises against.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def opened(path: Path, family: Family = FAMILY, **options: Any) -> SavedGenerator:
    checkpoint = open_checkpoint(path)
    assert family.objection(checkpoint) is None
    imported = family.read(checkpoint, options)
    config = imported.config
    info = GeneratorInfo(
        "g", config.size, (), config.n_classes, "", "CC0", "", "", family=family.name
    )
    return family.generator(imported, info, path)


def steps_of(generator: SavedGenerator) -> tuple[Step, ...]:
    assert isinstance(generator.network, Diffusion)
    return generator.network.config.steps


def copied(name: str, folder: Path) -> Path:
    """The files of a golden case, to be changed."""
    for path in (model := golden(name).path).rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(model)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def saved(folder: Path, scheduler: Any, unet: dict[str, Any], **parts: dict[str, Any]) -> Path:
    """A pipeline with random weights, as diffusers writes it."""
    torch.manual_seed(0)
    parts = {"unet": unet, **parts}
    for name, values in parts.items():
        diffusers_class(values["_class_name"]).from_config(values).save_pretrained(folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    index = {name: ["diffusers", values["_class_name"]] for name, values in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def official(
    folder: Path,
    scheduler: Any,
    n_steps: int,
    z: Tensor,
    rng: torch.Generator | None = None,
    **conditions: Any,
) -> Tensor:
    """What a pipeline of diffusers does: its networks in the loop of its scheduler.

    But for the clipping in the last step, which takes the gradient away.
    """
    unet = json.loads((folder / "unet" / "config.json").read_text())
    network = diffusers_class(unet["_class_name"]).from_pretrained(folder / "unet").eval()
    scheduler.set_timesteps(n_steps)
    x = z * scheduler.init_noise_sigma
    with torch.no_grad():
        for time in scheduler.timesteps:
            if time == scheduler.timesteps[-1]:
                scheduler.register_to_config(clip_sample=False, clip_denoised=False)
            predicted = network(scheduler.scale_model_input(x, time), time, **conditions).sample
            x = scheduler.step(predicted, time, x, generator=rng, return_dict=False)[0]
        decoders = [part for part in ("vae", "vqvae") if (folder / part).is_dir()]
        if not decoders:
            return x
        name = json.loads((folder / decoders[0] / "config.json").read_text())["_class_name"]
        vae = diffusers_class(name).from_pretrained(folder / decoders[0]).eval()
        shift = vae.config.get("shift_factor") or 0
        return vae.decode(x / vae.config.scaling_factor + shift).sample


def test_consistency_model_equals_the_official_pipeline() -> None:
    case = golden("diffusers-consistency/class16")
    expected = case.expected
    generator = opened(case.path)
    latents = Latents(expected["z"], expected["labels"])
    x = generator(latents)
    assert x.abs().max() > 1  # the pipeline clamps, we do not: there is a gradient everywhere
    assert_close(x.clamp(-1, 1), expected["image"])
    assert_close(x.clamp(-1, 1) / 2 + 0.5, expected["image01"])
    (step,) = steps_of(generator)
    assert_close(x, step.skip * 80 * expected["z"] + step.out * expected["unet"])


def test_ddim_equals_the_official_pipeline() -> None:
    case = golden("diffusers-ddim/uncond16")
    generator = opened(case.path)
    assert_close(generator(Latents(case.expected["z"])), case.expected["image"])
    assert [step.time for step in steps_of(generator)] == case.expected["timesteps"].tolist()


@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_official_activations(name: str) -> None:
    case = golden(name)
    generator = opened(case.path)
    assert isinstance(generator, HasFeatures)
    middle, first, _ = generator.features(Latents(case.expected["z"], case.expected.get("labels")))
    assert_close(middle[:1], case.expected["features.mid_block"])
    assert_close(first[:1], case.expected["features.up_blocks.0"])


@pytest.mark.parametrize("name", CASES)
def test_converted_folder_draws_the_same(name: str, tmp_path: Path) -> None:
    generator = opened(golden(name).path)
    save_generator(generator, tmp_path, card="", origin={})
    again = load_folder(tmp_path)
    latents = generator.sample(torch.arange(2))
    torch.testing.assert_close(again(latents), generator(latents))


@pytest.mark.parametrize(
    ("spacing", "prediction", "n_steps"),
    [
        ("leading", "epsilon", 1),
        ("leading", "epsilon", 5),
        ("trailing", "v_prediction", 3),
        ("linspace", "sample", 3),
    ],
)
def test_ddim_steps_equal_those_of_the_scheduler(
    spacing: str, prediction: str, n_steps: int, tmp_path: Path
) -> None:
    scheduler = diffusers_class("DDIMScheduler")(
        timestep_spacing=spacing,
        prediction_type=prediction,
        clip_sample_range=0.5,
        set_alpha_to_one=False,
    )
    folder = saved(tmp_path, scheduler, UNET)
    generator = opened(folder, steps=n_steps)
    latents = generator.sample(torch.arange(2))
    assert_close(generator(latents), official(folder, scheduler, n_steps, latents.values))


@pytest.mark.parametrize(
    ("fields", "n_steps"),
    [
        ({"timestep_spacing": "trailing"}, 1),
        ({"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 3),
        ({"timestep_spacing": "leading", "use_karras_sigmas": True}, 3),
    ],
)
def test_text_to_latents_equals_the_official_steps(
    fields: dict[str, Any], n_steps: int, tmp_path: Path
) -> None:
    scheduler = diffusers_class("EulerDiscreteScheduler")(beta_schedule="scaled_linear", **fields)
    folder = saved(tmp_path / "model", scheduler, TEXT_UNET, vae=VAE)
    embedding = torch.randn(1, 5, 6)
    np.save(tmp_path / "prompt.npy", embedding.numpy())
    generator = opened(folder, embedding=tmp_path / "prompt.npy", steps=n_steps)
    latents = generator.sample(torch.arange(2))
    assert generator.info.latent == (4, 8, 8)
    prompt = embedding.expand(2, -1, -1)
    expected = official(folder, scheduler, n_steps, latents.values, encoder_hidden_states=prompt)
    assert_close(generator(latents), expected)
    assert not any(".encoder." in name for name in generator.network.state_dict())


def test_unconditional_latents_are_decoded_by_a_codebook(tmp_path: Path) -> None:
    scheduler = diffusers_class("DDIMScheduler")(clip_sample=True)
    folder = saved(tmp_path, scheduler, UNET, vqvae=VQ)
    generator = opened(folder, steps=2)
    latents = generator.sample(torch.arange(2))
    scheduler.register_to_config(clip_sample=False)  # as the pipelines of latents have it
    assert generator.info.size == (16, 16)
    assert_close(generator(latents), official(folder, scheduler, 2, latents.values))


def test_consistency_steps_after_the_first_add_the_noise_of_the_latent(tmp_path: Path) -> None:
    scheduler = diffusers_class("CMStochasticIterativeScheduler")()
    folder = saved(tmp_path, scheduler, {**UNET, "num_class_embeds": 3})
    generator = opened(folder, steps=3)
    latents = generator.sample(torch.arange(1))
    assert generator.info.latent == (3, 3, 8, 8)
    added = torch.randn(3, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    z = torch.cat([latents.values[:, :1], added[:2].transpose(0, 1)], dim=1)
    drawn = torch.Generator().manual_seed(0)
    expected = official(folder, scheduler, 3, z[:, 0], rng=drawn, class_labels=latents.labels)
    assert_close(generator(Latents(z, latents.labels)), expected)


def test_variants_keep_the_noise_and_the_class_of_the_first_steps(tmp_path: Path) -> None:
    scheduler = diffusers_class("CMStochasticIterativeScheduler")()
    folder = saved(tmp_path, scheduler, {**UNET, "num_class_embeds": 3})
    generator = opened(folder, steps=2)
    assert isinstance(generator, HasVariants)
    assert isinstance(generator, LayeredNoiseGenerator)
    own, others = generator.sample(torch.arange(2)), generator.sample(torch.tensor([7]))
    whole = generator.variants(own, torch.tensor([7]), keep=0)
    torch.testing.assert_close(whole[:, 0], generator(others).expand(2, -1, -1, -1))
    network = generator.network
    assert isinstance(network, RenoisedDiffusion)
    conditions = network.conditions(own.values, own.labels)
    conditions[:, 1] = network.conditions(others.values, others.labels)[:, 1]
    half = generator.variants(own, torch.tensor([7]), keep=1)
    torch.testing.assert_close(half[:, 0], network.synthesis(conditions)[0])
    assert not isinstance(opened(golden(CASES[0]).path), HasVariants)
    assert not isinstance(opened(golden(CASES[1]).path), HasVariants)


def test_random_schedulers_are_replaced_by_their_deterministic_kin(tmp_path: Path) -> None:
    for name, kin in (
        ("DDPMScheduler", "DDIMScheduler"),
        ("PNDMScheduler", "DDIMScheduler"),
        ("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    ):
        scheduler = diffusers_class(name)()
        folder = saved(tmp_path / name, scheduler, UNET)
        imported = FAMILY.read(open_checkpoint(folder), {"steps": 2})
        assert any(f"Its {name} is random" in note for note in imported.notes)
        generator = opened(folder, steps=2)
        latents = generator.sample(torch.arange(1))
        same = diffusers_class(kin).from_pretrained(folder / "scheduler")
        assert_close(generator(latents), official(folder, same, 2, latents.values))


def test_early_repositories_and_old_names_are_read(tmp_path: Path) -> None:
    generator = opened(golden(CASES[1]).path)
    folder = copied(CASES[1], tmp_path)
    for path in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
        path.rename(folder / path.name)
    for part in ("unet", "scheduler"):
        (folder / part).rmdir()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in read_safetensors(folder / WEIGHTS).items():
        for present, early in old.items():
            name = name.replace(f".{present}.", f".{early}.")
        weights[name] = tensor
    assert any("proj_attn" in name for name in weights)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    again = opened(folder)
    latents = generator.sample(torch.arange(2))
    torch.testing.assert_close(again(latents), generator(latents))


def test_half_precision_weights_are_computed_with_in_float32(tmp_path: Path) -> None:
    folder = copied(CASES[1], tmp_path)
    weights = read_safetensors(folder / "unet" / WEIGHTS)
    half = {name: tensor.half() for name, tensor in weights.items()}
    write_safetensors(folder / "unet" / WEIGHTS.replace(".", ".fp16."), half)
    (folder / "unet" / WEIGHTS).unlink()
    generator = opened(folder)
    assert {tensor.dtype for tensor in generator.network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    "name", ["autoencoderkl/lat4", "hf-biggan/deep32", "dcgan/rgb64", "stylegan2-ada/uncond32"]
)
def test_other_files_are_objected_to(name: str) -> None:
    assert FAMILY.objection(golden(name).checkpoint)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = copied(CASES[0], tmp_path)
    path = folder / "unet" / WEIGHTS
    weights = read_safetensors(path)
    write_safetensors(path, {**weights, "conv_in.weight": torch.zeros(8, 3, 1, 1)})
    with pytest.raises(CorruptFileError, match=r"conv_in\.weight.* has shape \(8, 3, 1, 1\)"):
        opened(folder)
    weights.pop("conv_in.weight")
    write_safetensors(path, weights)
    with pytest.raises(CorruptFileError, match=r"conv_in\.weight' is missing"):
        opened(folder)
    path.unlink()
    with pytest.raises(InputError, match=f"no weights in it. Expected {WEIGHTS}"):
        opened(folder)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"out_channels": 6}, "maps 3 to 6 channels"),
        ("unet/config.json", {"in_channels": 4, "out_channels": 4}, "has 4 channels"),
        ("unet/config.json", {"sample_size": None}, "no sample_size"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ("unet/config.json", {"down_block_types": ["Nonsense"] * 2}, "cannot build this UNet2D"),
        ("unet/config.json", {"_class_name": 3}, "no '_class_name'"),
        ("unet/config.json", {"_class_name": "ModelMixin"}, "ModelMixin of diffusers is not known"),
        ("scheduler/scheduler_config.json", {"_class_name": "UniPC"}, "UniPC is not known"),
        ("scheduler/scheduler_config.json", {"prediction_type": "x"}, "prediction_type 'x'"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "dynamic thresholding"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "x"}, "cannot build this DDIM"),
    ],
)
def test_configurations_that_are_not_understood_are_named(
    file: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = copied(CASES[1], tmp_path)
    changed(folder / file, **values)
    with pytest.raises((InputError, CorruptFileError), match=message):
        opened(folder)


def test_options_of_nonsense_are_named() -> None:
    path = golden(CASES[1]).path
    for steps in (0, 1001, "four", 2.5):
        with pytest.raises(
            InputError, match=f"`steps`: expected a whole number .* found {steps!r}"
        ):
            opened(path, steps=steps)
    with pytest.raises(InputError, match="prompt: this network takes no prompt"):
        opened(path, prompt="a cat")
    assert len(FAMILY.read(open_checkpoint(path), {"steps": 2}).config.steps) == 2


def test_prompt_is_embedded_by_the_folders_text_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for transformers."""
    scheduler = diffusers_class("EulerDiscreteScheduler")(timestep_spacing="trailing")
    folder = saved(tmp_path / "model", scheduler, TEXT_UNET, vae=VAE)
    with pytest.raises(InputError, match="expected a prompt"):
        opened(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="needs transformers: pip install"):
        opened(folder, prompt="a cat")

    class Tokenizer:
        model_max_length = 5

        def __call__(self, prompt: str, **options: Any) -> Any:
            assert options["padding"] == "max_length"
            codes = [ord(letter) for letter in prompt]
            return SimpleNamespace(input_ids=torch.tensor([codes]))

    class TextEncoder(torch.nn.Module):
        def forward(self, ids: Tensor) -> tuple[Tensor]:
            return (ids[..., None].float().expand(-1, -1, 6) / 100,)

    stand_in = SimpleNamespace(
        CLIPTokenizer=SimpleNamespace(from_pretrained=lambda *_, **__: Tokenizer()),
        CLIPTextModel=SimpleNamespace(from_pretrained=lambda *_, **__: TextEncoder()),
    )
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    embedding = torch.tensor([ord(letter) / 100 for letter in "a cat"])[:, None].expand(5, 6)
    write_safetensors(tmp_path / "prompt.safetensors", {"embedding": embedding})
    by_file = opened(folder, embedding=str(tmp_path / "prompt.safetensors"))
    by_text = opened(folder, prompt="a cat")
    latents = by_file.sample(torch.arange(1))
    torch.testing.assert_close(by_text(latents), by_file(latents))
    assert not torch.equal(opened(folder, prompt="a dog")(latents), by_file(latents))


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 5, 7), (6,)])
def test_embedding_of_another_shape_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    scheduler = diffusers_class("EulerDiscreteScheduler")()
    folder = saved(tmp_path / "model", scheduler, TEXT_UNET, vae=VAE)
    np.save(tmp_path / "prompt.npy", np.zeros(shape))
    with pytest.raises(InputError, match=r"expected \(1, T, 6\)"):
        opened(folder, embedding=tmp_path / "prompt.npy")


def test_missing_or_mismatched_libraries_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden(CASES[0]).path
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install 'latentseg\[diffusion\]'"):
        opened(path)

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "diffusers", Broken())
    with pytest.raises(InputError, match="pip uninstall torchvision"):
        opened(path)


def test_diffusers_is_imported_for_its_folders_only() -> None:
    code = (
        "import sys; from latentseg.generators.families import autoencoder, diffusion; "
        "from latentseg.generators.registry import families; families(); "
        "sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
