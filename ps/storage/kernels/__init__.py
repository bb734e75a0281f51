"""Compiled loops over plain arrays, one idea a file. Only this folder imports numba."""
