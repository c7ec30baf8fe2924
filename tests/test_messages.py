"""Messages of the library name fields, those of the command line its flags; wrong use is exit 2."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from inspect import Signature, signature
from pathlib import Path
from typing import Any

import pytest
import tyro

from latentseg import cli, errors
from latentseg.cli.messages import flags_by_field, in_flags
from latentseg.cli.methods import field_flags
from latentseg.errors import InputError, LatentsegError
from latentseg.generators.training.config import GeneratorTrainingConfig
from latentseg.inversion.settings import InversionConfig
from latentseg.labelers.agreement_settings import AgreementConfig
from latentseg.labelers.registry import kinds
from latentseg.run import RunConfig
from latentseg.students.self_training import SelfTrainingConfig
from latentseg.students.training import TrainConfig
from tests.datasets.fabricate import blob, make_dataset
from tests.test_cli import WORLD, latentseg, model
from tests.world import fitted

__all__ = ["latentseg", "model"]  # fixtures

SOURCE = Path(cli.__file__).parents[1]
ERRORS = {
    name
    for name, each in vars(errors).items()
    if isinstance(each, type) and issubclass(each, LatentsegError)
}
# A whole command in a message stands in backticks, or after a colon at the end of a line.
COMMAND = re.compile(r"(?:`|: |^)latentseg ([a-z-]+(?: [^`\n]*)?)(?:`|$)", re.MULTILINE)
OF_PIP_AND_HF = {
    "--force-reinstall",
    "--index-url",
    "--local-dir",
    "--no-deps",
    "--revision",
    "--upgrade",
}
# Custom properties of CSS also begin with two dashes.
NO_MESSAGES = {"figures.py"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module that is no docstring, with its line; values in it become X."""
    tree = ast.parse(path.read_text())
    inner = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(node.value)
        if isinstance(node, ast.JoinedStr):
            inner |= {part for part in ast.walk(node) if part is not node}
            parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, parts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield node.lineno, node.value


MESSAGES = [
    (f"{path.relative_to(SOURCE)}:{line}", text)
    for path in sorted(SOURCE.rglob("*.py"))
    if path.parent.name != "cli" and path.name not in NO_MESSAGES
    for line, text in texts(path)
]


def test_messages_of_the_library_are_found() -> None:
    raised = sum(
        len(re.findall(rf"raise (?:{'|'.join(ERRORS)})\(", path.read_text()))
        for path in SOURCE.rglob("*.py")
    )
    assert raised > 300
    assert len(MESSAGES) > raised


def test_the_library_names_fields_and_no_flags() -> None:
    named = []
    for where, text in MESSAGES:
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", COMMAND.sub("", text)))
        if flags - OF_PIP_AND_HF:
            named.append(f"{where}: {text}")
    assert not named


@cache
def parsed_by(command: str) -> Callable[..., None]:
    """A function with the flags of a command that does nothing."""
    called = cli.COMMANDS[command]

    def stub(*_: Any, **__: Any) -> None: ...

    given = list(signature(called).parameters.values())
    stub.__doc__ = called.__doc__
    stub.__annotations__ = {each.name: each.annotation for each in given}
    stub.__signature__ = Signature(given)  # pyright: ignore[reportFunctionMemberAccess]
    return stub


SHOWN = {
    shown.rstrip(".")
    for _, text in MESSAGES
    for shown in COMMAND.findall(text)
    if shown.split()[0] in cli.COMMANDS and len(shown.split()) > 1
}


def test_messages_show_commands() -> None:
    assert len(SHOWN) > 5


@pytest.mark.parametrize("command", sorted(SHOWN))
def test_every_command_in_a_message_can_be_given(command: str) -> None:
    name, *arguments = command.replace("fit X", "fit directions").split()
    if name in cli.BY_METHOD:
        flags = flags_by_field(cli.BY_METHOD[name](arguments)).values()
        assert {each for each in arguments if each.startswith("--")} <= {*flags, "--template"}
    else:
        tyro.cli(parsed_by(name), args=arguments, config=(tyro.conf.FlagCreatePairsOff,))


