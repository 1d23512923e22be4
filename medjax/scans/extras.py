"""Imports the libraries of the extra `formats` on demand, or reports how to install them."""

import importlib

from medjax.errors import UsageError


def needs(library: str, path: object = None):
    """Imports a library of the extra `formats`, or raises with the command to install it.

    `path` is the file that needs it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UsageError(
            f"this format needs {library.split('.')[0]}, which is not installed",
            path=path,
            fix='pip install "medjax[formats]"',
        ) from error
