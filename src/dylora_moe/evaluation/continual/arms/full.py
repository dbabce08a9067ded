"""Full fine-tuning in sequence: all weights of the base, visit after visit, nothing kept of any.

HF's plain Trainer on a stock model in fp32 (bf16 autocast on a GPU), from the same rows, in batches
of the same size, over the same epochs, with the same cosine and warm-up as the adapters; the rate
is its own, since the adapters' would take the base apart. It keeps the last weights of each visit:
choosing among epochs would need copies of the whole model. After a visit the weights are written
into the base that answers, so that the answers are made and scored as every arm's.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from dylora_moe.evaluation.continual.answers import answer_rows, questions
from dylora_moe.evaluation.continual.arms.arm import ArmKind, Setting
from dylora_moe.evaluation.continual.arms.lora_learner import LoraLearner, sides
from dylora_moe.evaluation.continual.arms.visits import WITH_BORDERS, visits_of
from dylora_moe.evaluation.continual.results import ArmResult, RowResult, Stage
from dylora_moe.experts.gates import Gates
from dylora_moe.foundation.base import Base
from dylora_moe.foundation.quiet import quiet
from dylora_moe.text.batching import collate
from dylora_moe.text.template import Encoded, encode_all
from dylora_moe.training.rows import Rows

RATE = 1e-4
"""Peak learning rate of all weights."""


@dataclass(frozen=True)
class FullSequential:
    """The arm."""

    name: str = "full-sequential"
    title: str = "full fine-tuning in sequence"
    streams: frozenset[str] = WITH_BORDERS
    kind: ArmKind = "trained"
    learning_rate: float = RATE

    def run(self, setting: Setting) -> ArmResult:
        """Trains all weights on visit after visit and answers the test rows after each."""
        learner = LoraLearner(setting)
        setting = replace(setting, epochs=learner.epochs)
        base, visits, stages = learner.base, visits_of(setting.stream), []
        model, tokens = trainable(base), 0
        for visit in visits:
            train, _ = sides(visit.rows, setting.learn.validation_fraction)
            rows, _ = encode_all(train, base.tokenizer, setting.fmt, base.context_length)
            loss = self._train(model, rows, base, setting, visit.seed(setting.seed))
            tokens += round(setting.epochs * sum(map(len, rows)))
            setting.told(f"visit {visit.number}/{len(visits)}: training loss {loss:.3f}")
            # All that reads the weights from here on is read anew: trunk states, too.
            base.model.load_state_dict(model.state_dict())
            if places := setting.asked_after(visit.number):
                answered = _answered(learner, setting, places, setting.whole_after(visit.number))
                stages.append(Stage(visit.number, visit.skill, answered))
        all_weights = model.num_parameters()
        told = {"learning_rate": self.learning_rate}
        return replace(
            learner.result(self.name, stages, _nobody, told),
            trained_tokens=tokens,
            parameters=all_weights,
            parameters_in_use=float(all_weights),
        )

    def _train(
        self,
        model: PreTrainedModel,
        rows: Sequence[Encoded],
        base: Base,
        setting: Setting,
        seed: int,
    ) -> float:
        pad = base.tokenizer.pad_token_id

        def batch(of: list[Encoded]) -> dict[str, Any]:
            made = collate(of, pad)
            del made["prompt_mask"]
            return dict(made)

        with tempfile.TemporaryDirectory(dir=setting.folder) as folder, quiet():
            trainer = Trainer(
                model=model,
                args=self._arguments(folder, len(rows), base, setting, seed),
                train_dataset=list(rows),
                data_collator=batch,
            )
            trainer.remove_callback(PrinterCallback)
            found = trainer.train()
        model.zero_grad()
        return float(found.training_loss)

    def _arguments(
        self, folder: str, rows: int, base: Base, setting: Setting, seed: int
    ) -> TrainingArguments:
        like = setting.learn.consolidation
        steps = math.ceil(rows / setting.batch_rows) * setting.epochs
        made = TrainingArguments(
            output_dir=folder,
            num_train_epochs=setting.epochs,
            per_device_train_batch_size=setting.batch_rows,
            learning_rate=self.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=round(like.warmup_ratio * steps),
            weight_decay=like.weight_decay,
            bf16=base.device.type == "cuda",
            use_cpu=base.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            seed=seed,
        )
        # Found first, then set: with several GPUs HF would split every batch over them.
        made._n_gpu = min(1, made.n_gpu)
        return made


def trainable(base: Base) -> PreTrainedModel:
    """A stock model with the base's weights in fp32, all of which learn.

    Made anew rather than taken: the base's own modules are made for frozen weights.
    """
    config = copy.deepcopy(base.model.config)
    with quiet():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(base.model.state_dict())
    return model.to(base.device)


def _answered(
    learner: LoraLearner, setting: Setting, places: Sequence[int], whole: bool
) -> tuple[RowResult, ...]:
    asked = questions(learner.base, setting.fmt, setting.test_rows, setting.folder)
    return answer_rows(learner.model, asked, _nobody(asked.rows), only=places, whole=whole)


def _nobody(rows: Rows) -> Gates:
    return Gates.all_of((), len(rows))
