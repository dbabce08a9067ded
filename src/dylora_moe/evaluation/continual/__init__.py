"""Continual learning on streams of real skills: the rows, the streams and their truth.

Knows data alone: neither a pool nor any other learner, and nothing of how one is scored.
"""
