"""Search pictures by a sentence or by a picture."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .approximate import open_graph
from .building import IndexUpdate, build_index
from .embedding import Query, embed_image, embed_text, model_fingerprint, score_pictures
from .storage import GRAPH_NAME, Manifest, StoredPictures


# pictures whose regions are read and compared at a time: some 100 MB in float32
CHUNK_SIZE = 2048


@dataclass(frozen=True)
class SearchResult:
    """
    A picture that was found.

    Attributes:
        path: its file.
        score: what the model scores it with the query, the higher the better.
    """

    path: str
    score: float


class ImageIndex:
    """
    An index of pictures, open for searching.

    A search compares the vector of the whole query with that of each picture in one product, and then the query's words
    with the regions of the pictures on the shortlist (late interaction, equation 8 of https://arxiv.org/abs/1412.2306).

    Args:
        index_dir: folder of the index.
        model: the alignment model that it was made by.
        processor: its processor.

    Raises:
        FileNotFoundError: the folder is no index.
        DamagedIndexError: a file of it is damaged.
        ValueError: another model has made it.

    ```python
    >>> index = ImageIndex.build("photographs", "outputs/index", model, processor)  # later: ImageIndex("outputs/index", ...)
    >>> index.search("a dog jumps over a bar", top_k=1)
    [SearchResult(path='/home/me/photographs/dog.jpg', score=0.61)]
    ```
    """

    def __init__(self, index_dir: str | os.PathLike, model: Any, processor: Any):
        self.index_dir, self.model, self.processor = Path(index_dir), model, processor
        self.manifest = Manifest.load(self.index_dir)
        if model_fingerprint(model, processor) != self.manifest.model_fingerprint:
            raise ValueError(
                f"'{index_dir}' was made by another model ('{self.manifest.model_name_or_path}'): pass that one, or make "
                "an index by this one with `cnnrnn index`."
            )
        self.pictures = StoredPictures(self.index_dir, self.manifest)
        self.update: IndexUpdate | None = None

    @classmethod
    def build(
        cls, folder: str | os.PathLike, index_dir: str | os.PathLike, model: Any, processor: Any, **options: Any
    ) -> "ImageIndex":
        """
        Index the pictures of a folder, or bring their index up to date, and open it.

        Args:
            folder, index_dir, model, processor, options: as in [`~modeling_cnnrnn.retrieval.building.build_index`], which
                also says what is raised.

        Returns:
            The index; its `update` names the files that could not be read.
        """
        update = build_index(folder, index_dir, model, processor, **options)
        index = cls(index_dir, model, processor)
        index.update = update
        return index

    def __len__(self) -> int:
        return len(self.pictures)

    def search(
        self,
        text: str | None = None,
        image: Any = None,
        top_k: int = 10,
        shortlist_size: int | None = 200,
        exact: bool = False,
        less_hub_bias: bool = False,
    ) -> list[SearchResult]:
        """
        Find the pictures that fit a sentence, or are similar to a picture.

        Args:
            text: the sentence.
            image: the picture, in place of a sentence, as [`load_image`] takes it.
            top_k: pictures to find.
            shortlist_size: pictures whose regions are compared with the query; `None` compares all.
            exact: whether to make the shortlist from all pictures where the index has a graph too.
            less_hub_bias: whether to subtract what a picture scores with the query bank.

        Returns:
            The pictures, best first. Whether their files are still there is not looked at.

        Raises:
            ValueError: the index is empty, `text` has no word that the model knows, `image` is not usable, both or neither
                is given, a number is not positive, or the index has no query bank.
            OSError: `image` cannot be read.
        """
        return self.search_query(self.embed(text, image), top_k, shortlist_size, exact, less_hub_bias)

    def embed(self, text: str | None = None, image: Any = None) -> Query:
        """Embed a sentence or a picture, to search for it with [`search_query`]."""
        if (text is None) == (image is None):
            raise ValueError("Pass either `text` or `image`, a sentence or a picture to search for.")
        if text is not None:
            return embed_text(self.model, self.processor, text)
        return embed_image(self.model, self.processor, self.processor.load_image(image))

    def search_query(
        self,
        query: Query,
        top_k: int = 10,
        shortlist_size: int | None = 200,
        exact: bool = False,
        less_hub_bias: bool = False,
    ) -> list[SearchResult]:
        """Find the pictures for what [`embed`] has made, as [`search`] does."""
        self._check(top_k, shortlist_size, less_hub_bias)
        indices = self.shortlist(query, None if shortlist_size is None else max(top_k, shortlist_size), exact)
        scores = np.empty(len(indices), np.float32)
        for start in range(0, len(indices), CHUNK_SIZE):
            chunk = indices[start : start + CHUNK_SIZE]
            regions, pooled = self.pictures.take("regions", chunk), self.pictures.take("pooled", chunk)
            scores[start : start + CHUNK_SIZE] = score_pictures(self.model, query, regions, pooled)
        if less_hub_bias:
            scores -= self.pictures.take("bank_scores", indices)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [SearchResult(self.path(indices[i]), float(scores[i])) for i in best]

    def path(self, number: int) -> str:
        """Return the file of a picture, by its number in the index."""
        return os.path.join(self.manifest.folder, self.pictures.name(number))

    def _check(self, top_k: int, shortlist_size: int | None, less_hub_bias: bool) -> None:
        for name, value in (("top_k", top_k), ("shortlist_size", shortlist_size)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}: pass 1 or more.")
        if not len(self):
            raise ValueError(f"'{self.index_dir}' is an empty index: run `cnnrnn index` on a folder with pictures.")
        if less_hub_bias and not self.pictures.has_bank_scores:
            raise ValueError(
                f"`less_hub_bias` is True, and '{self.index_dir}' has no query bank: run `cnnrnn index` again with "
                "--query_bank."
            )

    def shortlist(self, query: Query, size: int | None, exact: bool = False) -> np.ndarray:
        """Return the numbers of the pictures whose pooled vectors are nearest to that of the query; `None` takes all."""
        if size is None or size >= len(self):
            return np.arange(len(self))
        if self.manifest.has_graph and not exact:
            return np.searchsorted(self.pictures.keys, self._graph.search(query.vector, size).keys)
        return np.argpartition(-(self.pictures.pooled @ query.vector), size)[:size]

    @cached_property
    def _graph(self) -> Any:
        return open_graph(self.index_dir / GRAPH_NAME)
