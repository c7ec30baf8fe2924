"""The command line: one function per command, which reads flags and makes one call of the library.

Nothing that takes long to import is imported before a command runs.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import tyro

from latentseg.cli.datasets import check, convert_dataset, synth_command
from latentseg.cli.distance import distance
from latentseg.cli.flags import COMMON, CommonFlags, tell, write_result
from latentseg.cli.generators import convert, generators, train_generator
from latentseg.cli.job import run_command
from latentseg.cli.judge import judge
from latentseg.cli.labelers import fit, fit_command, instances, paint
from latentseg.cli.messages import flags_by_field, in_flags
from latentseg.cli.methods import renewed
from latentseg.cli.photos import invert
from latentseg.cli.students import evaluate, export, predict, train
from latentseg.errors import LatentsegError
from latentseg.interrupts import Terminated
from latentseg.version import __version__


def doctor(*, common: CommonFlags = COMMON) -> None:
    """Versions, devices, and what works here; says how to mend what does not."""
    from latentseg.diagnosis import diagnose

    findings = diagnose()
    for name, finding in findings.items():
        tell(common, f"{name:<22} {finding}")
    write_result(common, findings)


COMMANDS: dict[str, Callable[..., Any]] = {
    "run": run_command(()),
    "generators": generators,
    "convert": convert,
    "train-generator": train_generator,
    "distance": distance,
    "fit": fit,
    "paint": paint,
    "synth": synth_command(),
    "instances": instances,
    "invert": invert,
    "judge": judge,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "export": export,
    "check": check,
    "convert-dataset": convert_dataset,
    "doctor": doctor,
}

# Their flags depend on the labeler that their arguments name.
BY_METHOD: dict[str, Callable[[Sequence[str]], Callable[..., Any]]] = {
    "fit": fit_command,
    "run": run_command,
}


def main() -> None:
    """Entry point.

    Exits with 0 if all is done, 1 if it could not be done, 2 if the command was used in a wrong way
    (the message then begins with the flag), 130 if it was interrupted and 143 if terminated.
    """
    # Threads that spin while they wait are slow where cores are shared; torch reads it on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(__version__)
        return
    signal.signal(signal.SIGTERM, _terminate)
    commands = COMMANDS
    try:
        if arguments and arguments[0] in BY_METHOD:
            name, *rest = renewed(arguments)
            arguments = [name, *rest]
            commands = {**COMMANDS, name: BY_METHOD[name](rest)}
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="latentseg",
            description="Turn any pretrained image generator into an image segmenter.",
            args=arguments,
            config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
        )
    except KeyboardInterrupt as interrupt:
        print("\ninterrupted; the same command again continues.", file=sys.stderr)
        sys.exit(143 if isinstance(interrupt, Terminated) else 130)
    except (LatentsegError, OSError) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        text = in_flags(str(error), flags_by_field(commands[arguments[0]], arguments))
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2 if text.startswith("--") else 1)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
