"""The ``dicenet`` command: answers ``--help`` and ``--version`` at once, hands the rest to ``dicenet.cli``.

It lies outside the package because importing the package imports torch, which takes seconds.
"""

import sys

TASKS = ("classify",)
#: Verb, whether it takes a task, and what it does.
VERBS = (
    ("models", False, "list the networks with their parameters and multiply-adds"),
    ("train", True, "train a network on pictures"),
    ("evaluate", True, "judge a trained network on pictures of known classes"),
    ("predict", True, "use a trained network on pictures"),
    ("convert", False, "turn an EdgeNets or pytorchcv checkpoint into one of dicenet"),
    ("demo", False, "train, evaluate and use a small network on handwritten digits, in minutes"),
)


def usage() -> str:
    """What ``dicenet --help`` prints."""
    width = max(len(f"{verb} TASK") for verb, _, _ in VERBS) + 2
    verbs = "\n".join(f"  {verb + (' TASK' if task else ''):<{width}}{text}" for verb, task, text in VERBS)
    return (
        "usage: dicenet [--help] [--version] VERB [TASK] [OPTIONS]\n\n"
        "Small, fast convolutional networks made of dimension-wise convolutions (DiCENet).\n\n"
        f"{verbs}\n\n"
        f"TASK is one of: {', '.join(TASKS)}.\n"
        "'dicenet VERB [TASK] --help' shows the options; '--debug' shows the traceback of an error.\n"
    )


def _version() -> str:
    from importlib.metadata import version

    return f"dicenet {version('dicenet')}"


def _fail(message: str) -> int:
    print(f"dicenet: {message}", file=sys.stderr)
    return 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--debug"]:
        arguments = [*arguments[1:], "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(_version())
        return 0
    takes_task = {verb: task for verb, task, _ in VERBS}
    verb = arguments[0]
    if verb not in takes_task:
        import difflib

        near = difflib.get_close_matches(verb, takes_task, n=1, cutoff=0.0)
        return _fail(f"unknown verb {verb!r}: did you mean {near[0]!r}? (dicenet --help lists all)")
    if takes_task[verb] and arguments[1:2] in ([], ["-h"], ["--help"]):
        text = f"usage: dicenet {verb} TASK [OPTIONS]\n\nTASK is one of: {', '.join(TASKS)}."
        print(text, file=sys.stdout if arguments[1:] else sys.stderr)
        return 0 if arguments[1:] else 2
    if takes_task[verb] and arguments[1] not in TASKS:
        return _fail(f"unknown task {arguments[1]!r} for {verb}: choose one of {', '.join(TASKS)}")
    try:
        from dicenet.cli.run import run
    except KeyboardInterrupt:
        return 130
    return run(arguments, task_given=takes_task[verb])


if __name__ == "__main__":
    sys.exit(main())
