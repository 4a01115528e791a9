"""
Search by a graph of near vectors (HNSW, https://arxiv.org/abs/1603.09320), as usearch keeps it, in place of all vectors.

Keys of the graph are those of [`~modeling_cnnrnn.retrieval.storage.StoredPictures`].
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_path
from .storage import DamagedIndexError


# edges of a vector, and vectors that are looked at while it is added and searched for: more are slower and more exact
PARAMETERS: dict[str, Any] = {"connectivity": 16, "expansion_add": 128, "expansion_search": 400}


def update_graph(path: Path, keys: np.ndarray, vectors: np.ndarray) -> None:
    """
    Make a graph of these vectors, or bring one up to date: only vectors with new keys are added.

    Args:
        path: file of the graph.
        keys: `(N,)`, uint64.
        vectors: `(N, D)`.

    Raises:
        ModuleNotFoundError: usearch is not installed.
    """
    from usearch.index import Index

    graph = None
    if path.exists():
        try:
            graph = Index.restore(path, **PARAMETERS)
        except ValueError:  # damaged: all is in the shards
            graph = None
    if graph is None or graph.ndim != vectors.shape[1]:
        graph = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", **PARAMETERS)
    known = np.asarray(graph.keys, dtype=np.uint64)
    if len(gone := np.setdiff1d(known, keys)):
        graph.remove(gone)
    is_new = ~np.isin(keys, known)
    if is_new.any():
        graph.add(keys[is_new], vectors[is_new])
    with atomic_path(path) as partial:
        graph.save(partial)


def open_graph(path: Path) -> Any:
    """
    Map a graph into memory.

    Raises:
        DamagedIndexError: the file is gone or damaged.
        ModuleNotFoundError: usearch is not installed.
    """
    from usearch.index import Index

    try:
        graph = Index.restore(path, view=True, **PARAMETERS)
    except ValueError as error:
        raise DamagedIndexError(f"'{path}' is damaged ({error}): {_REMEDY}.") from error
    if graph is None:
        raise DamagedIndexError(f"'{path}' is gone: {_REMEDY}.")
    return graph


def is_sound(path: Path) -> bool:
    """Return whether there is a graph that can be read."""
    try:
        open_graph(path)
    except DamagedIndexError:
        return False
    return True


_REMEDY = "run `cnnrnn index ... --approximate` again, or search with --exact"
