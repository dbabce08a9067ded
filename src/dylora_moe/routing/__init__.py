"""The gate: which expert an input needs, from the tap's pooled features alone.

Knows feature vectors and statistics; knows no model, no text, no files and no experts' weights.
"""
