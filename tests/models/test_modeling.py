"""The model: its equations, saving, the CNNs that it sees with, bad input. What it learns is in test_learning_cnnrnn.py."""

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from support.tiny_models import TINY_CNNS, changed, encoded, snapshot
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    BertConfig,
    ResNetForImageClassification,
    ResNetModel,
    SwinConfig,
    ViTConfig,
)

from modeling_cnnrnn import CnnRnnConfig, CnnRnnForConditionalGeneration, CnnRnnModel
from modeling_cnnrnn.models import recurrence_cnnrnn
from modeling_cnnrnn.models.attention_cnnrnn import CnnRnnAttention
from modeling_cnnrnn.models.loss_cnnrnn import cross_entropy_
from modeling_cnnrnn.models.recurrence_cnnrnn import make_recurrent_layer


# --- The equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rnn_type", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_one_step_is_the_cell_of_torch(rnn_type):
    options = {"nonlinearity": rnn_type.removeprefix("rnn_")} if rnn_type.startswith("rnn_") else {}
    cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}.get(rnn_type, nn.RNNCell)(5, 7, **options)
    layer = make_recurrent_layer(rnn_type, 5, 7)
    layer.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
    inputs, hidden, memory = torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
    state = (hidden, memory) if rnn_type == "lstm" else hidden
    expected = cell(inputs, state)

    state = (hidden[None], memory[None]) if rnn_type == "lstm" else hidden[None]
    outputs, new = layer(inputs[:, None], state)
    assert_close(outputs[:, 0], expected[0] if rnn_type == "lstm" else expected)
    assert_close(new, tuple(e[None] for e in expected) if rnn_type == "lstm" else expected[None])


@torch.no_grad()
@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize(
    ("rnn_type", "torch_layer"),
    [
        ("lstm", nn.LSTM(5, 7, batch_first=True)),
        ("gru", nn.GRU(5, 7, batch_first=True)),
        ("rnn_tanh", nn.RNN(5, 7, batch_first=True)),
        ("rnn_relu", nn.RNN(5, 7, batch_first=True, nonlinearity="relu")),
    ],
)
def test_a_recurrent_layer_is_that_of_torch(rnn_type, torch_layer, num_steps):
    layer = make_recurrent_layer(rnn_type, 5, 7)
    layer.load_state_dict(torch_layer.state_dict())
    state = tuple(torch.randn(1, 3, 7) for _ in range(2)) if rnn_type == "lstm" else torch.randn(1, 3, 7)
    inputs = torch.randn(3, num_steps, 5)
    assert_close(layer(inputs, state), torch_layer(inputs, state))


def attend_by_hand(attention: CnnRnnAttention, hidden: torch.Tensor, regions: torch.Tensor):
    """Show, Attend and Tell, region by region: e_i = w tanh(W_h h + W_a a_i), alpha = softmax e, z = beta sum alpha a."""
    energies = torch.stack([attention.score(torch.tanh(attention.query(hidden) + attention.key(a))) for a in regions])
    weights = energies.exp() / energies.exp().sum()
    beta = 1 / (1 + torch.exp(-attention.gate(hidden)))
    return beta * sum(weight * region for weight, region in zip(weights, regions, strict=True)), weights.squeeze(-1)


