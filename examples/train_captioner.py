"""
Train a captioner: a CNN sees an image, an RNN writes the sentence.

From nothing, on pictures that the project draws itself:

    python examples/train_captioner.py --dataset_name shapes --output_dir outputs/shapes

On your own photographs, with a CNN that was trained on ImageNet (a folder of images with a metadata.jsonl, a COCO JSON,
a dataset of the Hub: see examples/README.md):

    python examples/train_captioner.py --dataset_name path/to/photographs --encoder_name_or_path microsoft/resnet-50 \
        --cache_image_features --attention_type additive --image_injection initial_state --output_dir outputs/mine

On several processes or GPUs: `accelerate launch examples/train_captioner.py ...` with the same arguments. A training that
was stopped goes on with `--resume_from_checkpoint latest`. `--help` lists every option.
"""

import json
import logging
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from torch.utils.data import DataLoader, RandomSampler
from tqdm.auto import tqdm
from transformers import AutoConfig, get_scheduler

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.data.loading import load_caption_dataset, split_dataset
from modeling_cnnrnn.training.arguments import parse_arguments
from modeling_cnnrnn.training.batching import (
    IGNORED,
    CaptionDataset,
    RandomResizedCrop,
    collate_captions,
    load_stored_image,
)
from modeling_cnnrnn.training.checkpoints import find_checkpoint, remove_old_checkpoints, whole_folder, write_json
from modeling_cnnrnn.training.errors import user_errors
from modeling_cnnrnn.training.evaluation import evaluation_loss, generate_captions, score_captions
from modeling_cnnrnn.training.features import compute_image_features
from modeling_cnnrnn.training.optimization import in_groups, parameter_groups
from modeling_cnnrnn.training.pictures import save_caption_sheet, save_training_curves


logger = logging.getLogger("train_captioner")

# for pictures of 64 x 64: it looks at a grid of 8 x 8 regions
SMALL_CNN = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128],
    "depths": [1, 1, 1],
}


@dataclass
class DataArguments:
    dataset_name: str = field(
        default="shapes",
        metadata={"help": "'shapes', a dataset of the Hub, a folder, or a COCO or Karpathy JSON file."},
    )
    dataset_config_name: str | None = None
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch of the dataset."})
    data_dir: str | None = None
    image_dir: str | None = field(default=None, metadata={"help": "Where the images are, if the rows only name them."})
    image_column: str | None = field(default=None, metadata={"help": "Guessed if not given, as are the next three."})
    caption_column: str | None = None
    image_id_column: str | None = None
    split_column: str | None = None
    train_split: str = "train"
    validation_split: str = field(default="validation", metadata={"help": "Made from the training split if absent."})
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    captions_per_image: int = field(default=5, metadata={"help": "Captions that share one look at their image."})
    max_caption_length: int = field(default=32, metadata={"help": "In tokens, with the end; longer ones are cut."})
    min_frequency: int = field(default=5, metadata={"help": "Rarer words of the training split become <unk>."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the squares a CNN from scratch looks at."})
    random_crop: bool = field(default=False, metadata={"help": "Augment with random resized crops."})
    flip_probability: float = field(default=0.0, metadata={"help": "Of a mirror image: captions say left and right."})
    preload_images: bool = field(default=False, metadata={"help": "Keep processed images in memory (small ones)."})
    cache_image_features: bool = field(
        default=False, metadata={"help": "Compute what a frozen CNN sees once, and train from that."}
    )
    features_cache_dir: str | None = field(default=None, metadata={"help": "By default <output_dir>/image_features."})


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(default=None, metadata={"help": "A captioner to go on from."})
    encoder_name_or_path: str | None = field(default=None, metadata={"help": "A trained CNN, of the Hub or a folder."})
    encoder_config: str | None = field(
        default=None, metadata={"help": 'JSON of a CNN to train from scratch, such as \'{"model_type": "resnet"}\'.'}
    )
    freeze_encoder: bool | None = field(default=None, metadata={"help": "By default a trained CNN is frozen."})
    vision_feature_layer: int = -1
    rnn_type: str = "lstm"
    hidden_size: int = 512
    embedding_size: int = 512
    num_hidden_layers: int = 1
    image_injection: str = "first_token"
    attention_type: str = "none"
    attention_size: int = 512
    attention_regularization: float = 0.0
    dropout: float = 0.5
    embedding_dropout: float = 0.0
    feature_dropout: float = 0.0
    label_smoothing: float = 0.0
    initializer_range: float = 0.05
    tie_word_embeddings: bool = False


@dataclass
class TrainingArguments:
    output_dir: str = "outputs/captioner"
    num_train_epochs: int = 20
    max_train_steps: int | None = field(default=None, metadata={"help": "Instead of num_train_epochs."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "In images."})
    per_device_eval_batch_size: int = 50
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Of the CNN; by default a tenth of it for a trained CNN."}
    )
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 5.0
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Of the CNN: less memory, more time."})
    seed: int = 42
    dataloader_num_workers: int = 0
    eval_epochs: float = field(default=1.0, metadata={"help": "Evaluate and save after so many epochs."})
    num_beams: int = field(default=1, metadata={"help": "Of the sentences that checkpoints are judged by."})
    max_length: int = field(default=24, metadata={"help": "Longest sentence to write, in tokens."})
    logging_steps: int = 10
    save_total_limit: int | None = 2
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "A checkpoint's folder, or 'latest'."})
    report_to: str = field(default="none", metadata={"help": "none, tensorboard, wandb, trackio, ... or all."})


