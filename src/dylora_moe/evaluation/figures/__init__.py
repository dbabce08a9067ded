"""The report's figures as SVG: each file paints those of one subject, `catalogue` lists them all.

Uses matplotlib's objects, never pyplot, so that no state outlives a figure.
"""
