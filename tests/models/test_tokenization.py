"""The word-level tokenizer."""

import json
import subprocess
import sys

import pytest
from support.paths import ROOT
from transformers import AutoTokenizer

from modeling_cnnrnn.models.tokenization_cnnrnn import build_tokenizer


CAPTIONS = [
    "A dog jumps over a bar.",
    "A cat jumps over a red ball!",
    "The man's dog, two cats & a red ball",
]


def words(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


def round_trip(tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer(text).input_ids)


def test_special_tokens_have_the_first_ids_and_all_differ():
    tokenizer = build_tokenizer(CAPTIONS, min_frequency=1)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "<bos>", "<eos>", "<unk>"]
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert ids == [0, 1, 2, 3]


def test_a_caption_gets_one_end_token_and_no_start_token():
    tokenizer = build_tokenizer(CAPTIONS, min_frequency=1)
    ids = tokenizer("a dog jumps").input_ids
    assert ids[-1] == 2
    assert ids.count(2) == 1
    assert 1 not in ids


def test_truncation_keeps_the_end_token():
    tokenizer = build_tokenizer(CAPTIONS, min_frequency=1)
    ids = tokenizer("a dog jumps over a bar", truncation=True, max_length=3).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "dog", "<eos>"]


def test_batches_are_padded_on_the_right_and_have_no_token_type_ids():
    batch = build_tokenizer(CAPTIONS, min_frequency=1)(["a dog", "a"], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][1][-1] == 0
    assert batch["attention_mask"][1] == [1, 1, 0]


def test_min_frequency_keeps_words_seen_at_least_that_often():
    captions = ["cat dog bird"] * 2 + ["cat dog"] + ["cat"]  # 4, 3 and 2 times
    assert set(build_tokenizer(captions, min_frequency=3).get_vocab()) == {
        *("<pad>", "<bos>", "<eos>", "<unk>"),
        *("cat", "dog"),
    }


def test_unknown_words_become_unk():
    tokenizer = build_tokenizer(CAPTIONS, min_frequency=1)
    assert words(tokenizer, "a zebra jumps") == ["a", "<unk>", "jumps"]


def test_vocab_size_keeps_the_most_frequent_words_and_counts_special_tokens():
    tokenizer = build_tokenizer(["a a a dog dog cat"], min_frequency=1, vocab_size=6)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3, "a": 4, "dog": 5}
    assert len(tokenizer) == 6


def test_no_limit_cuts_a_large_vocabulary():
    assert len(build_tokenizer([f"word{i}" for i in range(40_000)], min_frequency=1)) == 40_004


def test_ids_are_by_frequency_then_alphabet_whatever_the_order_of_captions():
    captions = ["b c", "c a", "d"]
    vocabulary = build_tokenizer(captions, min_frequency=1).get_vocab()
    assert sorted(vocabulary, key=vocabulary.get)[4:] == ["c", "a", "b", "d"]
    assert build_tokenizer(captions[::-1], min_frequency=1).get_vocab() == vocabulary


def test_ids_do_not_depend_on_the_hash_seed():
    code = (
        "import json; from modeling_cnnrnn.models.tokenization_cnnrnn import build_tokenizer;"
        "print(json.dumps(build_tokenizer(['zebra apple mango kiwi plum'], min_frequency=1).get_vocab()))"
    )
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = build_tokenizer(["zebra apple mango kiwi plum"], min_frequency=1).get_vocab()
    assert json.loads(output.stdout) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('A dog, a CAT; (red) "ball"... ok!?', "a dog a cat red ball ok"),
        ("a t-shirt - and -- jeans-", "a t-shirt and jeans"),
        ("l'eau d'une 'quoted' word's", "l'eau d'une quoted word 's"),
        ("the dogs' ball", "the dogs ball"),
        ("the man 's man’s", "the man 's man 's"),
        ("he doesn't, they don’t", "he does n't they do n't"),
        ("salt&pepper 50% #5 $3.50", "salt & pepper 50 % # 5 $ 3.50"),
        ("1,000 people at 10:30.", "1,000 people at 10:30"),
        ("snow_board and/or ski", "snow board and or ski"),
        ("ﬁne Ｗｉｄｅ cafe\u0301", "fine wide café"),
        ("a   dog\n\tjumps", "a dog jumps"),
    ],
)
def test_normalisation_gives_the_words_of_the_metrics(text, expected):
    tokenizer = build_tokenizer([text], min_frequency=1)
    assert words(tokenizer, text) == expected.split()


