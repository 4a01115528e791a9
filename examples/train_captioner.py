"""
Train a captioner: a CNN sees an image, an RNN writes the sentence.

From nothing, on pictures that the project draws itself:

    python examples/train_captioner.py --dataset_name shapes --output_dir outputs/shapes

On your own photographs, with a CNN that was trained on ImageNet (a folder of images with a metadata.jsonl, a COCO JSON,
a dataset of the Hub: see examples/README.md):

    python examples/train_captioner.py --dataset_name path/to/photographs --encoder_name_or_path microsoft/resnet-50 \
        --cache_image_features --output_dir outputs/mine

In stages: first the decoder alone, then the CNN too (`--unfreeze_encoder_after_epochs 5 --unfreeze_encoder_from_layer -2`),
then from the scores of its own sentences (`--self_critical_after_epochs 8`).

On several GPUs: `accelerate launch --multi_gpu examples/train_captioner.py ...`; on several processes of a CPU: `torchrun
--nproc_per_node 2 examples/train_captioner.py ...`. A training that was stopped, or killed, goes on with
`--resume_from_checkpoint latest`, bit by bit as if nothing had happened. `--help` lists every option.
"""

import json
import logging
import math
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    ProjectConfiguration,
    gather_object,
    set_seed,
)
from huggingface_hub import get_token
from torch.utils.data import DataLoader, RandomSampler
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import AutoConfig

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.cli.arguments import parse_arguments
from modeling_cnnrnn.cli.errors import user_errors
from modeling_cnnrnn.data.batching import (
    CaptionDataset,
    RandomResizedCrop,
    collate_captions,
    load_stored_image,
)
from modeling_cnnrnn.data.loading import load_dataset_from, split_dataset
from modeling_cnnrnn.data.shapes.language import checker
from modeling_cnnrnn.evaluation.captions import evaluate_captioner, score_captions
from modeling_cnnrnn.evaluation.provenance import EnergyMeter, peak_memory, provenance
from modeling_cnnrnn.files import copy_files, whole_folder, write_json
from modeling_cnnrnn.hub.push import push_captioner
from modeling_cnnrnn.models.loss_cnnrnn import IGNORE_INDEX
from modeling_cnnrnn.training.arguments import (
    CaptionDataArguments,
    CaptionModelArguments,
    StageArguments,
    TrainingArguments,
)
from modeling_cnnrnn.training.checkpoints import find_checkpoint, remove_later_checkpoints, remove_old_checkpoints
from modeling_cnnrnn.training.curves import save_caption_sheet, save_training_curves
from modeling_cnnrnn.training.features import compute_image_features
from modeling_cnnrnn.training.optimization import (
    AveragedWeights,
    in_groups,
    parameter_groups,
    two_stage_scheduler,
    unfreeze_encoder_layers,
    without_repeats,
)
from modeling_cnnrnn.training.self_critical import SelfCritical, turn_off_dropout
from modeling_cnnrnn.training.sharding import unsharded, whole_weights
from modeling_cnnrnn.training.stages import Stage, Stages, scheduled_sampling_probability, switch_step
from modeling_cnnrnn.training.tracking import find_trackers, log_samples


logger = logging.getLogger("train_captioner")

# for pictures of 64 x 64: it looks at a grid of 8 x 8 regions
SMALL_CNN = {
    "model_type": "resnet",
    "layer_type": "basic",
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 128],
    "depths": [1, 1, 1],
}


