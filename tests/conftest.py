"""Shared by all tests: hypothesis without deadlines (kernels compile on first use), and who runs beside whom."""

from collections import Counter

import pytest
from hypothesis import settings

settings.register_profile("weir", deadline=None, max_examples=50)
settings.load_profile("weir")


# Minutes in few tests: they begin first, so that no process is left alone with one of them at the end.
LONG = ["ray", "tests/workers/training/test_two_workers.py", "tests/chaos/test_chaos.py"]


def pytest_collection_modifyitems(items):
    """Several processes (`-n 2 --dist loadgroup --no-loadscope-reorder`) take whole files, whose fixtures are dear, the
    long ones and those of many tests first. Tests on Ray stay together: a session of it is enough for two cores.
    """
    groups = ["ray" if item.get_closest_marker("cluster") else item.location[0] for item in items]
    for item, group in zip(items, groups):
        item.add_marker(pytest.mark.xdist_group(group))
    sizes, places = Counter(groups), {group: place for place, group in enumerate(LONG)}
    order = sorted(
        range(len(items)), key=lambda i: (places.get(groups[i], len(LONG)), -sizes[groups[i]], groups[i])
    )  # stable: the order within a group stays
    items[:] = [items[i] for i in order]
