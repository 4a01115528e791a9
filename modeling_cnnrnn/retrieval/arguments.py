"""Options of indexing pictures and of searching them. Light to import."""

from dataclasses import dataclass, field


@dataclass
class IndexArguments:
    """Pictures to index, and the model."""

    folder: str = field(metadata={"help": "Folder with the pictures, in it and below it.", "positional": True})
    model_name_or_path: str = field(metadata={"help": "Alignment model to use, a repository of the Hub or a folder."})
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the model."})
    output_dir: str = field(default="outputs/index", metadata={"help": "Folder of the index."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Remove the index that is there first."})
    query_bank: str | None = field(
        default=None,
        metadata={
            "help": "Text file of sentences, one a line, such as the captions the model was trained on: what pictures "
            "score with all sentences can then be subtracted in a search, with --less_hub_bias."
        },
    )
    approximate: bool | None = field(
        default=None,
        metadata={
            "help": "Make a graph (usearch) by which a search looks at a small part of the pictures, for more than some "
            "100,000; as the index was made by default."
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Pictures in a batch."})
    device: str | None = field(
        default=None, metadata={"help": "Device of the model, such as cpu or cuda:1; a GPU if there is one."}
    )


@dataclass
class SearchArguments:
    """What to search for, and where."""

    query: list[str] = field(
        default_factory=list, metadata={"help": "Sentence that the pictures should show.", "positional": True}
    )
    image: str | None = field(
        default=None, metadata={"help": "Picture, a file or a URL, to find similar ones of, in place of a sentence."}
    )
    index_dir: str = field(default="outputs/index", metadata={"help": "Folder of the index."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model that the index was made by; from where it was then by default."}
    )
    model_revision: str = field(default="main", metadata={"help": "Commit, tag or branch of the model."})
    top_k: int = field(default=10, metadata={"help": "Pictures to find."})
    shortlist_size: int = field(
        default=200,
        metadata={"help": "Pictures, by one vector each, whose regions are compared with the words; 0 compares all."},
    )
    exact: bool = field(default=False, metadata={"help": "Look at all pictures even where the index has a graph."})
    less_hub_bias: bool = field(
        default=False, metadata={"help": "Subtract what a picture scores with the index's query bank."}
    )
    output: str | None = field(
        default=None, metadata={"help": "Table to write the results to, a .csv, .jsonl or .parquet file."}
    )
    page: str | None = field(default=None, metadata={"help": "HTML page to write the pictures found to."})
    device: str | None = field(
        default=None, metadata={"help": "Device of the model, such as cpu or cuda:1; a GPU if there is one."}
    )
