"""Vectors of texts as a parameter of a network.

A network with such a table has an attribute `text_rows`: "tasks" or "classes", what its rows stand
for. `medjax.runs.prompted.texts` fills the table when a training begins.
"""

import flax.linen as nn
from jaxtyping import Array, Float

TEXT_WIDTH = 512  # of CLIP's vectors


class TextTable(nn.Module):
    """Parameter `table` (rows, width), which starts with standard normal numbers."""

    rows: int
    width: int = TEXT_WIDTH

    @nn.compact
    def __call__(self) -> Float[Array, "rows width"]:
        return self.param("table", nn.initializers.normal(1.0), (self.rows, self.width))
