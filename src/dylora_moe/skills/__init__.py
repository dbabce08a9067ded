"""What the pool remembers of each skill, and the tests that say whether data is new.

Knows feature vectors and their statistics; knows no model, no gate and no files.
"""
