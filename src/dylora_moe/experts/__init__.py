"""LoRA experts above the tap: the stacked mixture layer, its gates, and the one owner of PEFT.

Knows PEFT and the base's anatomy; knows nothing of how routing weights are found.
"""
