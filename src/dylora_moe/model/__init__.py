"""Base, experts and router as one model: one forward pass, and generation with a cache.

Knows how a pass is put together; knows nothing of training loops, pools or texts.
"""