def main():
    data_args, model_args, args = parse_arguments([DataArguments, ModelArguments, TrainingArguments], __doc__)
    logging.basicConfig(format="%(message)s")
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or several processes would not find each other on a CPU
        gradient_accumulation_steps=1,  # the loop below divides by the tokens of all micro-batches itself
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
    )
    is_main = accelerator.is_main_process
    for name in ("train_captioner", "modeling_cnnrnn"):
        logging.getLogger(name).setLevel(logging.INFO if is_main else logging.ERROR)
    transformers.logging.disable_progress_bar()  # of weights, which are read and written in no time
    checkpoint = find_checkpoint(output_dir, args.resume_from_checkpoint)
    set_seed(args.seed)

    # 1. The data: rows of image, image_id and captions
    with accelerator.main_process_first():
        splits = load_caption_dataset(
            data_args.dataset_name,
            data_args.dataset_config_name,
            data_args.dataset_revision,
            data_args.data_dir,
            data_args.image_dir,
            data_args.image_column,
            data_args.caption_column,
            data_args.image_id_column,
            data_args.split_column,
        )
    if data_args.train_split not in splits:
        raise ValueError(f"`train_split` is '{data_args.train_split}', but the dataset has the splits {list(splits)}.")
    if data_args.validation_split not in splits:
        logger.info("No split '%s': a twentieth of the training images is kept for it.", data_args.validation_split)
        splits = split_dataset(splits[data_args.train_split], 0.05, args.seed)
        data_args.train_split, data_args.validation_split = "train", "validation"
    train_rows, eval_rows = splits[data_args.train_split], splits[data_args.validation_split]
    train_rows = train_rows.select(range(min(len(train_rows), data_args.max_train_samples or len(train_rows))))
    eval_rows = eval_rows.select(range(min(len(eval_rows), data_args.max_eval_samples or len(eval_rows))))
    references = eval_rows["captions"][:]
    scenes = eval_rows["scene"][:] if "scene" in eval_rows.column_names else None
    logger.info("%d images to learn from, %d to be judged by.", len(train_rows), len(eval_rows))

    # 2. The model: a captioner to go on from, a trained CNN with a new decoder, or all of it new
    decoder_options = {
        name: value
        for name, value in asdict(model_args).items()
        if name not in ("model_name_or_path", "encoder_name_or_path", "encoder_config", "freeze_encoder")
    }
    pretrained = model_args.model_name_or_path or model_args.encoder_name_or_path
    if model_args.model_name_or_path:
        processor = CnnRnnProcessor.from_pretrained(model_args.model_name_or_path)
        model = CnnRnnForConditionalGeneration.from_pretrained(model_args.model_name_or_path, dtype=torch.float32)
    else:
        tokenizer = build_tokenizer(train_rows["captions"], min_frequency=data_args.min_frequency)
        logger.info("The vocabulary has %d words.", len(tokenizer))
        if model_args.encoder_name_or_path:
            processor = CnnRnnProcessor.from_encoder_pretrained(model_args.encoder_name_or_path, tokenizer)
            model = CnnRnnForConditionalGeneration.from_encoder_pretrained(
                model_args.encoder_name_or_path, tokenizer, **decoder_options
            )
        else:
            size = data_args.image_size or 64
            processor = CnnRnnProcessor.from_image_size(size, tokenizer)
            encoder = json.loads(model_args.encoder_config) if model_args.encoder_config else SMALL_CNN
            model = CnnRnnForConditionalGeneration(
                CnnRnnConfig(
                    encoder=AutoConfig.for_model(**encoder),
                    vocab_size=len(tokenizer),
                    pad_token_id=tokenizer.pad_token_id,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    unk_token_id=tokenizer.unk_token_id,
                    **decoder_options,
                )
            )
    model.generation_config.max_length = args.max_length
    freeze_encoder = bool(pretrained) if model_args.freeze_encoder is None else model_args.freeze_encoder
    if freeze_encoder:
        model.freeze_encoder()
    elif pretrained:
        model.unfreeze_encoder()
    model.get_encoder().cnn.to(memory_format=torch.channels_last)  # what convolutions are fastest with
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    logger.info(
        "%.1f million weights, of which %.1f million are trained.",
        sum(p.numel() for p in model.parameters()) / 1e6,
        sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6,
    )

    # 3. The batches
    augmentation = None
    if data_args.random_crop or data_args.flip_probability > 0:
        smallest = 0.6 if data_args.random_crop else 1.0
        augmentation = RandomResizedCrop((smallest, 1.0), flip_probability=data_args.flip_probability)
    stored: dict[str, dict] = {"train": {}, "eval": {}}
    if data_args.cache_image_features:
        if not freeze_encoder or augmentation is not None:
            raise ValueError(
                "`cache_image_features` needs a frozen CNN and images that stay the same: no augmentation."
            )
        model.to(accelerator.device)
        cache_dir = data_args.features_cache_dir or output_dir / "image_features"
        for name, rows in (("train", train_rows), ("eval", eval_rows)):
            with accelerator.main_process_first():
                features, broken = compute_image_features(model, processor, rows, cache_dir)
            stored[name] = {"image_features": features, "broken": broken}
    options = {"preload": data_args.preload_images, "seed": args.seed, "max_length": data_args.max_caption_length}
    train_dataset = CaptionDataset(
        train_rows, processor, data_args.captions_per_image, augmentation=augmentation, **stored["train"], **options
    )
    eval_dataset = CaptionDataset(
        eval_rows, processor, max(len(captions) for captions in references), **stored["eval"], **options
    )
    if train_dataset.num_captions_left_out:
        logger.warning("%d captions without a known word are left out.", train_dataset.num_captions_left_out)
    order = torch.Generator()
    loader = accelerator.prepare(
        DataLoader(
            train_dataset,
            args.per_device_train_batch_size,
            sampler=RandomSampler(train_dataset, generator=order),
            generator=order,  # else each new iterator would draw from the generator of the dropout
            collate_fn=collate_captions,
            num_workers=args.dataloader_num_workers,
        )
    )

    # 4. The optimiser
    encoder_learning_rate = args.encoder_learning_rate or args.learning_rate * (0.1 if pretrained else 1.0)
    groups = parameter_groups(model, args.learning_rate, encoder_learning_rate, args.weight_decay)
    optimizer = torch.optim.AdamW(groups, args.learning_rate, betas=(0.9, 0.98), fused=True)
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    num_steps = args.max_train_steps or steps_per_epoch * args.num_train_epochs
    eval_steps = max(1, round(steps_per_epoch * args.eval_epochs))
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=round(args.warmup_ratio * num_steps),
        num_training_steps=num_steps,
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    captioner = accelerator.unwrap_model(model)
    trained = [parameter for group in groups for parameter in group["params"]]

    # 5. Where it stands: all that `trainer_state.json` holds
    state: dict = {"step": 0, "best": None, "steps": [], "evaluations": [], "broken_images": {}, "seconds": 0.0}
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        logger.info("Going on from %s, step %d.", checkpoint, state["step"])
    if args.report_to != "none":
        accelerator.init_trackers("captioner", config={k: v for k, v in asdict(args).items() if v is not None})

    def evaluate():
        scores = {"step": state["step"], "loss": evaluation_loss(
            captioner, eval_dataset, accelerator, args.per_device_eval_batch_size, args.dataloader_num_workers
        )}  # fmt: skip
        captions = generate_captions(
            captioner,
            eval_dataset,
            accelerator,
            args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            num_beams=args.num_beams,
        )
        values, _ = score_captions(captions, references, scenes=scenes)
        scores |= values
        state["evaluations"].append(scores)
        shown = " ".join(
            f"{name} {value:.4f}" for name, value in scores.items() if name not in ("step", "BLEU-2", "BLEU-3")
        )
        logger.info("step %d: %s", state["step"], shown)
        for caption in captions[:3]:
            logger.info("    %s: %s", eval_dataset.image_ids[caption.row], caption.caption)
        is_best = state["best"] is None or scores["CIDEr"] > state["best"]["CIDEr"]
        if is_best:
            state["best"] = scores
        if is_main:
            sheet = captions[:: max(1, len(captions) // 12)][:12]
            save_caption_sheet(
                output_dir / "samples" / f"step-{state['step']:06d}.png",
                [load_stored_image(eval_dataset.images[caption.row]["image"]) for caption in sheet],
                [caption.caption for caption in sheet],
            )
            save_training_curves(output_dir / "training_curves.png", state["steps"], state["evaluations"])
            if is_best:
                with whole_folder(output_dir / "best") as folder:
                    captioner.save_pretrained(folder)
                    processor.save_pretrained(folder)
        if args.report_to != "none":
            accelerator.log({f"eval/{name}": value for name, value in values.items()}, step=state["step"])
            accelerator.log({"eval/loss": scores["loss"]}, step=state["step"])
        accelerator.wait_for_everyone()

    def save_checkpoint():
        with whole_folder(output_dir / f"checkpoint-{state['step']}", accelerator) as folder:
            accelerator.save_state(str(folder))
            if is_main:
                write_json(folder / "trainer_state.json", state)
        if is_main:
            remove_old_checkpoints(output_dir, args.save_total_limit)

    # 6. Learn
    set_seed(args.seed, device_specific=True) if checkpoint is None else None
    started = time.perf_counter() - state["seconds"]
    bar = tqdm(total=num_steps, initial=state["step"], desc="Training", unit="step", disable=not is_main)
    model.train()
    while state["step"] < num_steps:
        epoch, done = divmod(state["step"], steps_per_epoch)
        train_dataset.epoch = epoch
        order.manual_seed(args.seed + epoch)
        batches = accelerator.skip_first_batches(loader, done * args.gradient_accumulation_steps) if done else loader
        for micro_batches in in_groups(batches, args.gradient_accumulation_steps):
            for batch in micro_batches:
                state["broken_images"] |= dict(batch.pop("broken"))
            num_tokens = torch.stack([(batch["labels"] != IGNORED).sum() for batch in micro_batches]).sum().clamp(min=1)
            # the loss is a sum over the tokens of all processes, and their gradients are averaged
            num_tokens = accelerator.reduce(num_tokens, reduction="sum") / accelerator.num_processes
            loss = torch.zeros((), device=accelerator.device)
            for index, batch in enumerate(micro_batches):
                is_last = index == len(micro_batches) - 1
                with nullcontext() if is_last else accelerator.no_sync(model):
                    share = model(**batch, num_items_in_batch=num_tokens).loss
                    accelerator.backward(share)
                loss += share.detach()
            accelerator.clip_grad_norm_(trained, args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            state["step"] += 1
            bar.update()

            if state["step"] % args.logging_steps == 0 or state["step"] == num_steps:
                loss = accelerator.reduce(loss, reduction="mean").item()
                if not math.isfinite(loss):
                    raise ValueError(f"The loss is {loss} at step {state['step']}: pass a smaller --learning_rate.")
                row = {"step": state["step"], "loss": loss, "learning_rate": scheduler.get_last_lr()[0]}
                state["steps"].append(row)
                bar.set_postfix(loss=f"{loss:.3f}", epoch=epoch)
                if args.report_to != "none":
                    accelerator.log({"train/loss": loss, "train/learning_rate": row["learning_rate"]}, step=row["step"])
            if state["step"] % eval_steps == 0 or state["step"] == num_steps:
                evaluate()
                state["seconds"] = time.perf_counter() - started
                save_checkpoint()
            if state["step"] == num_steps:
                break
    bar.close()

    # 7. The folder that `from_pretrained` loads: the best checkpoint by CIDEr
    if state["broken_images"]:
        logger.warning("%d images could not be read and were left out:", len(state["broken_images"]))
        for image_id, reason in sorted(state["broken_images"].items()):
            logger.warning("    %s: %s", image_id, reason)
    if is_main:
        shutil.copytree(output_dir / "best", output_dir, dirs_exist_ok=True)
        write_json(
            output_dir / "training_results.json",
            {"best": state["best"], "evaluations": state["evaluations"], "seconds": state["seconds"]}
            | {"data": asdict(data_args), "model": asdict(model_args), "training": asdict(args)},
        )
        logger.info("The captioner with the best CIDEr (%.4f) lies in %s", state["best"]["CIDEr"], output_dir)
        logger.info("Curves: %s   Samples: %s", output_dir / "training_curves.png", output_dir / "samples")
    accelerator.end_training()


if __name__ == "__main__":
    with user_errors():
        main()