def test_attention_is_a_loop_over_regions(tiny_config):
    attention = CnnRnnAttention(tiny_config).double()
    regions, hidden = torch.randn(2, 6, 12).double(), torch.randn(4, 14).double()  # two captions of each image
    context, weights = attention(hidden, regions, attention.key(regions))
    for index in range(4):
        expected = attend_by_hand(attention, hidden[index], regions[index // 2])
        assert_close((context[index], weights[index]), expected)


CELLS = {
    "lstm": torch.lstm_cell,
    "gru": torch.gru_cell,
    "rnn_tanh": torch.rnn_tanh_cell,
    "rnn_relu": torch.rnn_relu_cell,
}


def decode_by_hand(model: CnnRnnForConditionalGeneration, regions: torch.Tensor, words: list[int]):
    """The decoder as its papers write it: one image, one sentence, one step at a time. Returns logits and attentions."""
    config, decoder = model.config, model.model.decoder
    size, image = config.embedding_size, regions.mean(dim=0)
    states = torch.zeros(2, config.num_hidden_layers, config.hidden_size, dtype=regions.dtype)
    if config.image_injection == "initial_state":
        initial = torch.tanh(decoder.initial_state.weight @ image + decoder.initial_state.bias)
        count = initial.numel() // (config.num_hidden_layers * config.hidden_size)
        states[:count] = initial.view(count, config.num_hidden_layers, config.hidden_size)

    def cell(layer: int, preactivation: torch.Tensor) -> torch.Tensor:
        rnn = decoder.layers[layer]
        hidden, memory = (s[layer][None] for s in states.clone())
        identity = torch.eye(len(preactivation), dtype=regions.dtype)
        new = CELLS[config.rnn_type](
            preactivation[None],
            (hidden, memory) if config.rnn_type == "lstm" else hidden,
            identity,  # the product with the input is in `preactivation` already
            rnn.weight_hh_l0,
            torch.zeros_like(preactivation),
            rnn.bias_hh_l0,
        )
        new = new if isinstance(new, tuple) else (new,)
        for kind, value in enumerate(new):
            states[kind, layer] = value[0]
        return new[0][0]

    steps = [decoder.embed_tokens.weight[word] for word in words]
    if config.image_injection == "first_token":
        steps.insert(0, image)
    weight, bias = decoder.layers[0].weight_ih_l0, decoder.layers[0].bias_ih_l0
    logits, attentions = [], []
    for index, step in enumerate(steps):
        output = weight[:, :size] @ step + bias
        if config.image_injection == "bias_every_step" or (config.image_injection == "bias_first_step" and index == 0):
            output = output + weight[:, size : 2 * size] @ image
        if decoder.attention is not None:
            context, alphas = attend_by_hand(decoder.attention, states[0, -1].clone(), regions)
            output = output + weight[:, -size:] @ context
            attentions.append(alphas)
        output = cell(0, output)
        for layer in range(1, config.num_hidden_layers):
            rnn = decoder.layers[layer]
            output = cell(layer, rnn.weight_ih_l0 @ output + rnn.bias_ih_l0)
        logits.append(model.lm_head.weight @ output + model.lm_head.bias)
    spoken = slice(len(steps) - len(words), None)  # what is said of the image alone is no word
    return torch.stack(logits[spoken]), torch.stack(attentions[spoken]) if attentions else None


@torch.no_grad()
def test_decoder_follows_its_equations(any_model, regions):
    model, regions = any_model.double(), regions.double()
    model.model.decoder.layers.apply(randomize_biases)
    words = torch.tensor([[1, 4, 9, 13, 7], [1, 5, 11, 3, 6], [1, 19, 8, 12, 4]])
    outputs = model(encoder_outputs=encoded(regions), decoder_input_ids=words, output_attentions=True)
    for index in range(3):
        logits, attentions = decode_by_hand(model, regions[index], words[index].tolist())
        assert_close(outputs.logits[index], logits)
        if attentions is None:
            assert outputs.cross_attentions is None
        else:
            assert_close(outputs.cross_attentions[0][index, 0], attentions)


def randomize_biases(module: nn.Module):
    """Biases start from zero: a forgotten one would go unnoticed."""
    if isinstance(module, nn.RNNBase):
        nn.init.normal_(module.bias_ih_l0)
        nn.init.normal_(module.bias_hh_l0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_in_place_is_that_of_torch(label_smoothing):
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(9, (6,)), torch.randn(6, dtype=torch.float64)
    expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    losses = cross_entropy_(logits * 1, targets, label_smoothing)
    assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(loss @ weights, logits)[0] for loss in (losses, expected))
    assert_close(*gradients, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("image_injection", ["first_token", "initial_state", "bias_first_step", "bias_every_step"])
def test_image_enters_at_its_step_and_at_no_other(make_model, regions, image_injection):
    model = make_model(image_injection=image_injection, rnn_type="rnn_relu")
    decoder = model.model.decoder
    for weight in (decoder.layers[0].weight_hh_l0, decoder.layers[0].bias_hh_l0):
        weight.zero_()  # without memory, each step shows what enters there
    words = torch.tensor([[1, 4, 9], [1, 4, 9], [1, 4, 9]])
    logits = model(encoder_outputs=encoded(regions), decoder_input_ids=words).logits
    depends = [not torch.equal(step[0], step[1]) for step in logits.unbind(1)]
    assert (
        depends
        == {
            "first_token": [False, False, False],
            "initial_state": [False, False, False],
            "bias_first_step": [True, False, False],
            "bias_every_step": [True, True, True],
        }[image_injection]
    )


def test_logits_are_of_the_words_and_not_of_the_image(any_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    outputs = any_model(pixel_values, decoder_input_ids=words, output_attentions=True, output_hidden_states=True)
    assert outputs.logits.shape == (3, 4, 20)
    assert [h.shape[:2] for h in outputs.decoder_hidden_states] == [(3, 4)] * (1 + any_model.config.num_hidden_layers)
    if any_model.config.attention_type == "additive":
        (attentions,) = outputs.cross_attentions
        assert attentions.shape == (3, 1, 4, 16)
        assert_close(attentions.sum(dim=-1), torch.ones(3, 1, 4))


@torch.no_grad()
def test_every_decoder_looks_at_the_image(any_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    logits = any_model(pixel_values, decoder_input_ids=words).logits
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


@torch.no_grad()
def test_fused_and_stepwise_recurrence_agree(any_model, pixel_values, monkeypatch):
    words = torch.tensor([[1, 4, 9, 13, 7]]).expand(3, -1)
    fused = any_model(pixel_values, decoder_input_ids=words)
    monkeypatch.setattr(recurrence_cnnrnn, "needs_steps", lambda *_: True)
    stepwise = any_model(pixel_values, decoder_input_ids=words)
    assert_close(fused.logits, stepwise.logits)
    assert_close(fused.past_key_values.state, stepwise.past_key_values.state)


def test_teacher_forcing_without_attention_is_one_call(make_model, pixel_values, labels, monkeypatch):
    calls = []
    forward = nn.LSTM.forward
    monkeypatch.setattr(nn.LSTM, "forward", lambda self, x, *args: calls.append(x.shape[1]) or forward(self, x, *args))
    make_model()(pixel_values, labels=labels)
    assert calls == [1 + labels.shape[1]]  # the image, then the words


def test_vocabulary_is_computed_at_real_tokens_only(tiny_model, pixel_values, labels):
    rows = []
    tiny_model.lm_head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
    tiny_model.train()(pixel_values, labels=labels)
    assert rows == [int((labels != 0).sum())]


@torch.no_grad()
def test_the_encoder_embeds_the_regions_or_their_mean(make_model, pixel_values):
    for attention_type, pool in (("additive", lambda f: f), ("none", lambda f: f.mean(dim=1, keepdim=True))):
        encoder = make_model(attention_type=attention_type).get_encoder()
        features = encoder.cnn(pixel_values).last_hidden_state.flatten(2).transpose(1, 2)
        assert_close(encoder(pixel_values).last_hidden_state, encoder.projection(pool(features)))


# --- Invariances -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one(any_model, pixel_values, labels):
    words = any_model.prepare_decoder_input_ids_from_labels(labels)
    together = any_model(pixel_values, decoder_input_ids=words).logits
    alone = [any_model(p[None], decoder_input_ids=w[None]).logits for p, w in zip(pixel_values, words, strict=True)]
    assert_close(together, torch.cat(alone))


@torch.no_grad()
def test_padding_changes_neither_loss_nor_logits(any_model, pixel_values, labels):
    padded = F.pad(labels, (0, 4))
    short, long = any_model(pixel_values, labels=labels), any_model(pixel_values, labels=padded)
    assert_close(short.loss, long.loss)
    assert_close(short.logits, long.logits[:, : labels.shape[1]])
    ignored = any_model(pixel_values, labels=padded.masked_fill(padded == 0, -100))
    assert_close(short.loss, ignored.loss)


@torch.no_grad()
def test_masked_tokens_are_not_read(any_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    expected = any_model(pixel_values, decoder_input_ids=words)
    padded = torch.tensor([[0, 7, 1, 4, 5, 9, 13]]).expand(3, -1)
    mask = torch.tensor([[0, 0, 1, 1, 0, 1, 1]]).expand(3, -1)
    outputs = any_model(pixel_values, decoder_input_ids=padded, decoder_attention_mask=mask)
    assert_close(outputs.logits[:, mask[0].bool()], expected.logits)
    assert_close(outputs.past_key_values.state, expected.past_key_values.state)


@torch.no_grad()
def test_image_features_and_encoder_outputs_stand_for_the_pixels(any_model, pixel_values, labels):
    encoder = any_model.get_encoder()
    expected = any_model(pixel_values, labels=labels)
    features, _ = encoder.get_image_features(pixel_values)
    assert features.shape == (3, 16, 16)
    outputs = encoder(pixel_values)
    for inputs in ({"image_features": features}, {"encoder_outputs": outputs}, {"encoder_outputs": outputs.to_tuple()}):
        again = any_model(**inputs, labels=labels)
        assert torch.equal(again.logits, expected.logits)
        assert torch.equal(again.loss, expected.loss)


@torch.no_grad()
def test_embeddings_stand_for_the_words(tiny_model, pixel_values):
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    embeddings = tiny_model.get_input_embeddings()(words)
    outputs = tiny_model(pixel_values, decoder_inputs_embeds=embeddings)
    assert torch.equal(outputs.logits, tiny_model(pixel_values, decoder_input_ids=words).logits)


# --- Initial weights, saving, loading --------------------------------------------------------------------------------


@pytest.mark.parametrize("rnn_type", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_recurrent_weights_start_orthogonal_gate_by_gate(make_model, rnn_type):
    model = make_model(rnn_type=rnn_type, num_hidden_layers=2)
    for layer in model.model.decoder.layers:
        for gate in layer.weight_hh_l0.split(14):
            assert_close(gate @ gate.T, torch.eye(14))
        bias = (layer.bias_ih_l0 + layer.bias_hh_l0).split(14)
        for index, gate in enumerate(bias):
            is_forget_gate = rnn_type == "lstm" and index == 1
            assert_close(gate, torch.ones(14) if is_forget_gate else torch.zeros(14))


@torch.no_grad()
def test_saved_model_loads_bit_equal(any_model, pixel_values, labels, tmp_path):
    expected = any_model(pixel_values, labels=labels)
    any_model.save_pretrained(tmp_path)
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    assert not loaded.training
    assert torch.equal(loaded(pixel_values, labels=labels).logits, expected.logits)
    assert changed(snapshot(any_model), loaded) == set()
    assert loaded.generation_config.to_dict() == any_model.generation_config.to_dict()


def test_auto_classes_load_the_model(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is CnnRnnForConditionalGeneration
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is CnnRnnModel
    assert changed(snapshot(tiny_model.model), base) == set()


def test_tied_weights_are_one_tensor_and_saved_once(make_model, pixel_values, labels, tmp_path):
    model = make_model(tie_word_embeddings=True, hidden_size=12)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert "model.decoder.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    for tied in (model, loaded):
        assert tied.lm_head.weight is tied.model.decoder.embed_tokens.weight
    assert torch.equal(loaded(pixel_values, labels=labels).logits, model(pixel_values, labels=labels).logits)


def test_untied_weights_are_two_tensors(tiny_model):
    assert tiny_model.lm_head.weight is not tiny_model.get_input_embeddings().weight


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("size", [25, 15])
def test_resized_vocabulary_keeps_what_it_knew(make_model, pixel_values, tied, size):
    model = make_model(tie_word_embeddings=tied, hidden_size=12)
    words = torch.tensor([[1, 4, 9, 13]]).expand(3, -1)
    expected = model(pixel_values, decoder_input_ids=words).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    logits = model(pixel_values, decoder_input_ids=words).logits
    assert logits.shape == (3, 4, size)
    assert_close(logits[..., :15], expected[..., :15])
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model(pixel_values, labels=torch.full((3, 2), size - 1)).loss.isfinite()
    assert model.generate(pixel_values, max_new_tokens=3).shape[0] == 3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_half_precision_loads_computes_and_writes(make_model, pixel_values, labels, tmp_path, attention_type, dtype):
    model = make_model(attention_type=attention_type, initializer_range=0.1)
    model.save_pretrained(tmp_path)
    half = CnnRnnForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    expected, outputs = model(pixel_values, labels=labels), half(pixel_values, labels=labels)
    assert outputs.loss.dtype == torch.float32
    assert_close(outputs.logits.float(), expected.logits, rtol=0.05, atol=0.05)
    assert half.generate(pixel_values, max_new_tokens=4, num_beams=2).shape[0] == 3


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map_loads_the_model(tiny_model, pixel_values, labels, tmp_path, device_map):
    pytest.importorskip("accelerate")
    tiny_model.save_pretrained(tmp_path)
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)
    loss = loaded(pixel_values.to(loaded.device), labels=labels.to(loaded.device)).loss
    assert_close(loss.cpu(), tiny_model(pixel_values, labels=labels).loss)


@torch.no_grad()
def test_compiled_decoder_is_the_same(make_model, regions, labels):
    model = make_model(attention_type="additive")
    compiled = torch.compile(model, backend="eager")
    inputs = {"encoder_outputs": encoded(regions), "labels": labels}
    assert_close(compiled(**inputs).loss, model(**inputs).loss)


@pytest.mark.slow
@pytest.mark.parametrize("attention_type", ["none", "additive"])
def test_compiled_forward_and_gradients_are_the_same(make_model, pixel_values, labels, attention_type):
    losses, gradients = [], []
    for backend in (None, "aot_eager"):
        model = make_model(attention_type=attention_type).train()
        forward = model if backend is None else torch.compile(model, backend=backend)
        losses.append(forward(pixel_values, labels=labels).loss)
        losses[-1].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_close(*losses)
    assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_autocast_trains(make_model, pixel_values, labels):
    for attention_type in ("none", "additive"):
        model = make_model(attention_type=attention_type).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(pixel_values, labels=labels).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(p.grad.isfinite().all() for p in model.parameters())


# --- CNNs ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("attention_type", ["none", "additive"])
@pytest.mark.parametrize("cnn", list(TINY_CNNS))
def test_any_cnn_of_transformers_can_see(make_model, pixel_values, labels, tmp_path, cnn, attention_type):
    model = make_model(encoder=TINY_CNNS[cnn].to_dict(), attention_type=attention_type)
    outputs = model(pixel_values, labels=labels, output_hidden_states=True)
    assert outputs.loss.isfinite()
    assert outputs.encoder_hidden_states is not None
    model.save_pretrained(tmp_path)
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values, labels=labels).logits, outputs.logits)
    assert torch.equal(loaded.generate(pixel_values), model.generate(pixel_values))


@torch.no_grad()
def test_a_cnn_of_timm_can_see(make_model, pixel_values, labels):
    try:
        import timm  # noqa: F401
    except Exception as error:  # a torchvision that does not fit its torch raises RuntimeError
        pytest.skip(f"timm cannot be imported: {error}")
    model = make_model(encoder={"model_type": "timm_wrapper", "architecture": "test_resnet"})
    assert model(pixel_values, labels=labels).loss.isfinite()


@torch.no_grad()
@pytest.mark.parametrize(("layer", "index"), [(-1, -1), (-2, 1), (0, 0), (2, 2)])
def test_vision_feature_layer_chooses_what_is_looked_at(make_model, pixel_values, layer, index):
    model = make_model(vision_feature_layer=layer, attention_type="additive")
    encoder = model.get_encoder()
    expected = encoder.cnn(pixel_values, output_hidden_states=True).hidden_states[index]
    features, _ = encoder.get_image_features(pixel_values)
    assert torch.equal(features, expected.flatten(2).transpose(1, 2))
    assert encoder(pixel_values).last_hidden_state.shape == (3, expected[0, 0].numel(), 12)


@pytest.mark.parametrize("head", [ResNetModel, ResNetForImageClassification])
def test_from_encoder_pretrained_takes_the_weights_of_the_cnn(
    tiny_encoder_config, tiny_tokenizer, pixel_values, labels, tmp_path, head
):
    checkpoint = head(tiny_encoder_config)
    for module in checkpoint.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # statistics are weights too
    checkpoint.save_pretrained(tmp_path)
    model = CnnRnnForConditionalGeneration.from_encoder_pretrained(
        str(tmp_path), tokenizer=tiny_tokenizer, rnn_type="gru", hidden_size=14, embedding_size=12
    )
    assert changed(snapshot(getattr(checkpoint, "resnet", checkpoint)), model.get_encoder().cnn) == set()
    assert model.config.vocab_size == len(tiny_tokenizer)
    assert model.config.rnn_type == "gru"
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert not model.training
    assert model(pixel_values, labels=labels).loss.isfinite()
    model.save_pretrained(tmp_path / "captioner")
    loaded = CnnRnnForConditionalGeneration.from_pretrained(tmp_path / "captioner")
    assert changed(snapshot(model), loaded) == set()


def test_from_encoder_pretrained_lets_options_win_over_the_tokenizer(tiny_encoder_config, tiny_tokenizer, tmp_path):
    ResNetModel(tiny_encoder_config).save_pretrained(tmp_path)
    model = CnnRnnForConditionalGeneration.from_encoder_pretrained(tmp_path, tokenizer=tiny_tokenizer, vocab_size=64)
    assert model.lm_head.out_features == 64


# --- Bad input -------------------------------------------------------------------------------------------------------


def test_an_empty_batch_is_refused(tiny_model):
    with pytest.raises(ValueError, match="`pixel_values` is an empty batch"):
        tiny_model.generate(torch.zeros(0, 3, 32, 32))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused(tiny_model, pixel_values, value):
    pixel_values[1, 0, 3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        tiny_model.generate(pixel_values)


@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (3, 4, 32, 32), (3, 32, 32), (3, 32, 32, 3)])
def test_images_of_another_shape_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match=r"`pixel_values` has shape .*: pass \(batch_size, 3, height, width\)"):
        tiny_model.generate(torch.zeros(shape))


@pytest.mark.parametrize("token", [20, -3])
def test_words_outside_the_vocabulary_are_refused(tiny_model, pixel_values, labels, token):
    wrong = labels.clone()
    wrong[0, 1] = token
    with pytest.raises(ValueError, match=rf"token {token}, outside the vocabulary of 20"):
        tiny_model(pixel_values, decoder_input_ids=wrong)
    with pytest.raises(ValueError, match=rf"token {token}, outside the vocabulary of 20"):
        tiny_model(pixel_values, labels=wrong)


def test_a_last_label_outside_the_vocabulary_is_refused(tiny_model, pixel_values, labels):
    labels[0, -1] = 20  # the only place that is never read
    with pytest.raises(ValueError, match="token 20, outside the vocabulary of 20"):
        tiny_model(pixel_values, labels=labels)


def test_more_captions_than_images_are_refused(tiny_model, pixel_values, labels):
    with pytest.raises(ValueError, match="3 images were given with 6 captions"):
        tiny_model(pixel_values, labels=labels.repeat(2, 1))
    with pytest.raises(ValueError, match="2 images were given with 3 captions"):
        tiny_model(pixel_values[:2], labels=labels[:, None])


@pytest.mark.parametrize("nothing", [0, -100])
def test_labels_without_a_word_are_refused(tiny_model, pixel_values, nothing):
    with pytest.raises(ValueError, match="hold no word to learn"):
        tiny_model(pixel_values, labels=torch.full((3, 4), nothing))


def test_an_image_is_given_in_one_way(tiny_model, pixel_values, labels):
    features, _ = tiny_model.get_encoder().get_image_features(pixel_values)
    for inputs in ({}, {"pixel_values": pixel_values, "image_features": features}):
        with pytest.raises(ValueError, match="either `pixel_values` or `image_features`"):
            tiny_model(**inputs, labels=labels)


def test_words_are_given_in_one_way(tiny_model, pixel_values):
    words = torch.tensor([[1, 4]]).expand(3, -1)
    embeddings = tiny_model.get_input_embeddings()(words)
    for inputs in ({}, {"decoder_input_ids": words, "decoder_inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="either `decoder_input_ids` or `decoder_inputs_embeds`"):
            tiny_model(pixel_values, **inputs)


@pytest.mark.parametrize(
    "encoder",
    [
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32),
        SwinConfig(embed_dim=8, depths=[1], num_heads=[2], image_size=32),
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=30),
    ],
    ids=lambda config: config.model_type,
)
def test_an_encoder_that_is_no_cnn_is_refused(encoder):
    with pytest.raises(ValueError, match=f"'{encoder.model_type}'.*pass a CNN"):
        CnnRnnForConditionalGeneration(CnnRnnConfig(encoder=encoder))


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_cnn_does_not_have_is_refused(make_model, layer):
    with pytest.raises(ValueError, match=f"`vision_feature_layer` is {layer} but the CNN has 3 hidden states"):
        make_model(vision_feature_layer=layer)
