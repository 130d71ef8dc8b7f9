"""``dicenet convert FILE --out FILE``."""

from dicenet.cli.run import Command
from dicenet.models import loading

_SOURCE = {
    "source": {
        "type": str,
        "metavar": "FILE",
        "help": "a checkpoint of EdgeNets, pytorchcv or dicenet, or the name of an official one",
    }
}


def convert(source: str, out: str) -> None:
    """Turn a checkpoint of EdgeNets or pytorchcv into one of dicenet.

    Args:
        source: the checkpoint, or the name of an official one.
        out: the .safetensors file to write, which must not exist.
    """
    net = loading.convert(source, out)
    assert net.input_size is not None  # else it could not have been saved
    height, width = net.input_size
    print(f"{net.architecture}, {net.num_classes} classes, input size {height}x{width}: {out}")


COMMAND = Command(convert, _SOURCE)
