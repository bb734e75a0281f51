"""Worked examples of code that runs at the rows; docs/psfuncs.md goes through them."""
