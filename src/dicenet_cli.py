"""The ``dicenet`` command: answers ``--help`` and ``--version`` at once, hands the rest to ``dicenet.cli``.

It lies outside the package because importing the package imports torch, which takes seconds.
"""

import sys

TASKS = ("classify", "multilabel", "segment", "detect")
PREPARED = ("classify",)
BENCHMARKS = ("latency", "training")
PAPER = ("1", "2", "3", "4", "5", "6", "7", "claims", "figure1b", "figure2", "figure4", "figure7", "figure8")
#: How the help calls the word behind a verb, and what messages call it, by what it may be.
WORDS = {TASKS: ("TASK", "task"), PREPARED: ("TASK", "task"), BENCHMARKS: ("WHAT", "benchmark"), PAPER: ("N", "table")}
#: Verb, the words that may follow it (one must, if there are any), and what it does.
VERBS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("models", (), "list the networks with their parameters and multiply-adds"),
    ("prepare", PREPARED, "write pictures as shards, for large data sets"),
    ("train", TASKS, "train a network on pictures"),
    ("evaluate", TASKS, "judge a trained network on pictures of known classes"),
    ("predict", TASKS, "use a trained network on pictures"),
    ("convert", (), "turn an EdgeNets or pytorchcv checkpoint into one of dicenet"),
    ("benchmark", BENCHMARKS, "measure how fast networks are, beside others"),
    ("tables", PAPER, "count the networks of the paper's tables, beside its own figures"),
    ("demo", (), "train, evaluate and use a small network on handwritten digits, in minutes"),
)


def _with_label(verb: str, words: tuple[str, ...]) -> str:
    label = words[0] if len(words) == 1 else WORDS[words][0] if words else ""
    return f"{verb} {label}".strip()


def _choices(words: tuple[str, ...]) -> str:
    return f"{WORDS[words][0]} is one of: {', '.join(words)}."


def usage() -> str:
    """What ``dicenet --help`` prints."""
    width = max(len(_with_label(verb, words)) for verb, words, _ in VERBS) + 2
    verbs = "\n".join(f"  {_with_label(verb, words):<{width}}{text}" for verb, words, text in VERBS)
    choices = "\n".join(_choices(words) for words in WORDS if len(words) > 1)
    return (
        "usage: dicenet [--help] [--version] VERB [WORD] [OPTIONS]\n\n"
        "Small, fast convolutional networks made of dimension-wise convolutions (DiCENet).\n\n"
        f"{verbs}\n\n"
        f"{choices}\n"
        "'dicenet VERB [WORD] --help' shows the options; '--debug' shows the traceback of an error.\n"
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
    known = {verb: words for verb, words, _ in VERBS}
    verb = arguments[0]
    if verb not in known:
        import difflib

        near = difflib.get_close_matches(verb, known, n=1)
        meant = f": did you mean {near[0]!r}?" if near else ""
        return _fail(f"unknown verb {verb!r}{meant} (dicenet --help lists all)")
    words = known[verb]
    if words and arguments[1:2] in ([], ["-h"], ["--help"]):
        text = f"usage: dicenet {_with_label(verb, words)} [OPTIONS]\n\n{_choices(words)}"
        print(text, file=sys.stdout if arguments[1:] else sys.stderr)
        return 0 if arguments[1:] else 2
    if words and arguments[1] not in words:
        return _fail(f"unknown {WORDS[words][1]} {arguments[1]!r} for {verb}: choose one of {', '.join(words)}")
    try:
        from dicenet.cli.run import run
    except KeyboardInterrupt:
        return 130
    return run(arguments, word_given=bool(words))


if __name__ == "__main__":
    sys.exit(main())
