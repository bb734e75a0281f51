"""How numba is made to do less: kernels without reference counts, helpers without machine code of their own.

Kernels borrow their arrays from the caller and make none, so nothing is counted. A helper is merged into every function
that calls it; numba would make machine code and Python's and C's entries of it nevertheless, which nobody calls, and a
kernel has a hundred helpers. Here a helper is only optimised, since loops become vector code while their length is not
known yet, and linked into its callers.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


@register_pass(mutates_CFG=True, analysis_only=False)
class _BorrowingLowering(NativeLowering):  # type: ignore[misc]
    _name = "borrowing_lowering"

    def run_pass(self, state: Any) -> bool:
        state.targetctx = state.targetctx.subtarget(enable_nrt=False)
        return bool(super().run_pass(state))


class _LinkedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code to be linked into other code, never given to the engine."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in dict.fromkeys(self._linking_libraries):
            if hasattr(self, "_reload_init"):  # not in old versions
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._optimize_final_module()
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _MergedLowering(_BorrowingLowering):
    _name = "merged_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _LinkedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        state.library._ensure_finalized()
        # In place of machine code, and numba's key of the function: a built-in of its own that refuses any arguments.
        no_entry = dict[None, None]().__getitem__
        state.cr = state.cr._replace(cfunc=no_entry)
        state.targetctx.insert_user_function(no_entry, state.cr.fndesc, [state.library])
        return True


class _Compiler(CompilerBase):  # type: ignore[misc]
    """numba's own passes, the last one replaced."""

    lowering: type[NativeLowering]

    def define_pipelines(self) -> list[Any]:
        manager = DefaultPassBuilder.define_nopython_pipeline(self.state)
        manager.passes = [(self.lowering if each is NativeLowering else each, why) for each, why in manager.passes]
        manager.finalize()
        return [manager]


class KernelCompiler(_Compiler):
    """Of a kernel: called from Python with arrays, makes none."""

    lowering = _BorrowingLowering


class MergedCompiler(_Compiler):
    """Of a helper: called by kernels and other helpers only; makes no arrays, returns none but views of views.py."""

    lowering = _MergedLowering