def test_words_of_a_known_sentence_are_those_of_coco_caption():
    # what PTBTokenizer of coco-caption gives for the same raw sentence
    raw = "The man's dog doesn't like a black-and-white T-shirt, and it's 5 o'clock."
    ptb = "the man 's dog does n't like a black-and-white t-shirt and it 's 5 o'clock"
    assert words(build_tokenizer([raw], min_frequency=1), raw) == ptb.split()


def test_case_stays_if_asked():
    assert words(build_tokenizer(["A Dog"], min_frequency=1, lowercase=False), "A Dog") == ["A", "Dog"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ein Straßenhändler läuft.", ["ein", "straßenhändler", "läuft"]),
        ("Собака бежит по траве", ["собака", "бежит", "по", "траве"]),
        ("कुत्ता दौड़ता है।", ["कुत्ता", "दौड़ता", "है"]),
        ("می‌دود سگ", ["می‌دود", "سگ"]),
        ("개가 달린다", ["개가", "달린다"]),
        ("一个人在跑步。", list("一个人在跑步")),
        ("ラーメンを食べる", list("ラーメンを食べる")),
        ("มีแมว", ["มี", "แ", "ม", "ว"]),
    ],
)
def test_words_are_words_of_any_language(text, expected):
    assert words(build_tokenizer([text], min_frequency=1), text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("A dog, jumps!", "a dog jumps"),
        ("the man's dog doesn't", "the man's dog doesn't"),
        ("一个人在跑步。", "一个人在跑步"),
        ("一个 t-shirt 人", "一个 t-shirt 人"),
        ("มีแมวที่นี่", "มีแมวที่นี่"),
        ("कुत्ता दौड़ता है", "कुत्ता दौड़ता है"),
        ("", ""),
    ],
)
def test_decoding_writes_a_clean_sentence(text, sentence):
    assert round_trip(build_tokenizer([text, "x"], min_frequency=1), text) == sentence


def test_decoding_leaves_out_padding_start_and_end():
    tokenizer = build_tokenizer(CAPTIONS, min_frequency=1)
    ids = [1, *tokenizer("a dog jumps").input_ids, 0, 0]
    assert tokenizer.decode(ids) == "a dog jumps"
    assert tokenizer.decode([0, 0]) == ""


def test_decoding_shows_unk_unless_special_tokens_are_skipped():
    tokenizer = build_tokenizer(CAPTIONS, min_frequency=1)
    ids = tokenizer("a zebra jumps").input_ids
    assert tokenizer.decode(ids) == "a <unk> jumps"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a jumps"


def test_auto_tokenizer_loads_it_without_custom_code(tmp_path):
    tokenizer = build_tokenizer(CAPTIONS, min_frequency=1)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("The man's zebra").input_ids == tokenizer("The man's zebra").input_ids
    assert loaded.decode([1, 4, 5, 2]) == tokenizer.decode([1, 4, 5, 2])
    assert (loaded.padding_side, loaded.model_input_names) == ("right", ["input_ids", "attention_mask"])


@pytest.mark.parametrize(
    "captions", [CAPTIONS, [CAPTIONS[:2], CAPTIONS[2:]], iter(CAPTIONS), (c for c in [CAPTIONS]), tuple(CAPTIONS)]
)
def test_captions_may_be_any_iterable_of_strings_or_of_lists(captions):
    expected = build_tokenizer(list(CAPTIONS), min_frequency=1).get_vocab()
    assert build_tokenizer(captions, min_frequency=1).get_vocab() == expected


@pytest.mark.parametrize("captions", [[], [[]], iter([])])
def test_no_captions_is_an_error(captions):
    with pytest.raises(ValueError, match="`captions` is empty"):
        build_tokenizer(captions)


def test_captions_without_words_are_an_error():
    with pytest.raises(ValueError, match="2 captions without a single word"):
        build_tokenizer(["...", ""])


def test_no_frequent_word_is_an_error_that_says_the_highest_count():
    with pytest.raises(ValueError, match=r"`min_frequency`=9 times, the most frequent \('a'\) is seen 5 times"):
        build_tokenizer(CAPTIONS, min_frequency=9)


def test_a_string_for_a_list_is_an_error():
    with pytest.raises(ValueError, match="is the string 'a dog'"):
        build_tokenizer("a dog")


@pytest.mark.parametrize("captions", [["a dog", None], [["a dog", 3]]])
def test_a_caption_that_is_no_string_is_an_error(captions):
    with pytest.raises(ValueError, match=r"`captions` holds (None|3)"):
        build_tokenizer(captions)


@pytest.mark.parametrize("options", [{"min_frequency": 0}, {"vocab_size": 4}])
def test_options_that_leave_no_room_are_an_error(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is"):
        build_tokenizer(CAPTIONS, **options)
