"""
Compute the official metrics of image captioning, without Java where that is possible.

Only NumPy and safetensors are needed; METEOR and SPICE run pycocoevalcap's Java programs where they are installed.
"""

from .cider import CiderD, DocumentFrequency, cut_after_eos
from .diversity import caption_health, set_diversity
from .perplexity import perplexity
from .pointing import overlap_hits, pointing_hits
from .ptb_tokenizer import ptb_tokenize
from .retrieval import retrieval_metrics
from .scores import CaptionScores, caption_metrics, group_by_image
from .words import tokenize_captions


__all__ = [
    "CaptionScores",
    "CiderD",
    "DocumentFrequency",
    "caption_health",
    "caption_metrics",
    "cut_after_eos",
    "group_by_image",
    "overlap_hits",
    "perplexity",
    "pointing_hits",
    "ptb_tokenize",
    "retrieval_metrics",
    "set_diversity",
    "tokenize_captions",
]
