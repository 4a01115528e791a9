"""The trainer of alignments: images and sentences of a batch are ranked above each other."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from ..data.batching import CaptionDataset, collate_captions
from ..evaluation.alignment_scores import flat_metrics, score_dataset
from ..models.loss_cnnrnn import IGNORE_INDEX
from ..models.modeling_alignment_cnnrnn import CnnRnnForImageTextRetrieval
from ..models.processing_alignment_cnnrnn import CnnRnnAlignmentProcessor
from .arguments import TrainingArguments
from .callbacks import TrainerCallback, random_state_kept
from .optimization import decay_groups
from .trainer import Trainer


logger = logging.getLogger(__name__)


class AlignmentTrainer(Trainer):
    """
    Train an alignment: each image of a batch is ranked above the others for its captions, and its captions above theirs.

    An image is in an epoch once, so that no batch holds it twice and has its captions as negatives. The negatives of a
    caption are in its own micro-batch on its own process: larger batches make them harder, more processes do not. The best
    checkpoint is the one with the highest sum of recalls (R@1, R@5, R@10 in both directions) of the validation images.

    Args:
        model: the alignment.
        processor: its processor.
        train_dataset: images to train on.
        eval_dataset: images to evaluate on, with all their captions.
        accelerator: as [`create_accelerator`] makes it.
        args: options of the training.
        further_scores: further scores of the model by name, measured at each evaluation.
        callbacks, options: see [`Trainer`].

    Raises:
        ValueError: there are fewer than two images to train on.
    """

    project_name = "alignment"
    metric_for_best_model = "rsum"
    curves: Mapping[str, Sequence[str]] = {
        "loss": ["loss"],
        "R@1": ["image_to_text_R@1", "text_to_image_R@1"],
        "R@10": ["image_to_text_R@10", "text_to_image_R@10"],
        "temperature": ["temperature"],
    }
    model: CnnRnnForImageTextRetrieval

    def __init__(
        self,
        model: CnnRnnForImageTextRetrieval,
        processor: CnnRnnAlignmentProcessor,
        train_dataset: CaptionDataset,
        eval_dataset: CaptionDataset,
        accelerator: Accelerator,
        args: TrainingArguments,
        further_scores: Callable[[CnnRnnForImageTextRetrieval], Mapping[str, float]] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        usable = sum(1 for captions in train_dataset.labels if captions)
        if usable < 2:
            raise ValueError(
                f"{usable} images of the training split have a caption of known words: an alignment learns from two or more, "
                "each of which is ranked above the others."
            )
        super().__init__(model, args, accelerator, train_dataset, collate_captions, processor, callbacks, options)
        self.eval_dataset, self.further_scores = eval_dataset, further_scores
        self.any_caption = torch.tensor(next(captions[0] for captions in train_dataset.labels if captions))

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Create AdamW, whose second moments forget quickly as in the training of captioners."""
        groups = decay_groups(self.model, self.args.weight_decay)
        return torch.optim.AdamW(groups, self.args.learning_rate, betas=(0.9, 0.98), fused=True)

    def prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Leave out images without captions, and list the captions of the others with the image of each."""
        batch = super().prepare_inputs(batch)
        labels = batch.pop("labels")  # (B, K, T)
        if not (labels != IGNORE_INDEX).any():
            # several processes take each step together: one without captions has something to compute, see `compute_loss`
            labels = self.any_caption.to(labels.device).expand(len(labels), 1, -1)
        is_caption = (labels != IGNORE_INDEX).any(dim=-1)
        has_caption = is_caption.any(dim=-1)
        tokens = labels[is_caption]
        mask = tokens != IGNORE_INDEX
        numbers = has_caption.cumsum(dim=0) - 1  # of the images that are left
        return {name: value[has_caption] for name, value in batch.items()} | {
            "input_ids": tokens.masked_fill(~mask, self.model.config.pad_token_id or 0),
            "attention_mask": mask.long(),
            "labels": numbers[:, None].expand_as(is_caption)[is_caption],
        }

    def count_items(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Count captions that have negatives, which count the same in the loss, and their images."""
        labels = batch["labels"]
        num_images = labels.max() + 1
        return {"captions": len(labels) * (num_images > 1), "images": num_images * (num_images > 1)}

    def compute_loss(self, model: torch.nn.Module, batch: dict[str, Any], num_items: torch.Tensor) -> torch.Tensor:
        """Compute the ranking loss of a batch; 0 where one image is alone in it, as the last of an epoch may be."""
        num_captions = self.count_items(batch)["captions"]
        if not num_captions:
            return 0.0 * model(**batch, return_loss=False).logits_per_image.sum()
        return model(**batch, return_loss=True).loss * num_captions / num_items

    def log_values(self) -> dict[str, float]:
        """Return the learning rate and the learned temperature."""
        scale = self.model.model.logit_scale
        return super().log_values() | ({} if scale is None else {"temperature": (-scale).exp().item()})

    def evaluate(self) -> dict[str, Any]:
        """Measure the retrieval of the validation captions by images, and of the images by captions."""
        with random_state_kept(self.accelerator.device):
            found = score_dataset(
                self.model,
                self.eval_dataset,
                self.accelerator,
                self.args.per_device_eval_batch_size,
                self.args.dataloader_num_workers,
            )
            scores = flat_metrics(found.scores, found.captions_per_image)
            return scores | dict(self.further_scores(self.model) if self.further_scores else {})
