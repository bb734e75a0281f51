"""The public names of `ps`."""

import subprocess
import sys

import pytest

import ps
import ps.placement


def test_every_public_name_is_there_and_no_other():
    for name in ps.__all__:
        assert callable(getattr(ps, name))
    assert set(ps._PLACE_OF) == set(ps.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Tabel'"):
        ps.Tabel  # noqa: B018


def test_specs_and_errors_are_read_without_the_compiler():
    code = "import ps, sys; ps.TableSpec, ps.RequestError; sys.exit('numba' in sys.modules or 'grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
