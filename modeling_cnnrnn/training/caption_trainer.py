"""The trainer of captioners: scheduled sampling, self-critical training, and the scores of generated captions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler

from ..data.batching import CaptionDataset, collate_captions, load_stored_image
from ..data.reporting import left_out
from ..evaluation.captions import GeneratedCaption, evaluate_captioner, score_captions
from ..live.views import CaptionerView
from ..models.loss_cnnrnn import IGNORE_INDEX
from ..models.modeling_cnnrnn import CnnRnnForConditionalGeneration
from ..models.processing_cnnrnn import CnnRnnProcessor
from .arguments import CaptionModelArguments, StageArguments, TrainingArguments
from .averaging import AveragedWeights
from .callbacks import TrainerCallback, random_state_kept
from .curves import save_caption_sheet
from .networks import Networks
from .optimization import parameter_groups, two_stage_scheduler, unfreeze_encoder_layers
from .self_critical import SelfCritical, turn_off_dropout
from .stages import Stage, Stages, scheduled_sampling_probability, switch_step
from .tracking import log_samples
from .trainer import Trainer


logger = logging.getLogger(__name__)


class CaptionTrainer(Trainer):
    """
    Train a captioner by cross-entropy, then if it is asked for on the scores of its own sentences.

    The best checkpoint is the one with the highest CIDEr of the validation images. `captions` are those of the last
    evaluation, for callbacks.

    Args:
        model: the captioner, as [`~modeling_cnnrnn.training.captioning.prepare_encoder`] leaves it.
        processor: the captioner's processor.
        train_dataset: images to train on.
        eval_dataset: images to evaluate on, with all their captions.
        accelerator: as [`create_accelerator`] makes it.
        args, model_args, stage_args: options of the training, the captioner and the stages.
        train_captions: captions of each row of `train_dataset`: the references of self-critical training.
        references: captions of each row of `eval_dataset`.
        checker: tells whether a sentence is true of an image of `eval_dataset`, see [`score_captions`].
        callbacks, options, networks: see [`Trainer`].

    Raises:
        ValueError: two options of a stage do not fit each other.
    """

    project_name = "captioner"
    metric_for_best_model = "CIDEr"
    curves: Mapping[str, Sequence[str]] = {
        "loss (nats per token)": ["loss"],
        "CIDEr": ["CIDEr"],
        "other scores": ["BLEU-1", "BLEU-4", "ROUGE-L", "accuracy"],
        "reward of sampled sentences": ["reward", "baseline"],
    }
    model: CnnRnnForConditionalGeneration
    stage: Stage

    def __init__(
        self,
        model: CnnRnnForConditionalGeneration,
        processor: CnnRnnProcessor,
        train_dataset: CaptionDataset,
        eval_dataset: CaptionDataset,
        accelerator: Accelerator,
        args: TrainingArguments,
        model_args: CaptionModelArguments,
        stage_args: StageArguments,
        train_captions: Sequence[Sequence[str]],
        references: Sequence[Sequence[str]],
        checker: Callable[[str, int], bool] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        networks: Networks | None = None,
    ):
        super().__init__(
            model, args, accelerator, train_dataset, collate_captions, processor, callbacks, options, networks
        )
        self.eval_dataset, self.references, self.checker = eval_dataset, references, checker
        self.model_args, self.stage_args = model_args, stage_args
        self.captions: list[GeneratedCaption] = []
        self.train_ids = {*train_dataset.image_ids}
        encoder_step = switch_step(
            "unfreeze_encoder",
            stage_args.unfreeze_encoder_after_epochs,
            stage_args.unfreeze_encoder_after_steps,
            self.steps_per_epoch,
        )
        self.self_critical_step = switch_step(
            "self_critical",
            stage_args.self_critical_after_epochs,
            stage_args.self_critical_after_steps,
            self.steps_per_epoch,
        )
        starts_frozen = model_args.freezes_encoder(stage_args)
        self.stages = Stages(encoder_step if starts_frozen else 0, self.self_critical_step)
        self.self_critical: SelfCritical | None = None
        if self.self_critical_step is not None:
            self.self_critical = SelfCritical(
                processor.tokenizer,
                train_captions,
                cider_weight=stage_args.self_critical_cider_weight,
                bleu_weight=stage_args.self_critical_bleu_weight,
                num_samples=stage_args.self_critical_num_samples,
                baseline=stage_args.self_critical_baseline,  # type: ignore[arg-type]
                cross_entropy_weight=stage_args.self_critical_cross_entropy_weight,
                max_length=model_args.max_length,
            )
            if accelerator.is_main_process:
                self.output_dir.mkdir(parents=True, exist_ok=True)
                self.self_critical.document_frequency.save(self.output_dir / "document_frequency.safetensors")

    def create_optimizer(self) -> torch.optim.Optimizer:
        """Create AdamW with groups for the decoder and for the layers of the CNN that any stage trains."""
        rate, stage_args = self.args.learning_rate, self.stage_args
        encoder_rate = stage_args.encoder_learning_rate or rate * (0.1 if self.model_args.is_pretrained else 1.0)
        groups = parameter_groups(
            self.model, rate, encoder_rate, self.args.weight_decay, stage_args.encoder_layer_decay
        )
        return torch.optim.AdamW(groups, rate, betas=(0.9, 0.98), fused=True)

    def create_scheduler(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Create the learning-rate schedule, which begins again with self-critical training."""
        args = self.args
        factor = self.stage_args.self_critical_learning_rate / args.learning_rate
        return two_stage_scheduler(
            args.lr_scheduler_type, optimizer, args.warmup_ratio, self.num_steps, self.self_critical_step, factor
        )

    def create_averaged_weights(self) -> AveragedWeights:
        """Create the moving average, without a warmup for a captioner that is trained already."""
        return AveragedWeights(self.model, self.args.ema_decay, warmup=self.model_args.model_name_or_path is None)

    def stage_at(self, step: int) -> Stage:
        """Return the stage of a step."""
        return self.stages.at(step)

    def begin_stage(self) -> bool:
        """Unfreeze what this stage trains."""
        if not self.stage.trains_encoder:
            self.model.freeze_encoder()
        elif self.model_args.is_pretrained or self.stage_args.unfreezes_encoder:
            unfreeze_encoder_layers(self.model, self.stage_args.unfreeze_encoder_from_layer)
            # stored features would not follow the CNN as it changes
            self.train_dataset.image_features = self.eval_dataset.image_features = None  # type: ignore[attr-defined]
        if self.stage.self_critical:
            turn_off_dropout(self.model)
        # a CNN may have weights that its feature map does not depend on
        return self.stage.trains_encoder

    def end_stage(self, next_stage: Any) -> None:
        """Begin self-critical training from the averaged weights."""
        if next_stage.self_critical and not self.stage.self_critical:
            self.averaged.adopt()

    def prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take a batch as it is, or in self-critical training sample sentences in place of its captions."""
        rows = batch["rows"]
        batch = super().prepare_inputs(batch)
        if self.stage.self_critical and self.self_critical is not None:
            with self.accelerator.autocast():  # sample in the precision used for training
                batch, statistics = self.self_critical.sample(self.model, batch, rows)
            self.record(**statistics)
        return batch

    def count_items(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Count tokens, captions and images; each token counts the same in the loss."""
        is_token = batch["labels"] != IGNORE_INDEX
        return {
            "tokens": is_token.sum(),
            "captions": is_token.any(-1).sum(),
            "images": is_token.flatten(1).any(-1).sum(),
        }

    def compute_loss(self, model: torch.nn.Module, batch: dict[str, Any], num_items: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a batch, with scheduled sampling."""
        probability = self._scheduled_sampling_probability(self.state.step)
        options = {"scheduled_sampling_probability": probability} if probability else {}
        return model(**batch, num_items_in_batch=num_items, **options).loss

    def _scheduled_sampling_probability(self, step: int) -> float:
        args = self.stage_args
        if self.stage.self_critical:
            return 0.0
        return scheduled_sampling_probability(
            step / self.steps_per_epoch,
            args.scheduled_sampling_start,
            args.scheduled_sampling_increase,
            args.scheduled_sampling_max,
        )

    def log_values(self) -> dict[str, float]:
        """Return the learning rates of the decoder and of the CNN's last layer, and scheduled sampling."""
        rates = {group["name"]: group["lr"] for group in self.optimizer.param_groups}
        values = {"learning_rate": rates["decoder"]}
        if self.stage.trains_encoder and "encoder" in rates:
            values["encoder_learning_rate"] = rates["encoder"]
        if probability := self._scheduled_sampling_probability(self.state.step - 1):  # of the step that was taken
            values["scheduled_sampling_probability"] = probability
        return values

    def evaluate(self) -> dict[str, Any]:
        """Compute the loss of the validation captions, and score generated ones; a sheet shows some of them."""
        with random_state_kept(self.accelerator.device):
            evaluation = evaluate_captioner(
                self.model,
                self.eval_dataset,
                self.accelerator,
                self.args.per_device_eval_batch_size,
                self.args.dataloader_num_workers,
                [{"num_beams": self.model_args.num_beams}],
            )
        self._note_broken(evaluation.broken)
        # Each evaluation moves the random state on by three draws, whatever it draws itself. The published results of the
        # recipes were made with that state: without these draws a seed would give other ones.
        for _ in range(3):
            torch.empty((), dtype=torch.int64).random_()
        (self.captions,) = evaluation.captions
        scores, _ = score_captions(self.captions, self.references, checker=self.checker)
        for caption in self.captions[:3]:
            logger.info("    %s: %s", self.eval_dataset.image_ids[caption.row], caption.caption)
        return {"loss": evaluation.loss, **scores}

    def make_view(self) -> CaptionerView:
        """Make the view of the captioner for the page of the training."""
        return CaptionerView(self.model, self.accelerator, self.processing_class, self.eval_dataset)  # type: ignore[arg-type]

    def _note_broken(self, broken: Mapping[int, str]) -> None:
        """Count and name, once, the images to evaluate on that cannot be read: the scores are those of the others."""
        ids = self.eval_dataset.image_ids
        # an image to train on may have the same name in another folder
        names = {row: f"{ids[row]} (validation)" if ids[row] in self.train_ids else ids[row] for row in broken}
        new = [name for name in names.values() if name not in self.state.broken_images]
        left_out("the scores", "images to evaluate on that cannot be read", new)
        self.state.broken_images |= {names[row]: reason for row, reason in broken.items()}

    def draw(self) -> None:
        """Draw some captions below their images, and send the sheet to the trackers."""
        captions = self.captions[:: max(1, len(self.captions) // 12)][:12]
        step = self.state.step
        sheet = self.output_dir / "samples" / f"step-{step:06d}.png"
        images = [load_stored_image(self.eval_dataset.images[caption.row]["image"]) for caption in captions]
        save_caption_sheet(sheet, images, [caption.caption for caption in captions])
        if self.accelerator.log_with:
            sentences = {self.eval_dataset.image_ids[caption.row]: caption.caption for caption in captions}
            log_samples(self.accelerator, sheet, sentences, step)
