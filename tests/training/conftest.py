"""What the tests of training share."""

import pytest

from modeling_cnnrnn import CnnRnnForConditionalGeneration


@pytest.fixture
def captioner(make_model, processor) -> CnnRnnForConditionalGeneration:
    return make_model(vocab_size=len(processor.tokenizer))
