"""The command line: ``excite VERB ...``. Arguments become the verb's config, and the config goes into one call."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import os
import re
import signal
import sys
import threading
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from excite.errors import UserError, unknown
from excite.training.settings import Settings, convert, read_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["VERBS", "Verb", "main"]


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb. Homes are written "module:name" and loaded only when the verb is chosen.

    Args:
        help: one line.
        config: home of the verb's config, a `Settings` class whose fields are the flags.
        run: home of the function that does the work; it takes the config.
        show: home of the function that prints what ``run`` returned; it takes that and the config, and may return an
            exit code. None: nothing to do.
        positional: fields that may be given without a flag.
        continues: whether the same command goes on where an interrupted one stopped.
        extra: the extra of the package that brings what the verb needs beyond torch.
    """

    help: str
    config: str
    run: str
    show: str | None = None
    positional: tuple[str, ...] = ()
    continues: bool = False
    extra: str = "train"


VERBS: dict[str, Verb] = {
    "compare": Verb(
        help="train a network with each of several gates, on equal terms, and say what the differences are worth",
        config="excite.experiment.config:CompareConfig",
        run="excite.experiment.run:compare",
        show="excite.experiment.show:show_comparison",
        continues=True,
        extra="compare",
    ),
    "train": Verb(
        help="train one network",
        config="excite.training.config:TrainConfig",
        run="excite.training.run:train",
        show="excite.training.show:show_run",
        continues=True,
    ),
    "eval": Verb(
        help="score a trained network: top-1, top-5, loss, each class, confusion",
        config="excite.training.config:EvalConfig",
        run="excite.training.evaluation:evaluate",
        show="excite.training.show:show_evaluation",
        positional=("checkpoint",),
    ),
    "explain": Verb(
        help="look at what a trained network's gates do: a page with every gate, class and image",
        config="excite.analysis.config:ExplainConfig",
        run="excite.analysis.explain:explain_checkpoint",
        show="excite.analysis.show:show_explanation",
        positional=("checkpoint",),
        extra="explain",
    ),
    "cost": Verb(
        help="count what networks cost: parameters, multiply-adds, bytes moved; by stage, and the gates alone",
        config="excite.bill:CostConfig",
        run="excite.bill:make_bill",
        show="excite.bill:show_bill",
        positional=("models",),
    ),
    "sites": Verb(
        help="list the places of any network where gates can be attached, and where not and why",
        config="excite.sites:SitesConfig",
        run="excite.sites:list_sites",
        show="excite.sites:show_sites",
        positional=("model",),
    ),
    "bench": Verb(
        help="time networks with and without their gates on this machine: eager, fused, compiled",
        config="excite.deploy.bench:BenchConfig",
        run="excite.deploy.bench:bench",
        show="excite.deploy.bench:show_bench",
        positional=("models",),
    ),
    "export": Verb(
        help="write a trained network to a file for ONNX Runtime, OpenVINO or PyTorch, and compare the two",
        config="excite.deploy.export_checkpoint:ExportConfig",
        run="excite.deploy.export_checkpoint:export_checkpoint",
        show="excite.deploy.export_checkpoint:show_export",
        positional=("checkpoint",),
    ),
    "predict": Verb(
        help="name the likeliest classes of pictures, with a trained network or an exported file",
        config="excite.deploy.predict:PredictConfig",
        run="excite.deploy.predict:predict",
        show="excite.deploy.predict_show:show_predictions",
        positional=("model", "images"),
    ),
    "slim": Verb(
        help="take out the gates that a trained network can do without, and prove what that costs in accuracy",
        config="excite.deploy.slim_run:SlimConfig",
        run="excite.deploy.slim_run:slim_checkpoint",
        show="excite.deploy.slim_run:show_slim",
        positional=("checkpoint",),
        extra="compare",
    ),
    "models": Verb(
        help="list the networks",
        config="excite.listing:ListConfig",
        run="excite.listing:list_models",
        positional=("pattern",),
    ),
    "gates": Verb(
        help="list the gates",
        config="excite.listing:ListConfig",
        run="excite.listing:list_gates",
        positional=("pattern",),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: what follows ``excite``; None takes the process's own.

    Returns:
        The exit code: 0, 1 where a part of what was asked for could not be done (as a verb's ``show`` says), 2 for a
        mistake in what was asked for (one line on stderr), 130 after ctrl-C. Anything else that goes wrong is a bug
        and keeps its traceback.

    Raises:
        SystemExit: with code 143, on SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _ended_by_sigterm():
            return _run(arguments)
    except UserError as error:
        print(f"excite: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        verb = VERBS.get(arguments[0]) if arguments else None
        hint = " The same command continues after the last whole epoch." if verb and verb.continues else ""
        print(f"excite: stopped.{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Makes SIGTERM an exception, so that what is half made is taken away; where it does something else, that stays."""

    def end(*_: object) -> None:
        # In training Lightning's own handler calls this one, and ends the run after the batch.
        if signal.getsignal(signal.SIGTERM) is end:
            raise SystemExit(128 + signal.SIGTERM)

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(f"excite {version('excite')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in VERBS:
        kind = "option" if name.startswith("-") else "verb"
        raise unknown(kind, name, VERBS, hint="`excite --help` lists all")
    verb = VERBS[name]
    try:
        config = parse(name, rest)
        if config is None:
            return 0
        result, code = _home(verb.run)(config), 0
        if verb.show is not None:
            code = _home(verb.show)(result, config) or 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "excite":
            raise
        raise UserError(f"`excite {name}` needs {error.name}: install excite[{verb.extra}]") from error
    return code


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.help}" for name, verb in VERBS.items())
    return (
        "usage: excite VERB [--option value ...] [--config FILE.yaml]\n\n"
        "Channel attention for convolutional networks: does it help on your images, and what does it cost?\n\n"
        f"verbs:\n{verbs}\n\n"
        "`excite VERB --help` explains a verb's options; `excite --version` prints the version."
    )


def parse(name: str, arguments: list[str]) -> Settings | None:
    """The config that a verb's arguments ask for; None if they asked for help, which is printed.

    Options are the config's fields: ``--batch_size 64`` (dashes do as well), or lines of a YAML file given with
    ``--config``. Options win over files, later files over earlier ones.

    Raises:
        ValueError: an unknown option, a value of the wrong type or out of range, or an unreadable file.
    """
    import argparse

    import jsonargparse

    verb = VERBS[name]
    kind: type[Settings] = _home(verb.config)
    flags = ["--config", "--help", *(f"--{f.name}" for f in dataclasses.fields(kind))]
    arguments = [_expanded(_underscored(a)) for a in arguments]
    _check_flags(name, arguments, flags)
    arguments = _bracketed(arguments, kind)
    parser = jsonargparse.ArgumentParser(prog=f"excite {name}", description=_sentence(kind), exit_on_error=False)
    parser.add_argument("--config", action="append", help="a YAML file of these options")
    _add_fields(parser, kind, verb.positional, _from_files(arguments, kind))
    try:
        values = parser.parse_args(arguments)
    except SystemExit as end:
        if end.code:
            raise
        return None  # after --help
    except argparse.ArgumentError as error:
        raise _explain(str(error), kind) from None
    return kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})


def _add_fields(
    parser: ArgumentParser, kind: type[Settings], positional: tuple[str, ...], given: dict[str, Any]
) -> None:
    hints, about = typing.get_type_hints(kind), _field_help(kind)
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = given.get(field.name, default)
        more: dict[str, Any] = {"type": hints[field.name], "help": about[field.name]}
        if field.name in positional and "tuple[" in str(hints[field.name]):
            parser.add_argument(field.name, type=str, help=about[field.name], nargs="*", default=list(default))
        elif field.name in positional:
            more |= {} if default is dataclasses.MISSING else {"nargs": "?", "default": default}
            parser.add_argument(field.name, **more)
        else:
            more |= {"nargs": "?", "const": True} if hints[field.name] is bool else {}
            more |= {"required": True} if default is dataclasses.MISSING else {"default": default}
            parser.add_argument(f"--{field.name}", **more)


def _field_help(kind: type[Settings]) -> dict[str, str]:
    """What the docstrings of a config and its bases say about each field, under ``Args:``."""
    about: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        text = inspect.cleandoc(cls.__doc__ or "").partition("\nArgs:\n")[2]
        for name, words in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", text, flags=re.MULTILINE):
            # argparse reads % in help as a format.
            about[name] = " ".join(words.split()).replace("%", "%%")
    return about


def _sentence(kind: type[Settings]) -> str:
    return (kind.__doc__ or "").partition("\n\n")[0]


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument


def _expanded(argument: str) -> str:
    """``~`` and ``--out=~/runs`` with the home folder: a shell leaves them, and YAML takes ``~`` for null."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return flag + equals + os.path.expanduser(value) if value == "~" or value.startswith("~/") else argument


def _bracketed(arguments: list[str], kind: type[Settings]) -> list[str]:
    """``--stages 1,2`` as ``--stages [1,2]``, and ``--sites layer4.*`` as a list of texts."""
    hints = typing.get_type_hints(kind)
    lists = {f"--{name}": "tuple[str" in str(hint) for name, hint in hints.items() if "tuple[" in str(hint)}
    done: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in lists and equals:
            argument = f"{flag}={_as_list(value, lists[flag])}"
        elif done and done[-1] in lists:
            argument = _as_list(argument, lists[done[-1]])
        done.append(argument)
    return done


def _as_list(text: str, of_texts: bool) -> str:
    """What a user wrote for a list, in the brackets that YAML wants; numbers without, or texts."""
    if of_texts and not text.startswith(("[", "-")) and text not in ("null", ""):
        return json.dumps([part.strip() for part in text.split(",")])
    return f"[{text}]" if re.fullmatch(r"[\d.,\s]+", text) else text


def _check_flags(verb: str, arguments: list[str], flags: list[str]) -> None:
    for argument in arguments:
        # An option with names of its own is written --options.name value.
        name = argument.partition("=")[0].partition(".")[0]
        if name.startswith("--") and name not in flags:
            raise unknown(f"option of `excite {verb}`", name, flags, hint=f"`excite {verb} --help` lists all")


def _from_files(arguments: list[str], kind: type[Settings]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for argument, following in itertools.pairwise([*arguments, None]):
        assert argument is not None
        flag, equals, file = argument.partition("=")
        if flag == "--config" and (path := file if equals else following) is not None:
            held = read_yaml(path)
            try:
                values |= kind.converted(held)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
    return values


def _explain(message: str, kind: type[Settings]) -> UserError:
    """One line of our own for what jsonargparse found wrong."""
    hints = typing.get_type_hints(kind)
    if match := re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', message, flags=re.DOTALL):
        name, value = match.groups()
        if name in hints:
            try:
                convert(name, value, hints[name])
            except UserError as error:
                return error
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        return UserError(f"unexpected argument {match[1]!r}: options are written --name value")
    if match := re.match(r"argument (--\w+): expected one argument", message):
        return UserError(f"{match[1]} needs a value")
    if match := re.search(r'"(\w+)" is required', message):
        return UserError(f"{match[1]} is missing: it has no default")
    return UserError(" ".join(message.split()))


def _home(home: str) -> Any:
    module, name = home.split(":")
    return getattr(import_module(module), name)


if __name__ == "__main__":
    sys.exit(main())
