"""Figures, tables, runs of notebooks, and the pages that show them."""
