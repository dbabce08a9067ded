"""A hash that tells one base's weights from another's, in any dtype and on any device.

Knows weights and anatomy; knows nothing of where they were loaded from.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from transformers import PreTrainedModel

from dylora_moe.foundation.anatomy import Anatomy, blocks

SAMPLES_PER_TENSOR = 1024


def fingerprint(model: PreTrainedModel, anatomy: Anatomy) -> str:
    """SHA-256, in hex, of architecture facts and of the signs of sampled weights.

    Signs, since rounding keeps them: the same checkpoint loaded in fp32, fp16 or bf16 has one
    fingerprint. Another base, a fine-tuned or requantised copy of it differs in at least a few of
    the samples (1024 evenly spaced from each matrix of the blocks and from the embedding). A
    quantised matrix, whose bytes are not values, gives its shape only. Independent of the tap and
    of the targets, which are choices and not facts of the base.
    """
    config = model.config.get_text_config()
    facts = {
        "model_type": config.model_type,
        "n_blocks": anatomy.n_blocks,
        "d_model": anatomy.d_model,
        "vocab_size": config.vocab_size,
        "shapes": {
            name: list(weight.shape) for name, weight in blocks(model, anatomy).named_parameters()
        },
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for weight in (
        *(weight for _, weight in sorted(blocks(model, anatomy).named_parameters())),
        *model.get_input_embeddings().parameters(),
    ):
        if weight.ndim >= 2 and weight.is_floating_point():
            digest.update(_signs(weight))
    return digest.hexdigest()


def _signs(weight: torch.Tensor) -> bytes:
    flat = weight.detach().reshape(-1)
    negative = torch.signbit(flat[:: max(1, flat.numel() // SAMPLES_PER_TENSOR)])
    return np.packbits(negative.cpu().numpy()).tobytes()
