"""Tests of medjax.

`checked` is the type checker of the test run: beartype, for which an int is a float (PEP 484).
`./launch.sh test` passes it to jaxtyping, last in `--jaxtyping-packages`.
"""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
