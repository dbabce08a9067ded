"""The frozen base: loaded, understood by its structure, split at the tap, and its trunk cached.

Knows transformers; knows nothing of experts, routers or skills.
"""
