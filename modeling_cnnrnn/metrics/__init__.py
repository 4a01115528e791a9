from modeling_cnnrnn.metrics.scores import CaptionScores, caption_metrics, group_by_image
from modeling_cnnrnn.metrics.tokenizer import ptb_tokenize
