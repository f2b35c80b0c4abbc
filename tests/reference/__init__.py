"""Slow transcriptions of the papers, with loops over Python numbers. Tests compare the package with them."""
