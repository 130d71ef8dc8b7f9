"""All networks that there are, by name. A new family is a line here."""

from dicenet.models import dicenet, mobilenet, resnet, shufflenetv2
from dicenet.models.network import Row

FAMILIES = (dicenet, mobilenet, resnet, shufflenetv2)
#: Row of each network in its family's table.
ROWS: dict[str, Row] = {row.name: row for family in FAMILIES for row in family.NETWORKS}
