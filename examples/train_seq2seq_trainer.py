"""
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
from transformers import AutoConfig, EvalPrediction, Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.data.batching import CaptionDataset, collate_captions
from modeling_cnnrnn.data.loading import check_images, load_caption_dataset, split_dataset
from modeling_cnnrnn.metrics import caption_metrics


logger = logging.getLogger("train_seq2seq_trainer")

# for pictures of 64 x 64: it looks at a grid of 8 x 8 regions
SMALL_CNN = {"layer_type": "basic", "embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1]}


@dataclass
class DataArguments:
    dataset_name: str = field(default="shapes", metadata={"help": "As in train_captioner.py."})
    image_dir: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_caption_length: int = field(default=32, metadata={"help": "In tokens, with the end; longer ones are cut."})
    min_frequency: int = field(default=5, metadata={"help": "Rarer words of the training split become <unk>."})
    image_size: int = field(default=64, metadata={"help": "Side of the squares that a CNN from scratch looks at."})
    captions_per_image: int = field(default=5, metadata={"help": "Captions that share one look at their image."})


@dataclass
class ModelArguments:
    encoder_name_or_path: str | None = field(default=None, metadata={"help": "A trained CNN, which stays frozen."})
    rnn_type: str = "lstm"
    hidden_size: int = 512
    embedding_size: int = 512
    image_injection: str = "first_token"
    attention_type: str = "none"
    dropout: float = 0.5
    label_smoothing: float = 0.0


@dataclass
class TrainingArguments(Seq2SeqTrainingArguments):
    output_dir: str | None = "outputs/captioner"
    num_train_epochs: float = 20
    per_device_train_batch_size: int = field(default=32, metadata={"help": "In images."})
    learning_rate: float = 1e-3
    max_grad_norm: float = 5.0
    remove_unused_columns: bool = False  # a dataset makes the columns of the model from others
    predict_with_generate: bool = True
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = "CIDEr"
    report_to: str | None = "none"


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    batch = collate_captions(examples)
    del batch["rows"], batch["broken"]  # no tensors; all images have been looked at before
    if batch["labels"].shape[1] == 1:  # evaluation pads labels of two dimensions only
        batch["labels"] = batch["labels"].squeeze(1)
    return batch


def main():
    data_args, model_args, args = parse_arguments([DataArguments, ModelArguments, TrainingArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO if args.should_log else logging.ERROR)
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor` is {args.label_smoothing_factor}: the model smooths, --label_smoothing."
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

    # 2. The model: a trained CNN with a new decoder, or all of it new
    tokenizer = build_tokenizer(splits["train"]["captions"], min_frequency=data_args.min_frequency)
    options = {name: value for name, value in asdict(model_args).items() if name != "encoder_name_or_path"}
    if model_args.encoder_name_or_path:
        encoder = model_args.encoder_name_or_path
        processor = CnnRnnProcessor.from_encoder_pretrained(encoder, tokenizer)
        model = CnnRnnForConditionalGeneration.from_encoder_pretrained(encoder, tokenizer, **options)
        model.freeze_encoder()
    else:
        processor = CnnRnnProcessor.from_image_size(data_args.image_size, tokenizer)
        encoder_config = AutoConfig.for_model("resnet", **SMALL_CNN)
        model = CnnRnnForConditionalGeneration(
            CnnRnnConfig.from_tokenizer(tokenizer, encoder=encoder_config, **options)
        )

    # 3. Learn; the loss of an evaluation is that of one caption of each image, its scores are those of all references
    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        ids = torch.from_numpy(prediction.predictions)
        texts = processor.batch_decode(ids.masked_fill(ids < 0, tokenizer.pad_token_id), skip_special_tokens=True)
        scores = caption_metrics(dict(enumerate(texts)), references, ["bleu", "rouge", "cider"])
        return {name: value for name, value in scores.items() if value is not None}

    lengths = {"max_length": data_args.max_caption_length, "seed": args.seed}
    trainer = Seq2SeqTrainer(
        model,
        args,
        data_collator=collate,
        train_dataset=CaptionDataset(splits["train"], processor, data_args.captions_per_image, **lengths),
        eval_dataset=CaptionDataset(splits["validation"], processor, 1, **lengths),
        processing_class=processor,
        compute_metrics=compute_metrics,
    )
    checkpoint = args.resume_from_checkpoint
    trainer.train(get_last_checkpoint(args.output_dir) if checkpoint == "latest" else checkpoint)

    # 4. The folder that `from_pretrained` loads: the best checkpoint by CIDEr
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("eval", trainer.evaluate())
    logger.info("The captioner lies in %s", args.output_dir)


if __name__ == "__main__":
    with user_errors():
        main()
