"""Runs one command: parses its options, calls its function, and turns errors into one line and an exit code."""

import importlib
import inspect
import re
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import docstring_parser
import jsonargparse
import torch

from dicenet.cli.recipes import with_recipes
from dicenet.errors import DicenetError, StoppedError


class Command(NamedTuple):
    """A function whose arguments are the options of a command; ``positional`` ones are given without a name."""

    function: Callable[..., Any]
    positional: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (never changed)
    resumable: bool = False


class _Parser(jsonargparse.ArgumentParser):
    """Shows options with dashes, as they are usually written; underscores work too."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        return re.sub(r"--[a-z][a-z_]+", lambda match: match[0].replace("_", "-"), super().format_help(*args, **kwargs))


def _parser(name: str, command: Command) -> _Parser:
    parser = _Parser(prog=f"dicenet {name}", exit_on_error=False, default_env=False)
    parser.add_argument(
        "--config",
        action="config",
        help="YAML file with values for any of the options below, or the name of a recipe, such as imagenet/e150_b512 "
        "(--config list names all).",
    )
    for argument, options in command.positional.items():
        parser.add_argument(argument, **options)
    switches = {name: p for name, p in inspect.signature(command.function).parameters.items() if p.annotation is bool}
    parser.add_function_arguments(
        command.function,
        as_group=False,
        skip={*command.positional, *switches},
        fail_untyped=True,
        sub_configs=False,
    )
    described = {p.arg_name: p.description for p in docstring_parser.parse(command.function.__doc__ or "").params}
    for name, switch in switches.items():  # --draw and --no-draw, not --draw true
        parser.add_argument(
            f"--{name}",
            action=jsonargparse.ActionYesNo(no_prefix="no_"),
            default=switch.default,
            help=described[name],
        )
    return parser


def _with_underscores(argument: str) -> str:
    """``--img-size=64`` as jsonargparse knows it: ``--img_size=64``."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument.partition("=")
    return "--" + option[2:].replace("-", "_") + equals + value


def _resume_config(arguments: list[str], command: str) -> list[str]:
    """With ``--resume FOLDER``, the arguments of that run first, so that others given now override them."""
    from dicenet.engine.run_folder import CONFIG, check_command, resumed_folder

    for index, argument in enumerate(arguments):
        option, _, value = argument.partition("=")
        if option == "--resume" and (value or arguments[index + 1 :]):
            folder = resumed_folder(value or arguments[index + 1])
            check_command(folder, command)
            return ["--config", str(folder / CONFIG), *arguments]
    return arguments


def _one_line(error: BaseException) -> str:
    """The message of an error as one line; of one from a reading process its last line, without the traceback."""
    text = str(error) or type(error).__name__
    if text.startswith("Caught "):
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


_SIZE = "a whole number or [height, width], such as 224 or [192,256]"
#: Options with a choice of types, which jsonargparse explains at length.
_FORMS = {
    "img_size": _SIZE,
    "crop_size": _SIZE,
    "ignore_id": "a whole number or several, such as 0 or [0,7]",
    "priors": "official, auto, or one ascending size more than the head has maps, as [0.05,0.1,0.2,0.35,0.5,0.7,1.0]",
}


def _parser_message(error: Exception) -> str:
    """The useful part of jsonargparse's messages, with the options' usual names."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    for name, form in _FORMS.items():
        if f'"{name}"' in text and "Union" in text:
            return f"--{name.replace('_', '-')} must be {form}"
    if found := re.match(r'Parser key "([a-z_]+)".*Union subtypes.*Given value type: .*?(?:int|float|str)', text):
        kind = "a whole number" if "<class 'float'>" not in text else "a number"
        return f"--{found[1].replace('_', '-')} must be {kind}"
    text = re.sub(r'^Parser key "([a-z_]+)":', lambda m: f"--{m[1].replace('_', '-')}:", text)
    return re.sub(r"--[a-z][a-z_]+", lambda m: m[0].replace("_", "-"), text)


def run(arguments: list[str], word_given: bool) -> int:
    """Run ``arguments`` (verb, task or other word if there is one, options); returns the exit code."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    words = arguments[: 2 if word_given else 1]
    options = [_with_underscores(argument) for argument in arguments[len(words) :]]
    try:
        module = importlib.import_module(f"dicenet.cli.{words[0]}")
        command: Command = module.COMMANDS[words[1]] if word_given else module.COMMAND
        if command.resumable:
            options = _resume_config(options, " ".join(words))
        parser = _parser(" ".join(words), command)
        values = parser.parse_args(with_recipes(options))
        values.pop("config", None)
        command.function(**values.as_dict())
        return 0
    except jsonargparse.ArgumentError as error:
        return _failed(_parser_message(error), debug)
    except StoppedError as error:
        from dicenet.engine.run_folder import process_rank

        if process_rank() == 0:  # all processes stop alike
            _failed(_one_line(error), debug)
        return 128 + signal.SIGTERM
    except DicenetError as error:
        return _failed(_one_line(error), debug)
    except OSError as error:
        if error.errno is None:
            raise
        return _failed(f"cannot read or write {error.filename or 'a file'}: {error.strerror}", debug)
    except torch.OutOfMemoryError:
        return _failed("the device has not enough memory: use a smaller --batch-size or --img-size", debug)
    except KeyboardInterrupt as stop:
        advice = f"; {stop}".replace("TASK", words[-1]) if str(stop) else ""
        print(f"\ndicenet: stopped{advice}", file=sys.stderr)
        return 130


def _failed(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"dicenet: {message}", file=sys.stderr)
    return 2
