"""Shared by all tests: hypothesis without deadlines (kernels compile on first use)."""

from hypothesis import settings

settings.register_profile("weir", deadline=None, max_examples=50)
settings.load_profile("weir")
