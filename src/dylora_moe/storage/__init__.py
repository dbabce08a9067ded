"""What a pool keeps on disk: registry, artifacts, examples, lock and runs (implements the ports).

Knows files and SQL; knows no model library. Only `build` imports this room, through `pool_folder`.
"""
