"""coco-caption's BLEU, ROUGE-L and CIDEr as a metric of `evaluate`: `evaluate.load("<this folder>")`."""

# one import a line: `evaluate` misreads `import a, b` when it looks for what the module needs
import datasets
import evaluate

from modeling_cnnrnn.metrics import caption_metrics


_DESCRIPTION = """
The caption metrics of coco-caption (BLEU-1 to BLEU-4, ROUGE-L, CIDEr) with the tokenizer that belongs to them, without
Java; METEOR and SPICE where Java and pycocoevalcap are installed.
"""
_INPUTS = """
Args:
    predictions: list of captions, one for each image.
    references: list of lists of captions, the references of each image.
    metrics: which of "bleu", "rouge", "cider", "meteor", "spice"; the first three by default.
Returns:
    "BLEU-1" to "BLEU-4", "ROUGE-L", "CIDEr", "METEOR", "SPICE", as asked for; `None` for what could not be computed.
"""
_CITATION = """
@article{chen2015microsoft,
  title = {Microsoft {COCO} Captions: Data Collection and Evaluation Server},
  author = {Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  journal = {arXiv preprint arXiv:1504.00325},
  year = {2015}
}
"""


class CnnRnnCaptionMetrics(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions, references, metrics=("bleu", "rouge", "cider")):
        return dict(caption_metrics(predictions, references, metrics))
