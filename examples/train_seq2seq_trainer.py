r"""
Train a captioner with transformers' own `Seq2SeqTrainer`: what `train_captioner.py` does, without its stages and caches.

    python examples/train_seq2seq_trainer.py --output_dir outputs/shapes_trainer
    python examples/train_seq2seq_trainer.py --dataset_name path/to/photographs \
        --encoder_name_or_path microsoft/resnet-50 --attention_type additive --image_injection initial_state

All options of `Seq2SeqTrainingArguments` are there: `--bf16`, `--gradient_accumulation_steps`, `--generation_num_beams`,
`--resume_from_checkpoint latest`. On several GPUs: `accelerate launch --multi_gpu examples/train_seq2seq_trainer.py ...`.
"""

import logging
from dataclasses import asdict, dataclass, field

import torch
from transformers import (
    AutoConfig,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import RESUME_TRAINING, user_errors
from modeling_cnnrnn.data.batching import CaptionDataset, collate_captions
from modeling_cnnrnn.data.loading import check_images, load_caption_dataset, split_dataset
from modeling_cnnrnn.metrics import caption_metrics


logger = logging.getLogger("train_seq2seq_trainer")

# a CNN for small pictures: of 64 x 64 pixels it makes a grid of 4 x 4 regions
SMALL_CNN = {"layer_type": "basic", "embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1]}


@dataclass
class DataArguments:
    """Choose the images and captions to train on."""

    dataset_name: str = field(
        default="shapes", metadata={"help": "'shapes', a dataset of the Hub, a folder, or a JSON file of captions."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder of the images, for a dataset that only names them."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images at most."})
    max_caption_length: int = field(
        default=32, metadata={"help": "Longest caption to train on, in tokens with the end token; longer ones are cut."}
    )
    min_frequency: int = field(
        default=5, metadata={"help": "Words that are rarer than this in the training split become <unk>."}
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square images that the CNN receives. Defaults to the size that a pretrained CNN was "
            "trained with, and to 64 for a CNN from scratch."
        },
    )
    captions_per_image: int = field(
        default=5, metadata={"help": "Captions of an image that are trained on together, with one pass of the CNN."}
    )


@dataclass
class ModelArguments:
    """Choose the layers of the captioner."""

    encoder_name_or_path: str | None = field(default=None, metadata={"help": "Pretrained CNN, which stays frozen."})
    rnn_type: str = field(default="lstm", metadata={"help": "Recurrent layer: lstm, gru, rnn_tanh or rnn_relu."})
    hidden_size: int = field(default=512, metadata={"help": "Size of the recurrent state."})
    embedding_size: int = field(default=512, metadata={"help": "Size of the word embeddings and projected regions."})
    image_injection: str = field(
        default="first_token",
        metadata={"help": "How the image enters: first_token, initial_state, bias_first_step or bias_every_step."},
    )
    attention_type: str = field(default="none", metadata={"help": "Attention over image regions: additive, or none."})
    dropout: float = field(default=0.5, metadata={"help": "Dropout after the recurrent layers."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Probability mass spread over all words."})


@dataclass
class TrainingArguments(Seq2SeqTrainingArguments):
    """Set the options of `Seq2SeqTrainer`, with defaults for captioners."""

    output_dir: str | None = field(default="outputs/captioner", metadata={"help": "Folder of the trained captioner."})
    num_train_epochs: float = field(default=20, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images in a batch of one process."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Highest learning rate of AdamW."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Norm that gradients are clipped to."})
    remove_unused_columns: bool = (
        False  # the dataset makes the model's inputs from columns that the model does not know
    )
    predict_with_generate: bool = True
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep; older ones are removed."})
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "CIDEr"
    report_to: str | None = field(default="none", metadata={"help": "Experiment trackers: tensorboard, ..., or none."})


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    batch = collate_captions(examples)
    del batch["rows"], batch["broken"]  # not tensors; unreadable images were left out before
    if batch["labels"].shape[1] == 1:  # evaluation pads only labels of two dimensions
        batch["labels"] = batch["labels"].squeeze(1)
    return batch


def build_captioner(
    tokenizer: PreTrainedTokenizerBase, model_args: ModelArguments, image_size: int | None
) -> tuple[CnnRnnForConditionalGeneration, CnnRnnProcessor]:
    options = asdict(model_args)
    encoder = options.pop("encoder_name_or_path")
    if encoder:
        processor = CnnRnnProcessor.from_encoder_pretrained(encoder, tokenizer, image_size)
        model = CnnRnnForConditionalGeneration.from_encoder_pretrained(encoder, tokenizer, **options)
        model.freeze_encoder()
    else:
        processor = CnnRnnProcessor.from_image_size(image_size or 64, tokenizer)
        encoder_config = AutoConfig.for_model("resnet", **SMALL_CNN)
        config = CnnRnnConfig.from_tokenizer(tokenizer, encoder=encoder_config, **options)
        model = CnnRnnForConditionalGeneration(config)
    return model, processor


def main():
    data_args, model_args, args = parse_arguments([DataArguments, ModelArguments, TrainingArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if args.should_log else logging.ERROR)
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor` is {args.label_smoothing_factor}: the model smooths, pass --label_smoothing."
        )
    set_seed(args.seed)

    # 1. The data: rows of image, image_id and captions, without the images that cannot be read
    with args.main_process_first():
        splits = load_caption_dataset(data_args.dataset_name, image_dir=data_args.image_dir)
        if "train" not in splits:
            raise ValueError(f"`dataset_name` is '{data_args.dataset_name}', which has no train split: {list(splits)}.")
        splits = splits if "validation" in splits else split_dataset(splits["train"], 0.05, args.seed)
    limits = {"train": data_args.max_train_samples, "validation": data_args.max_eval_samples}
    for name, limit in limits.items():
        splits[name], broken = check_images(
            splits[name].select(range(min(len(splits[name]), limit or len(splits[name]))))
        )
        for image_id, reason in broken:
            logger.warning("Left out of %s, image %s: %s", name, image_id, reason)
    references = dict(enumerate(splits["validation"]["captions"][:]))

    # 2. The model: a pretrained CNN with a new decoder, or all of it new
    tokenizer = build_tokenizer(splits["train"]["captions"], min_frequency=data_args.min_frequency)
    model, processor = build_captioner(tokenizer, model_args, data_args.image_size)

    # 3. Train; the loss of an evaluation is that of one caption of each image, its scores are those of all references
    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        ids = torch.from_numpy(prediction.predictions)
        texts = processor.batch_decode(ids.masked_fill(ids < 0, tokenizer.pad_token_id), skip_special_tokens=True)
        scores = caption_metrics(texts, [references[row] for row in range(len(texts))], ["bleu", "rouge", "cider"])
        return {name: value for name, value in scores.items() if value is not None}

    lengths = {"max_length": data_args.max_caption_length, "seed": args.seed}
    train_dataset = CaptionDataset(splits["train"], processor, data_args.captions_per_image, **lengths)
    eval_dataset = CaptionDataset(splits["validation"], processor, 1, **lengths)
    train_dataset.check("train")
    eval_dataset.check("validation")
    trainer = Seq2SeqTrainer(
        model,
        args,
        data_collator=collate,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=compute_metrics,
    )
    checkpoint = args.resume_from_checkpoint
    trainer.train(get_last_checkpoint(args.output_dir) if checkpoint == "latest" else checkpoint)

    # 4. The folder that `from_pretrained` loads: the best checkpoint by CIDEr
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("eval", trainer.evaluate())
    logger.info("The captioner is in %s", args.output_dir)


if __name__ == "__main__":
    with user_errors(RESUME_TRAINING):
        main()
