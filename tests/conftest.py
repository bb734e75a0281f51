"""Shared by all tests: hypothesis without deadlines (kernels compile on first use), and who runs beside whom."""

import pytest
from hypothesis import settings

settings.register_profile("weir", deadline=None, max_examples=50)
settings.load_profile("weir")


def pytest_collection_modifyitems(items):
    """Several processes (`-n 2 --dist loadgroup`) take whole files, whose fixtures are dear. Tests on Ray stay
    together: a session of it is enough for two cores.
    """
    for item in items:
        group = "ray" if item.get_closest_marker("cluster") else item.location[0]
        item.add_marker(pytest.mark.xdist_group(group))
