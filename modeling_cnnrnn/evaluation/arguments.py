"""Options of evaluating a captioner and of captioning images, folders and datasets. Light to import."""

from dataclasses import dataclass, field
from typing import Any

from ..data.arguments import DatasetArguments
from ..pretrained import DEFAULT_CAPTIONER


# what a captioner's generation config says where no option is given, and what else
PREFERENCES: dict[str, Any] = {"max_length": None, "length_penalty": 1.0, "no_repeat_ngram_size": 0}


@dataclass(kw_only=True)
class PreferenceArguments:
    """Which sentences a search prefers; by default as the captioner's generation config says."""

    length_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Exponent of the length in a beam's score: larger values favour longer sentences. As in the captioner's "
            "generation config by default, like the next one."
        },
    )
    no_repeat_ngram_size: int | None = field(
        default=None, metadata={"help": "Length of the n-grams that a sentence may not repeat; 0 allows all."}
    )


@dataclass
class EvaluationArguments(PreferenceArguments, DatasetArguments):
    """Options of an evaluation: the captioner, the dataset, the way to generate, the metrics."""

    model_name_or_path: str = field(
        kw_only=True, metadata={"help": "Captioner to score, of the Hub or a folder; several with commas write as one."}
    )
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the captioner."})
    split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on this many images of the split at most."}
    )
    features_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder to keep the image features in, or where a training has kept them."}
    )
    region_features: str | None = field(
        default=None,
        metadata={
            "help": "Features of regions that a detector has found: a folder of image_id.npy or .npz files, an .h5 or a "
            ".parquet file. By default the column image_features of the dataset, if it has one."
        },
    )
    output_dir: str = field(default="outputs/evaluation", metadata={"help": "Folder of the results."})
    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "rouge", "cider"],
        metadata={"help": "Metrics to compute: bleu, rouge, cider; meteor and spice need Java."},
    )
    num_beams: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "One or several beam sizes; 1 is greedy search."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest sentence to generate, in tokens with the start token; as in the captioner's generation "
            "config by default."
        },
    )
    per_device_eval_batch_size: int = field(default=50, metadata={"help": "Images in a batch on each device."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    gallery_size: int = field(default=200, metadata={"help": "Pictures on the page gallery.html; 0 writes no page."})
    mixed_precision: str = field(default="no", metadata={"help": "Precision of the computation: no, bf16 or fp16."})
    seed: int = field(default=42, metadata={"help": "Seed of all random numbers."})

    def generation(self, search: "SearchArguments | None" = None, tokenizer: Any = None) -> list[dict]:
        """The ways to generate of [`evaluate_captioner`], one for each beam size, with the options of a search."""
        given = {name: getattr(self, name) for name in PREFERENCES}
        options = {name: value for name, value in given.items() if value is not None}
        if search is None:
            return [{"num_beams": num_beams} | options for num_beams in self.num_beams]
        options["by_consensus"] = search.consensus > 0
        return [search.search_kwargs(num_beams, tokenizer) | options for num_beams in self.num_beams]

    def preferences(self, config: Any) -> dict[str, Any]:
        """Name the preferences that hold with a captioner's generation config, for the protocol."""
        preferences = dict(PREFERENCES)
        for options in (config, self):
            given = {name: getattr(options, name) for name in PREFERENCES}
            preferences |= {name: value for name, value in given.items() if value is not None}
        return preferences


@dataclass
class SearchArguments:
    """Several sentences, and words that must or must not be there."""

    num_return_sequences: int = field(default=1, metadata={"help": "Sentences for each image, best first."})
    do_sample: bool = field(default=False, metadata={"help": "Sample sentences instead of searching for the best."})
    temperature: float = field(default=1.0, metadata={"help": "Divisor of the logits in sampling."})
    top_p: float = field(
        default=1.0, metadata={"help": "Sample from the most probable words whose probabilities add up to this."}
    )
    num_beam_groups: int = field(
        default=1, metadata={"help": "Groups of beams that avoid each other's words (diverse beam search)."}
    )
    diversity_penalty: float = field(
        default=0.5, metadata={"help": "What a word loses for each beam of another group that has just written it."}
    )
    consensus: int = field(
        default=0,
        metadata={
            "help": "Write this many sentences, by beams or samples, and rank them by how close each is to the others in "
            "CIDEr; 0 ranks them by probability."
        },
    )
    force_words: list[str] = field(
        default_factory=list,
        metadata={"help": "Words or phrases that each sentence must have; 'dog|puppy' is one of the two."},
    )
    finish_sentences: bool = field(
        default=False, metadata={"help": "Let no sentence end in a word that breaks it off, as in 'a man with a'."}
    )

    def search_kwargs(self, num_beams: int, tokenizer: Any) -> dict[str, Any]:
        """
        Make the arguments of `generate`.

        Args:
            num_beams: of the search, where there are not more sentences to find.
            tokenizer: makes token ids of words.

        Raises:
            ValueError: a number of sentences is below 1, or a word is not in the vocabulary.
        """
        if self.num_return_sequences < 1 or self.consensus < 0:
            name = "num_return_sequences" if self.num_return_sequences < 1 else "consensus"
            raise ValueError(f"`{name}` is {getattr(self, name)}: pass a positive number.")
        options: dict[str, Any] = {"num_return_sequences": max(self.num_return_sequences, self.consensus)}
        if self.do_sample:
            options |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        else:
            options["num_beams"] = max(num_beams, options["num_return_sequences"])
        if self.num_beam_groups > 1:
            options |= {"num_beam_groups": self.num_beam_groups, "diversity_penalty": self.diversity_penalty}
        if self.force_words:
            options["force_words_ids"] = [
                [_known_ids(tokenizer, phrase) for phrase in words.split("|")] for words in self.force_words
            ]
        if self.finish_sentences:
            from ..metrics.diversity import UNFINISHED_ENDINGS

            words = set(UNFINISHED_ENDINGS) & set(tokenizer.get_vocab())
            options["bad_ending_ids"] = sorted(tokenizer(sorted(words), add_special_tokens=False)["input_ids"])
        return options


def _known_ids(tokenizer: Any, phrase: str) -> list[int]:
    ids = tokenizer(phrase, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"`force_words` names {phrase!r}, which the captioner has no words for: pass others.")
    return ids


@dataclass
class GenerationArguments(PreferenceArguments, SearchArguments):
    """How sentences are generated."""

    num_beams: int = field(default=3, metadata={"help": "Beams of the search; 1 is greedy search."})
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Longest sentence to generate, in tokens; as in the captioner's generation config by default."
        },
    )
    prompt: str = field(default="", metadata={"help": "Text that each sentence begins with, such as 'a photo of'."})
    seed: int = field(default=42, metadata={"help": "Seed of the samples."})

    def generate_kwargs(self, tokenizer: Any) -> dict[str, Any]:
        """Make the arguments of `generate`, as `search_kwargs` does."""
        options = self.search_kwargs(self.num_beams, tokenizer)
        if self.max_new_tokens is not None:
            options["max_new_tokens"] = self.max_new_tokens
        if self.no_repeat_ngram_size is not None:
            options["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        if not self.do_sample and self.length_penalty is not None:
            options["length_penalty"] = self.length_penalty
        return options


@dataclass
class CaptionImagesArguments:
    """Images to caption, and the captioner."""

    images: list[str] = field(
        metadata={"help": "Files, URLs, and folders with all images below them.", "positional": True}
    )
    model_name_or_path: str = field(
        default=DEFAULT_CAPTIONER,
        metadata={
            "help": "Captioner to use: a folder, a repository of the Hub, or the one that comes with the package; several "
            "with commas write as one."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the captioner."})
    output: str | None = field(
        default=None,
        metadata={
            "help": "Table to write the sentences to, a .csv, .jsonl or .parquet file, with the log-probability of each and "
            "of its words."
        },
    )
    region_features: str | None = field(
        default=None,
        metadata={
            "help": "Features of regions that a detector has found in the images, found by the names of the images: a folder "
            "of .npy or .npz files, an .h5 or a .parquet file."
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Images in a batch."})
    device: str | None = field(
        default=None, metadata={"help": "Device of the captioner, such as cpu or cuda:1; a GPU if there is one."}
    )


@dataclass
class CaptionDatasetArguments:
    """Dataset to caption, the captioner, and the dataset that is written."""

    dataset_name: str = field(
        metadata={"help": "Dataset of the Hub, folder, or COCO or Karpathy JSON file; several with commas."}
    )
    model_name_or_path: str = field(
        default=DEFAULT_CAPTIONER,
        metadata={
            "help": "Captioner to use: a folder, a repository of the Hub, or the one that comes with the package; several "
            "with commas write as one."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the captioner."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a dataset of the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Commit, tag or branch of the dataset."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder inside the dataset that is read, as in datasets.load_dataset."}
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "Folder of the images, for a dataset that only names them."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; inferred by default."})
    region_features: str | None = field(
        default=None,
        metadata={
            "help": "Features of regions that a detector has found: a folder of image_id.npy or .npz files, an .h5 or a "
            ".parquet file. By default the column image_features of the dataset, if the captioner reads regions."
        },
    )
    split: str | None = field(default=None, metadata={"help": "Split to caption; all by default."})
    max_predict_samples: int | None = field(
        default=None, metadata={"help": "Caption this many rows of each split at most."}
    )
    keep_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the dataset to write beside the sentences; all by default."}
    )
    output_dir: str = field(default="outputs/captioned", metadata={"help": "Folder of the dataset that is written."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Remove the sentences of an earlier run."})
    rows_per_part: int = field(
        default=256, metadata={"help": "Rows of a Parquet file; a process that is killed loses one file at most."}
    )
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Images in a batch on each device."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    mixed_precision: str = field(default="no", metadata={"help": "Precision of the computation: no, bf16 or fp16."})
    push_to_hub: bool = field(default=False, metadata={"help": "Push the written dataset to the Hub."})
    hub_dataset_id: str | None = field(
        default=None, metadata={"help": "Dataset on the Hub, user/name; the output folder's name by default."}
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a repository that is created here is private."}
    )
    hub_revision: str | None = field(
        default=None, metadata={"help": "Branch to push to, created if it does not exist; main by default."}
    )


@dataclass
class ScoreArguments:
    """Captions to score and their references."""

    results: str = field(metadata={"help": 'File of the captions, [{"image_id": 1, "caption": "..."}, ...].'})
    references: str = field(metadata={"help": 'File of the references, {"images": [...], "annotations": [...]}.'})
    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "rouge", "cider"],
        metadata={"help": "Metrics to compute: bleu, rouge, cider; meteor and spice need Java."},
    )
    training_captions: str | None = field(
        default=None, metadata={"help": "File of the training set's references, to count captions that are not in it."}
    )
    subset: bool = field(default=False, metadata={"help": "Score only the images that have a caption."})
    timeout: float = field(default=1800.0, metadata={"help": "Seconds that METEOR and SPICE may take, each."})
    output: str | None = field(
        default=None, metadata={"help": "File of all scores; <name>_scores.json beside the results by default."}
    )


@dataclass
class RegionDatasetArguments(DatasetArguments):
    """Options of making a dataset of regions: the alignment model, the dataset, and which snippets are kept."""

    model_name_or_path: str = field(
        kw_only=True, metadata={"help": "Alignment model, a repository of the Hub or a folder."}
    )
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the model."})
    split: list[str] = field(
        default_factory=lambda: ["train", "validation"], metadata={"help": "Splits to make regions of."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Pictures of each split to take at most."})
    output_dir: str = field(default="outputs/regions", metadata={"help": "Folder of the dataset that is written."})
    min_score: float = field(
        default=0.0, metadata={"help": "Least score of a snippet with its region; words that name nothing score low."}
    )
    min_words: int = field(default=2, metadata={"help": "Least number of words of a snippet."})
    margin: float = field(
        default=0.5, metadata={"help": "What is added to each side of a region, as a share of its width or height."}
    )
    smoothness: float | None = field(
        default=None,
        metadata={"help": "Gain of neighbouring words that share a region; that of the model by default."},
    )


@dataclass
class CaptionRegionsArguments:
    """Picture whose regions are described, the captioner, and the figure."""

    image: str = field(metadata={"help": "File or URL of the picture.", "positional": True})
    model_name_or_path: str = field(metadata={"help": "Captioner of regions, a repository of the Hub or a folder."})
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the captioner."})
    grid_sizes: list[int] = field(
        default_factory=lambda: [1, 2, 3],
        metadata={"help": "For each n, n x n boxes that overlap by half; 1 is the whole picture."},
    )
    iou_threshold: float = field(
        default=0.5, metadata={"help": "Largest overlap of two regions, as intersection over union."}
    )
    max_regions: int = field(default=8, metadata={"help": "Regions to describe at most, those of highest score."})
    num_beams: int = field(default=3, metadata={"help": "Beams of the search; 1 is greedy search."})
    output: str | None = field(default=None, metadata={"help": "Figure (PNG) of the regions over the picture."})
