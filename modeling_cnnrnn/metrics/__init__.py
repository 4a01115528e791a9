"""
The official metrics of image captioning, without Java where that is possible.

Needs NumPy and safetensors only; METEOR and SPICE run pycocoevalcap's Java programs where they are installed.
"""

from modeling_cnnrnn.metrics.cider import CiderD, DocumentFrequency, cut_after_eos
from modeling_cnnrnn.metrics.diversity import caption_health
from modeling_cnnrnn.metrics.perplexity import perplexity
from modeling_cnnrnn.metrics.retrieval import retrieval_metrics
from modeling_cnnrnn.metrics.scores import CaptionScores, caption_metrics, group_by_image
from modeling_cnnrnn.metrics.tokenizer import ptb_tokenize


__all__ = [
    "CaptionScores",
    "CiderD",
    "DocumentFrequency",
    "caption_health",
    "caption_metrics",
    "cut_after_eos",
    "group_by_image",
    "perplexity",
    "ptb_tokenize",
    "retrieval_metrics",
]
