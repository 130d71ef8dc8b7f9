"""All networks that there are, by name. A new family is a line here."""

import re

from dicenet.errors import ConfigError, in_words, nearest
from dicenet.models import dicenet, espnetv2, mobilenet, resnet, shufflenetv2
from dicenet.models.network import Row

FAMILIES = (dicenet, espnetv2, mobilenet, resnet, shufflenetv2)
#: Row of each network in its family's table.
ROWS: dict[str, Row] = {row.name: row for family in FAMILIES for row in family.NETWORKS}


def check_model_name(name: str) -> str:
    """The name of one of our networks, unchanged. Raises ConfigError, naming the nearest, for others."""
    if name.split(".")[0] in ROWS:
        return name
    # a width such as dicenet_110 is nearest to its neighbours in size, a misspelling to those in letters
    scale = re.search(r"(\d+)$", name)
    if name.startswith("dicenet") and scale:
        widths = [width.name for width in dicenet.WIDTHS]
        near = in_words(sorted(widths, key=lambda known: abs(int(known[-3:]) - int(scale[1])))[:2])
    else:
        near = nearest(name, ROWS)
    raise ConfigError(f"model {name!r} is unknown{near} ('dicenet models' lists all)")
