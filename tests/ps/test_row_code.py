"""Row functions before they are compiled: the digest follows everything they rest on, and mistakes name their line."""

import importlib
import sys
from types import FunctionType

import pytest
from pydantic import ValidationError

import ps
from ps.errors import RequestError
from ps.row_code import row_code
from ps.spec import SGD
from ps.storage.kernels.optimizers import code_of
from ps.storage.layout import layout_of

MODULE = """
import numpy as np
import ps
{imports}
FACTOR = {factor}

def helper(x):
    return {helper}

@ps.register("edited_{name}")
class Edited(ps.RowOptimizer):
    eps: float = 0.5
    def update(self, values, gradient, learning_rate):
        for j in range(len(values)):
            values[j] -= {update}
"""


def write(folder, **parts):
    parts = {"imports": "", "factor": "2.0", "helper": "x", "update": "helper(gradient[j])", "name": "x", **parts}
    (folder / "edited.py").write_text(MODULE.format(**parts))


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def digest(**parts):
        write(tmp_path, name="y", **parts)
        sys.modules.pop("edited", None)
        importlib.invalidate_caches()
        return code_of(importlib.import_module("edited").Edited()).digest

    return digest


def test_the_digest_follows_helpers_constants_and_lines(digest_of):
    first = digest_of()
    assert digest_of() == first
    changed = [
        digest_of(helper="x + 1"),
        digest_of(update="FACTOR * gradient[j]"),
        digest_of(update="FACTOR * gradient[j]", factor="3.0"),
        digest_of(update="FACTOR[0] * gradient[j]", factor="np.array([2.0, 1.0])"),
        digest_of(update="FACTOR[0] * gradient[j]", factor="np.array([2.0, 7.0])"),
        digest_of(imports="\n\n"),  # errors name lines
    ]
    assert len({first, *changed}) == 7
    assert digest_of(factor="9.0") == first  # what is not used does not count


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"update": "missing(gradient[j])"}, r"'missing' is not defined at .*edited\.py:15"),
        ({"update": "np.random.random()"}, r"random numbers at .*edited\.py:15: a row function gives the same bits"),
        (
            {"imports": "import os", "update": "os.getpid()"},
            r"'os' at .*edited\.py:15 is module; row functions can use",
        ),
        ({"update": "FACTOR[0]", "factor": "{}"}, r"'FACTOR' at .*edited\.py:15 is dict"),
    ],
)
def test_what_cannot_be_compiled_is_told_with_its_line(digest_of, parts, message):
    with pytest.raises(RequestError, match=message):
        digest_of(**parts)


def test_files_count_for_users_only():
    """Installations share what is compiled of a built-in; errors of a user's function name its file."""
    here = code_of(SGD())
    (update,) = here.functions.values()
    elsewhere = FunctionType(update.__code__.replace(co_filename="/elsewhere/sgd.py"), update.__globals__)
    digests = {users: row_code("", {"update": elsewhere}, {}, users=users).digest for users in (False, True)}
    assert digests[False] == here.digest != digests[True]


def test_a_misspelt_argument():
    class Misspelt(ps.RowOptimizer):
        def update(self, values, gradeint):
            pass

    with pytest.raises(
        RequestError, match=r"update takes 'gradeint' at .*test_row_code\.py:\d+; .*values, state, grad"
    ):
        code_of(Misspelt())


def test_variables_of_a_function_around():
    factor = 2.0

    class Closed(ps.RowOptimizer):
        def update(self, values):
            values[0] = factor

    with pytest.raises(RequestError, match=r"uses variables of a function around it \(factor\)"):
        code_of(Closed())


def test_registration():
    with pytest.raises(RequestError, match=r"'sgd' of .* is registered by Weir itself"):
        ps.register("sgd")(type("Sgd", (ps.RowOptimizer,), {"update": lambda self, values: None}))
    with pytest.raises(RequestError, match="needs a method update"):
        ps.register("without_update")(type("Without", (ps.RowOptimizer,), {}))
    with pytest.raises(RequestError, match="letters, digits and underscores"):
        ps.register("no name")(type("NoName", (ps.RowOptimizer,), {"update": lambda self, values: None}))


SPEC = {"psfunc_modules": ["examples.group_ftrl"], "tables": {"t": {"segments": {"e": {"dim": 2}}}}}


def with_optimizer(optimizer):
    return {**SPEC, "tables": {"t": {"segments": {"e": {"dim": 2, "optimizer": optimizer}}}}}


def test_a_spec_names_the_optimizer_and_travels_as_json():
    given = with_optimizer({"name": "group_ftrl", "group": 0.25})
    spec = ps.ClusterSpec.model_validate(given)
    optimizer = spec.tables["t"].segments["e"].optimizer
    assert (type(optimizer).__name__, optimizer.name, optimizer.group) == ("GroupFTRL", "group_ftrl", 0.25)
    assert ps.ClusterSpec.model_validate_json(spec.model_dump_json()) == spec
    assert ps.ClusterSpec.model_validate(with_optimizer(optimizer)) == spec
    assert layout_of(spec.tables["t"]).text().endswith("group_ftrl 4 fp32 at 8")  # what a checkpoint carries


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("group_ftlr", "'adam', 'ftrl', .*'group_ftrl'"),
        ({"name": "group_ftrl", "grupp": 1}, "optimizer.grupp"),
        ({"name": "group_ftrl", "group": -1}, "greater than or equal to 0"),
    ],
)
def test_mistakes_in_a_spec(optimizer, message):
    with pytest.raises(ValidationError, match=message):
        ps.ClusterSpec.model_validate(with_optimizer(optimizer))


def test_a_module_that_is_not_there():
    with pytest.raises(ValidationError, match="psfunc module 'no_such_module' cannot be imported"):
        ps.ClusterSpec.model_validate({**SPEC, "psfunc_modules": ["no_such_module"]})
