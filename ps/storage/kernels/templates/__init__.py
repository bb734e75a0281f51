"""Sources that generate.py specialises: the lines between the two `layout` marks are replaced by those of a table.

As they stand they are the kernels of a small example layout, so they can be read, checked and imported like any module.
"""
