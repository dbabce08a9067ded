"""The model card that lies beside every expert: what it is, on what, and how to load it."""

from __future__ import annotations

import json

from dylora_moe.lifecycle.live import LivePool
from dylora_moe.training.outcome import TrainingOutcome


def model_card(
    live: LivePool, alias: str, source: str, outcome: TrainingOutcome, base_loss: float
) -> str:
    """Markdown with PEFT's front matter, the training's numbers and the lines that load it."""
    base = live.experts.base_name
    anatomy = live.base.anatomy
    phases = "\n".join(
        f"| {p.name} | {p.steps} | {p.tokens} | {p.start_loss:.4f} | {p.best_loss:.4f} |"
        for p in outcome.phases
    )
    return f"""---
base_model: {json.dumps(base)}
library_name: peft
tags: [lora, dylora-moe]
---

# {alias}

A LoRA expert for `{base}`, learned from `{source}`. It adapts blocks {anatomy.tap_layer} to
{anatomy.n_blocks - 1}; the blocks below are the base's own. Prompts are written in the pool's
format (`{live.fmt.kind}`).

Loss on its validation rows: {outcome.best_loss:.4f} (the base alone: {base_loss:.4f}).

| phase | steps | tokens | loss before | best loss |
|---|---|---|---|---|
{phases}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""
