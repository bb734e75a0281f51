"""The users' modules of a cluster, imported by name wherever its spec is read: they register psfuncs and optimizers."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ps.errors import RequestError


def load_modules(modules: Sequence[str]) -> None:
    """Import the users' modules. Raises RequestError naming one that cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except RequestError:
            raise
        except Exception as error:
            raise RequestError(
                f"psfunc module {module!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error
