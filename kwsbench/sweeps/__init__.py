"""Notebooks over grids of parameters and seeds: each run once, in a folder named by what it depends on."""
