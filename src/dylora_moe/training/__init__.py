"""Trains one expert (and the gate with it) on HF's Trainer, from the tap upwards.

Knows phases, batches, checkpoints and numbers; knows nothing of pools, verdicts or the registry.
"""