WRONG = (-1, 0, 10**12, 1.5, float("nan"), "nonsense")


def refused(config: Any, path: tuple[str, ...]) -> list[Any]:
    """Values of a field that its configuration refuses, one of each kind."""
    name, *rest = path
    found = []
    for value in WRONG:
        inner = value
        try:
            if rest:
                inner = with_value(getattr(config, name), tuple(rest), value)
            replace(config, **{name: inner})
        except InputError:
            found.append(value)
        except TypeError:
            continue
    return found


def with_value(config: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    return replace(
        config, **{name: with_value(getattr(config, name), tuple(rest), value) if rest else value}
    )


def wrong_uses() -> Iterator[tuple[str, ...]]:
    """Commands, each with one flag of a configuration at a value that is refused; the flag last."""
    for kind in kinds().values():
        for entry in field_flags(kind.default, kind.flags):
            values = [str(value) for value in refused(kind.default, entry.path)]
            painted = ("--painted", "none") if kind.takes_painted else ()
            if values and entry.flag.endswith("area"):
                yield ("fit", kind.name, WORLD, "OUT", *painted, f"--{entry.flag}", values[0])
                run = ("run", WORLD, "OUT", "--method", kind.name)
                yield (*run, *painted, f"--{entry.flag}", values[0])
    for command, configs in CONFIGS.items():
        flags = flags_by_field(cli.COMMANDS[command[0]])
        for config in configs:
            for each in fields(config):
                if is_dataclass(getattr(config, each.name)) or each.name not in flags:
                    continue
                for value in refused(config, (each.name,))[:1]:
                    yield (*command, flags[each.name], str(value))


CONFIGS = {
    ("run", WORLD, "OUT"): (RunConfig(), TrainConfig(), SelfTrainingConfig()),
    ("run", WORLD, "OUT", "--vote", "style-mixing"): (AgreementConfig(),),
    ("synth", WORLD, "LABELER", "OUT"): (AgreementConfig(),),
    ("train", "DATA", "OUT"): (TrainConfig(), SelfTrainingConfig()),
    ("train-generator", "PHOTOS", "OUT"): (GeneratorTrainingConfig(),),
    ("invert", WORLD, "PHOTO", "OUT"): (InversionConfig(),),
}


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("command", ["fit", "run"])
def test_every_field_of_a_method_that_can_be_refused_is_named_by_its_flag(command, kind) -> None:
    first = [kind.name] if command == "fit" else [WORLD, "OUT", "--method", kind.name]
    called = cli.BY_METHOD[command](first)
    given = signature(called).parameters["labeler"].default
    entries = field_flags(kind.default, kind.flags)
    found = 0
    for field, entry in zip(fields(given), entries, strict=True):
        for value in refused(kind.default, entry.path):
            if entry.unit != 1:
                continue
            with pytest.raises(InputError) as error:
                _ = replace(given, **{field.name: value}).configs
            flag, _ = str(error.value).split(":", 1)
            assert flag.startswith("--")
            assert flag.endswith(entry.flag)
            assert flag.removeprefix("--") in given.names
            found += 1
    assert found > 5


@pytest.mark.parametrize("arguments", [*wrong_uses()], ids=" ".join)
def test_a_wrong_value_of_a_configuration_names_its_flag(
    arguments, latentseg, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flag = arguments[-2]
    code, _, err = latentseg(*arguments)
    assert code == 2, err
    assert flag in err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "MODEL", "DATA", "--limit", 0),
        ("eval", "MODEL", "DATA", "--protocol", "miou"),
        ("eval", "MODEL", "DATA", "--foreground", 0),
        ("eval", "MODEL", "DATA", "--group", "no-such-grouping"),
        ("check", "DATA", "--foreground", 256),
        ("predict", "MODEL", "DATA/images", "OUT", "--tile", 3),
        ("predict", "MODEL", "DATA/images", "OUT", "--tile-overlap", 1),
        ("predict", "MODEL", "DATA/images", "OUT", "--outputs", "video"),
        ("predict", "MODEL", "DATA/images", "OUT", "--device", "abacus"),
        ("export", "MODEL", "OUT", "--int8"),
        ("export", "MODEL", "OUT", "--int8", "--format", "torch"),
        ("export", "MODEL", "OUT", "--flip", "--format", "safetensors"),
        ("convert-dataset", "DATA", "OUT", "--format", "voc", "--lossy"),
        ("convert-dataset", "DATA", "OUT", "--format", "yolo", "--instances"),
        ("synth", WORLD, "LABELER", "OUT", "--count", 0),
        ("synth", WORLD, "LABELER", "OUT", "--format", "shards", "--workers", -1),
        ("synth", WORLD, "LABELER", "OUT", "--format", "shards", "--shard-size", 7),
        ("synth", WORLD, "LABELER", "OUT", "--shard-size", 64),
        ("judge", WORLD, "LABELER", "--model", "MODEL", "--count", 0),
        ("judge", WORLD, "LABELER", "--model", "MODEL", "--protocol", "tritrong2021"),
        ("fit", "style-mixing", WORLD, "OUT", "--first-mixed-layer", 10_000),
        ("fit", "style-mixing", WORLD, "OUT", "--classes", 3),
        ("fit", "directions", WORLD, "OUT", "--latent-noise", 1),
        ("fit", "directions", WORLD, "OUT", "--option", "psi"),
        ("distance", WORLD, "DATA/images", "--images", 1),
        ("paint", WORLD, "OUT", "--port", 0),
        ("train", "DATA", "OUT", "--network", "transformer"),
        ("train", "DATA", "OUT", "--width", 1, "--network", "vgg"),
        ("train", "DATA", "OUT", "--devices", 0),
        ("train", "DATA", "OUT", "--photos", "DATA/images", "--devices", 2),
        ("generators", "--family", "stylegan9"),
    ],
    ids=lambda arguments: " ".join(map(str, arguments)),
)
def test_a_wrong_value_is_wrong_use_and_names_its_flag(
    arguments, latentseg, tmp_path, model, labeler, monkeypatch
) -> None:
    make_dataset(tmp_path / "DATA", [blob(i) for i in range(3)])
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": model, "LABELER": labeler}
    code, _, err = latentseg(*(places.get(each, each) for each in arguments))
    assert code == 2, err
    named = {each for each in arguments if str(each).startswith("--")}
    assert any(re.search(rf"{flag}(?![\w-])", err) for flag in named), err


@pytest.fixture(scope="module")
def labeler(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labeler")
    fitted().save(folder)
    return folder


def test_what_is_missing_is_no_wrong_use(latentseg, tmp_path, model) -> None:
    for arguments in (
        ("check", tmp_path / "none"),
        ("eval", model, tmp_path / "none"),
        ("fit", "directions", "no-such-generator", tmp_path / "out"),
    ):
        assert latentseg(*arguments)[0] == 1


def test_a_field_that_is_no_flag_of_the_command_keeps_its_name() -> None:
    flags = flags_by_field(cli.COMMANDS["train"])
    message = "`lr`: too large for `decay_at`; see the extra `photos` and `latentseg train`."
    assert in_flags(message, flags) == message.replace("`lr`", "--lr")


def test_fields_of_a_method_become_the_flags_of_that_method() -> None:
    flags = flags_by_field(cli.BY_METHOD["fit"](["directions"]))
    assert flags["restart_steps"] == "--search-restart-steps"
    assert flags["generation_radius"] == "--radius"
    assert flags["radius"] == "--search-radius"
    assert flags["options"] == "--option"
