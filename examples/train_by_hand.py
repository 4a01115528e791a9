"""
Train a captioner with a plain PyTorch loop: `train_captioner.py` with nothing hidden, to read and to change.

    python examples/train_by_hand.py --dataset_name shapes --output_dir outputs/by_hand

There is no Accelerator and no trainer here: one process, one batch a step, a CNN from scratch. With the same settings the
losses are those of `train_captioner.py`, bit for bit up to its first evaluation.
"""

import argparse
import math

import datasets
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler
from transformers import PreTrainedTokenizerBase, ResNetConfig, set_seed

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnProcessor, build_tokenizer
from modeling_cnnrnn.data.batching import CaptionDataset, collate_captions
from modeling_cnnrnn.data.loading import load_caption_dataset
from modeling_cnnrnn.metrics import CaptionScores, caption_metrics


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="shapes", help="Dataset with the splits train and validation.")
    parser.add_argument("--output_dir", default="outputs/by_hand", help="Folder of the trained captioner.")
    parser.add_argument("--min_frequency", type=int, default=5, help="Rarer words become <unk>.")
    parser.add_argument("--image_size", type=int, default=64, help="Side of the square images.")
    parser.add_argument("--hidden_size", type=int, default=192, help="Size of the recurrent state and of embeddings.")
    parser.add_argument("--dropout", type=float, default=0.1, help="Dropout after the recurrent layer.")
    parser.add_argument("--num_train_epochs", type=int, default=12, help="Number of epochs.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images in a batch.")
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="Highest learning rate.")
    parser.add_argument("--seed", type=int, default=42, help="Random seed.")
    return parser.parse_args()


def build_model(tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> CnnRnnForConditionalGeneration:
    """Make a captioner with new weights: a small ResNet, and a GRU with attention."""
    encoder = ResNetConfig(layer_type="basic", embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1])
    config = CnnRnnConfig.from_tokenizer(
        tokenizer,
        encoder=encoder,
        rnn_type="gru",
        image_injection="initial_state",
        attention_type="additive",
        attention_size=96,
        hidden_size=args.hidden_size,
        embedding_size=args.hidden_size,
        dropout=args.dropout,
    )
    model = CnnRnnForConditionalGeneration(config)
    model.get_encoder().cnn.to(memory_format=torch.channels_last)  # convolutions are fastest with it
    return model


def build_optimizer(
    model: CnnRnnForConditionalGeneration, learning_rate: float, num_steps: int
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """Make AdamW, and a learning rate that rises for a twentieth of the steps and falls along a cosine."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, learning_rate, betas=(0.9, 0.98), fused=True)
    num_warmup_steps = round(0.05 * num_steps)

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return step / num_warmup_steps
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)))

    return optimizer, LambdaLR(optimizer, factor)


def evaluate(model, processor, rows: datasets.Dataset) -> CaptionScores:
    """Write a sentence about each image, and score the sentences against what people wrote."""
    model.eval()
    sentences, references = {}, {}
    for row in rows:
        inputs = processor(images=row["image"], return_tensors="pt").to(model.device)
        (sentences[row["image_id"]],) = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        references[row["image_id"]] = row["captions"]
    return caption_metrics(sentences, references, ["bleu", "rouge", "cider"])


def main():
    args = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_seed(args.seed)

    # 1. The data: rows of image, image_id and captions; the words of the training captions are the vocabulary
    splits = load_caption_dataset(args.dataset_name)
    if not {"train", "validation"} <= splits.keys():
        raise SystemExit(f"Error: `dataset_name` needs the splits train and validation, and has {list(splits)}.")
    tokenizer = build_tokenizer(splits["train"]["captions"], min_frequency=args.min_frequency)
    processor = CnnRnnProcessor.from_image_size(args.image_size, tokenizer)
    dataset = CaptionDataset(splits["train"], processor, captions_per_image=5, seed=args.seed)
    dataset.check("train")
    order = torch.Generator()
    sampler = RandomSampler(dataset, generator=order)
    # with a generator of its own the loader leaves the random numbers of the dropout alone
    loader = DataLoader(dataset, args.batch_size, sampler=sampler, generator=order, collate_fn=collate_captions)

    # 2. The model and its optimizer
    model = build_model(tokenizer, args)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` hides its types
    optimizer, scheduler = build_optimizer(model, args.learning_rate, args.num_train_epochs * len(loader))

    # 3. The loop: the loss of a batch is the cross-entropy per token of its captions
    set_seed(args.seed)
    model.train()
    for epoch in range(args.num_train_epochs):
        dataset.epoch = epoch  # which captions of an image are shown depends on seed, epoch and row
        order.manual_seed(args.seed + epoch)
        for step, batch in enumerate(loader):
            loss = model(pixel_values=batch["pixel_values"].to(device), labels=batch["labels"].to(device)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            print(f"epoch {epoch} step {step} loss {loss.item()}")

    # 4. What it has learned, and the folder that `from_pretrained` loads
    print(evaluate(model, processor, splits["validation"]))
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
