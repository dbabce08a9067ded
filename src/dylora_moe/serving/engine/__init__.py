"""Continuous batching over a pool: rows of different experts in one batch, joining and leaving."""
