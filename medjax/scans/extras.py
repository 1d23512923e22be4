"""Libraries of the extra `formats`: imported when a file needs them, or reported with the command
that installs them.
"""

import importlib

from medjax.errors import UsageError


def needs(library: str, path: object = None):
    """Imports a library of the extra `formats`, or reports how to get it; `path` is the file that
    needs it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UsageError(
            f"this format needs {library.split('.')[0]}, which is not installed",
            path=path,
            fix='pip install "medjax[formats]"',
        ) from error