def main():
    data_args, model_args, args, stage_args = parse_arguments(
        [CaptionDataArguments, CaptionModelArguments, TrainingArguments, StageArguments], __doc__
    )
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # or several processes would not find each other on a CPU
        gradient_accumulation_steps=1,  # the loop below divides by the tokens of all micro-batches itself
        mixed_precision=args.mixed_precision,
        log_with=find_trackers(args.report_to),
        kwargs_handlers=[wrapping := DistributedDataParallelKwargs()],
        project_config=ProjectConfiguration(project_dir=str(output_dir), logging_dir=str(output_dir / "logs")),
    )
    is_main = accelerator.is_main_process
    for name in ("train_captioner", "modeling_cnnrnn"):
        logging.getLogger(name).setLevel(logging.INFO if is_main else logging.ERROR)
    transformers.logging.disable_progress_bar()  # of weights, which are read and written in no time
    is_sharded = accelerator.distributed_type == DistributedType.FSDP
    unfreezes = (stage_args.unfreeze_encoder_after_epochs, stage_args.unfreeze_encoder_after_steps) != (None, None)
    self_critical_options = (stage_args.self_critical_after_epochs, stage_args.self_critical_after_steps)
    if is_sharded and not accelerator.is_fsdp2:
        raise ValueError("FSDP is of version 1: pass `--fsdp_version 2` to `accelerate launch`.")
    if is_sharded and (unfreezes or args.max_grad_value or self_critical_options != (None, None)):
        raise ValueError(
            "FSDP can only train in one stage, by cross-entropy, and clip gradients by their norm: leave out "
            "`unfreeze_encoder_after_...`, `self_critical_after_...` and `max_grad_value`, or train without FSDP."
        )
    checkpoint = find_checkpoint(output_dir, args.resume_from_checkpoint)
    if args.push_to_hub and get_token() is None:
        raise ValueError("`push_to_hub` needs a token of the Hub: run `hf auth login`, or set HF_TOKEN.")
    existing = find_checkpoint(output_dir, "latest")
    if args.resume_from_checkpoint is None and existing is not None and not args.overwrite_output_dir:
        raise ValueError(
            f"`output_dir` holds {existing.name} of an earlier training: go on from it with --resume_from_checkpoint "
            "latest, remove it with --overwrite_output_dir true, or pass another folder."
        )
    set_seed(args.seed)

    # 1. The data: rows of image, image_id and captions
    with accelerator.main_process_first():
        splits = load_dataset_from(data_args)
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
            processor = CnnRnnProcessor.from_encoder_pretrained(
                model_args.encoder_name_or_path, tokenizer, data_args.image_size
            )
            model = CnnRnnForConditionalGeneration.from_encoder_pretrained(
                model_args.encoder_name_or_path, tokenizer, **decoder_options
            )
        else:
            size = data_args.image_size or 64
            processor = CnnRnnProcessor.from_image_size(size, tokenizer)
            encoder = json.loads(model_args.encoder_config) if model_args.encoder_config else SMALL_CNN
            config = CnnRnnConfig.from_tokenizer(tokenizer, encoder=AutoConfig.for_model(**encoder), **decoder_options)
            model = CnnRnnForConditionalGeneration(config)
    model.generation_config.max_length = args.max_length
    starts_frozen = model_args.freeze_encoder
    if starts_frozen is None:
        starts_frozen = bool(pretrained) or unfreezes
    elif unfreezes and not starts_frozen:
        raise ValueError("`freeze_encoder` is False, so there is nothing to unfreeze: leave one of the two out.")
    if pretrained or unfreezes:
        unfreeze_encoder_layers(model, stage_args.unfreeze_encoder_from_layer)
    if starts_frozen and not unfreezes:
        model.freeze_encoder()
    if not is_sharded:  # which takes weights in their usual layout alone
        model.get_encoder().cnn.to(memory_format=torch.channels_last)  # what convolutions are fastest with
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    if args.torch_compile:
        model.get_encoder().cnn.compile()  # in place; sentences differ in length, and each would be compiled anew

    # 3. The batches
    augmentation = None
    if data_args.random_crop or data_args.flip_probability > 0:
        smallest = 0.6 if data_args.random_crop else 1.0
        augmentation = RandomResizedCrop((smallest, 1.0), flip_probability=data_args.flip_probability)
    stored: dict[str, dict] = {"train": {}, "eval": {}}
    if data_args.cache_image_features:
        if not starts_frozen or (augmentation is not None and data_args.num_feature_views == 1 and not unfreezes):
            raise ValueError(
                "`cache_image_features` needs a frozen CNN, and with augmentation several looks at each image "
                "(--num_feature_views)."
            )
        model.to(accelerator.device)
        cache_dir = data_args.features_cache_dir or output_dir / "image_features"
        for name, rows in (("train", train_rows), ("eval", eval_rows)):
            views = {"num_views": data_args.num_feature_views, "augmentation": augmentation} if name == "train" else {}
            with accelerator.main_process_first(), accelerator.autocast():
                features, broken = compute_image_features(model, processor, rows, cache_dir, **views)
            stored[name] = {"image_features": features, "broken": broken}
    options = {"preload": data_args.preload_images, "seed": args.seed, "max_length": data_args.max_caption_length}
    train_dataset = CaptionDataset(
        train_rows,
        processor,
        data_args.captions_per_image,
        augmentation=augmentation,
        draft=data_args.draft_decoding,
        **stored["train"],
        **options,
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

    # 4. The stages and the optimiser, which has from the start what learns in any of them
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    num_steps = args.max_train_steps or steps_per_epoch * args.num_train_epochs
    eval_steps = max(1, round(steps_per_epoch * args.eval_epochs))
    encoder_step = switch_step(
        "unfreeze_encoder",
        stage_args.unfreeze_encoder_after_epochs,
        stage_args.unfreeze_encoder_after_steps,
        steps_per_epoch,
    )
    self_critical_step = switch_step(
        "self_critical", stage_args.self_critical_after_epochs, stage_args.self_critical_after_steps, steps_per_epoch
    )
    stages = Stages(encoder_step if starts_frozen else 0, self_critical_step)
    encoder_learning_rate = args.encoder_learning_rate or args.learning_rate * (0.1 if pretrained else 1.0)
    groups = parameter_groups(
        model, args.learning_rate, encoder_learning_rate, args.weight_decay, args.encoder_layer_decay
    )
    trained = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, args.learning_rate, betas=(0.9, 0.98), fused=True)
    scheduler = two_stage_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.warmup_ratio,
        num_steps,
        self_critical_step,
        stage_args.self_critical_learning_rate / args.learning_rate,
    )
    self_critical = None
    if self_critical_step is not None:
        self_critical = SelfCritical(
            processor.tokenizer,
            train_rows["captions"][:],
            cider_weight=stage_args.self_critical_cider_weight,
            bleu_weight=stage_args.self_critical_bleu_weight,
            num_samples=stage_args.self_critical_num_samples,
            baseline=stage_args.self_critical_baseline,
            cross_entropy_weight=stage_args.self_critical_cross_entropy_weight,
            max_length=args.max_length,
        )
        if is_main:
            output_dir.mkdir(parents=True, exist_ok=True)
            self_critical.document_frequency.save(output_dir / "document_frequency.safetensors")

    # 5. Where it stands: all that `trainer_state.json` holds
    state: dict = {
        "step": 0, "stage": str(stages.at(0)), "best": None, "steps": [], "evaluations": [], "broken_images": {},
        "seconds": 0.0, "energy_kwh": None,
    }  # fmt: skip
    if checkpoint is not None:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    stage = stages.at(state["step"])
    if state["step"] and state["stage"] != str(stages.at(state["step"] - 1)):
        raise ValueError(
            f"{checkpoint} was saved in the stage '{state['stage']}', but with these options step {state['step']} is in "
            f"'{stages.at(state['step'] - 1)}': go on with the options that the training was begun with."
        )
    if is_main:
        remove_later_checkpoints(output_dir, state["step"])

    def enter(stage: Stage):
        """Let learn what the stage says. The wrapper that joins several processes knows only what learns when it is made."""
        if not stage.encoder_learns:
            model.freeze_encoder()
        elif pretrained or unfreezes:
            unfreeze_encoder_layers(model, stage_args.unfreeze_encoder_from_layer)
            train_dataset.image_features = eval_dataset.image_features = None  # its features change: back to pixels
        if stage.self_critical:
            turn_off_dropout(model)
        logger.info(
            "Stage: %s. %.1f million weights, of which %.1f million learn.",
            stage,
            sum(p.numel() for p in model.parameters()) / 1e6,
            sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6,
        )
        # a CNN may have weights that its feature map does not depend on
        wrapping.find_unused_parameters = stage.encoder_learns
        accelerator.free_memory()
        return accelerator.prepare(model, optimizer, loader)

    wrapped, optimizer, loader = enter(stage)
    accelerator.register_for_checkpointing(scheduler)
    averaged = None
    if args.ema_decay:
        averaged = AveragedWeights(model, args.ema_decay, warmup=model_args.model_name_or_path is None)
        accelerator.register_for_checkpointing(averaged)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        logger.info("Going on from %s, step %d.", checkpoint, state["step"])
    reports = bool(accelerator.log_with)
    if reports:
        config = asdict(data_args) | asdict(model_args) | asdict(args) | asdict(stage_args)
        accelerator.init_trackers("captioner", config={k: v for k, v in config.items() if v is not None})

    def evaluate():
        evaluation = evaluate_captioner(
            model,
            eval_dataset,
            accelerator,
            args.per_device_eval_batch_size,
            args.dataloader_num_workers,
            [{"num_beams": args.num_beams}],
        )
        (captions,) = evaluation.captions
        scores = {"step": state["step"], "loss": evaluation.loss}
        values, _ = score_captions(captions, references, checker=checker(scenes) if scenes else None)
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
            whole = unsharded(model, accelerator)
        if is_main:
            shown = captions[:: max(1, len(captions) // 12)][:12]
            sheet = output_dir / "samples" / f"step-{state['step']:06d}.png"
            save_caption_sheet(
                sheet,
                [load_stored_image(eval_dataset.images[caption.row]["image"]) for caption in shown],
                [caption.caption for caption in shown],
            )
            save_training_curves(output_dir / "training_curves.png", state["steps"], state["evaluations"])
            if is_best:
                with whole_folder(output_dir / "best") as folder:
                    whole.save_pretrained(folder)
                    processor.save_pretrained(folder)
            if reports:
                accelerator.log({f"eval/{k}": v for k, v in scores.items() if k != "step"}, step=state["step"])
                sentences = {eval_dataset.image_ids[caption.row]: caption.caption for caption in shown}
                log_samples(accelerator, sheet, sentences, state["step"])
        accelerator.wait_for_everyone()

    def save_checkpoint():
        state["seconds"] = time.perf_counter() - started
        if is_main and (used := energy.read()) is not None:
            state["energy_kwh"] = (state["energy_kwh"] or 0.0) + used
        for found in gather_object([state["broken_images"]]):  # each process opens images of its own
            state["broken_images"] |= found
        with whole_folder(output_dir / f"checkpoint-{state['step']}", accelerator) as folder:
            accelerator.save_state(str(folder))
            if is_main:
                write_json(folder / "trainer_state.json", state)
        if is_main:
            remove_old_checkpoints(output_dir, args.save_total_limit)

    # 6. Learn
    set_seed(args.seed, device_specific=True) if checkpoint is None else None
    energy = EnergyMeter() if is_main else None
    started = time.perf_counter() - state["seconds"]
    bar = tqdm(total=num_steps, initial=state["step"], desc="Training", unit="step", disable=not is_main)
    wrapped.train()
    counts, sampled, seconds = (
        torch.zeros(3, device=accelerator.device),
        defaultdict(list),
        0.0,
    )  # since the last log line
    while state["step"] < num_steps:
        if stages.at(state["step"]) != stage:
            stage = stages.at(state["step"])
            wrapped, optimizer, loader = enter(stage)
        state["stage"] = str(stage)
        epoch, done = divmod(state["step"], steps_per_epoch)
        train_dataset.epoch = epoch
        order.manual_seed(args.seed + epoch)
        batches = accelerator.skip_first_batches(loader, done * args.gradient_accumulation_steps) if done else loader
        batches = without_repeats(batches, accelerator, args.per_device_train_batch_size)
        clock = time.perf_counter()
        for micro_batches in in_groups(batches, args.gradient_accumulation_steps):
            options = {}
            sampling = 0.0
            if not stage.self_critical:
                sampling = scheduled_sampling_probability(
                    state["step"] / steps_per_epoch,
                    stage_args.scheduled_sampling_start,
                    stage_args.scheduled_sampling_increase,
                    stage_args.scheduled_sampling_max,
                )
                options = {"scheduled_sampling_probability": sampling} if sampling else {}
            for index, batch in enumerate(micro_batches):
                state["broken_images"] |= {train_dataset.image_ids[row]: reason for row, reason in batch.pop("broken")}
                rows = batch.pop("rows")
                if stage.self_critical:
                    with accelerator.autocast():  # drawn with the precision that is learned with
                        micro_batches[index], statistics = self_critical.sample(model, batch, rows)
                    for name, value in statistics.items():
                        sampled[name].append(value)
            is_token = [batch["labels"] != IGNORE_INDEX for batch in micro_batches]
            count = sum(torch.stack([m.sum(), m.any(-1).sum(), m.flatten(1).any(-1).sum()]) for m in is_token)
            count = accelerator.reduce(count, reduction="sum")  # of tokens, captions and images
            counts += count
            # the loss is a sum over the tokens of all processes, and their gradients are averaged
            num_tokens = count[0].clamp(min=1) / accelerator.num_processes
            loss = torch.zeros((), device=accelerator.device)
            for index, batch in enumerate(micro_batches):
                is_last = index == len(micro_batches) - 1
                with nullcontext() if is_last else accelerator.no_sync(wrapped):
                    share = wrapped(**batch, num_items_in_batch=num_tokens, **options).loss
                    accelerator.backward(share)
                loss += share.detach()
            if is_sharded:  # its weights are others, and its checkpoints need a state of each, even of an unused one
                trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
                for parameter in trained:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
            if args.max_grad_value:
                accelerator.clip_grad_value_(trained, args.max_grad_value)
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(trained, args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if averaged is not None:
                averaged.update()
            state["step"] += 1
            bar.update()
            if averaged is not None and not stage.self_critical and stages.at(state["step"]).self_critical:
                averaged.adopt()

            is_last_step = state["step"] == num_steps
            logs = state["step"] % args.logging_steps == 0 or is_last_step
            if logs:
                loss = accelerator.reduce(loss, reduction="mean").item()
                if not math.isfinite(loss):
                    raise ValueError(f"The loss is {loss} at step {state['step']}: pass a smaller --learning_rate.")
            seconds, clock = seconds + time.perf_counter() - clock, time.perf_counter()
            if logs:
                row = {"step": state["step"], "loss": loss, "epoch": state["step"] / steps_per_epoch}
                rates = {group["name"]: group["lr"] for group in optimizer.param_groups}  # of the CNN, its last layer
                row["learning_rate"] = rates["decoder"]
                if stage.encoder_learns and "encoder" in rates:
                    row["encoder_learning_rate"] = rates["encoder"]
                if sampling:
                    row["scheduled_sampling_probability"] = sampling
                for name, values in sampled.items():
                    mean = torch.tensor(values, device=accelerator.device).mean()
                    row[name] = accelerator.reduce(mean, reduction="mean").item()
                for name, value in zip(("tokens", "captions", "images"), counts.tolist(), strict=True):
                    row[f"{name}_per_second"] = round(value / seconds, 1)
                state["steps"].append(row)
                bar.set_postfix(loss=f"{loss:.3f}", epoch=epoch, captions_per_second=row["captions_per_second"])
                if reports:
                    accelerator.log({f"train/{k}": v for k, v in row.items() if k != "step"}, step=row["step"])
                counts, sampled, seconds = torch.zeros_like(counts), defaultdict(list), 0.0
            evaluates = state["step"] % eval_steps == 0 or is_last_step
            if evaluates:
                with averaged.applied() if averaged is not None else nullcontext(), whole_weights(model):
                    evaluate()
            if evaluates or (args.save_steps and state["step"] % args.save_steps == 0):
                save_checkpoint()
                clock = time.perf_counter()
            if is_last_step or stages.at(state["step"]) != stage:
                break
    bar.close()

    # 7. The folder that `from_pretrained` loads: the best checkpoint by CIDEr
    if state["broken_images"]:
        logger.warning("%d images could not be read and were left out:", len(state["broken_images"]))
        for image_id, reason in sorted(state["broken_images"].items()):
            logger.warning("    %s: %s", image_id, reason)
    if is_main:
        copy_files(output_dir / "best", output_dir)
        results = {"best": state["best"], "evaluations": state["evaluations"], "seconds": state["seconds"]}
        results |= {"energy_kwh": state["energy_kwh"], **peak_memory(accelerator), **provenance(accelerator)}
        write_json(
            output_dir / "training_results.json",
            results
            | {"broken_images": state["broken_images"]}
            | {"data": asdict(data_args), "model": asdict(model_args), "training": asdict(args)}
            | {"stages": asdict(stage_args)},
        )
        logger.info("The captioner with the best CIDEr (%.4f) lies in %s", state["best"]["CIDEr"], output_dir)
        logger.info("Curves: %s   Samples: %s", output_dir / "training_curves.png", output_dir / "samples")
        if args.push_to_hub:
            repo_id = args.hub_model_id or output_dir.name
            commit = push_captioner(output_dir, repo_id, private=args.hub_private_repo, revision=args.hub_revision)
            logger.info("Pushed: %s", commit.commit_url)
    accelerator.end_training()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    with user_errors(), logging_redirect_tqdm():  # lines of the log go above the bar
        main()
