"""The words of captions: scripts without spaces, and letters with several spellings."""

import re
import unicodedata

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers

from modeling_cnnrnn.metrics import caption_health, caption_metrics, ptb_tokenize, tokenize_captions
from modeling_cnnrnn.metrics.words import UNSPACED
from modeling_cnnrnn.models import tokenization_cnnrnn
from modeling_cnnrnn.models.tokenization_cnnrnn import build_tokenizer


def words_of_tokenizer(caption: str) -> list[str]:
    """The words that a captioner is trained on."""
    tokenizer = build_tokenizer([caption], min_frequency=1)
    return tokenizer.convert_ids_to_tokens(tokenizer(caption, add_special_tokens=False).input_ids)


def written_by_a_captioner(caption: str) -> str:
    """The sentence that a captioner writes which has learned this caption by heart."""
    tokenizer = build_tokenizer([caption], min_frequency=1)
    return tokenizer.decode(tokenizer(caption).input_ids)


UNSPACED_CAPTIONS = [
    "这张白纸上有个红色球。",
    "一个红色盒子，放在「桌子」上！",
    "ラーメンを食べる人。",
    "ｶﾞｿﾘﾝスタンドの前に３台の車",
    unicodedata.normalize("NFD", "ガソリンスタンドの前"),
    "มีแมวอยู่ที่นี่ น้ำ",
    "ໝາ\u200bກຳລັງແລ່ນ",
    "ឆ្កែ​កំពុង​រត់",
    "ခွေးတစ်ကောင် ပြေးနေသည်။",
    "ཁྱི་ཞིག་རྒྱུག་བཞིན་འདུག།",
    "一个 Red box, isn't it? 3.5米 50%",
    "穿T恤的man's dog",
    "ＮＢＡの選手 (23番)",
    "第①名 ㎏ 𠮷野家",
    "ΟΔΟΣ 街",
]


def test_unspaced_scripts_are_those_of_the_tokenizer():
    split = pre_tokenizers.Split(Regex(f"[{tokenization_cnnrnn.UNSPACED}]"), "isolated")
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    expected: set[str] = set()
    for start in range(0, len(characters), 4096):
        pieces = split.pre_tokenize_str("a" + "a".join(characters[start : start + 4096]) + "a")
        expected.update(piece for piece, _ in pieces if len(piece) == 1)
    expected.discard("a")
    assert set(re.findall(f"[{UNSPACED}]", "".join(characters))) == expected


@pytest.mark.parametrize("caption", UNSPACED_CAPTIONS)
def test_unspaced_captions_have_the_words_that_a_captioner_is_trained_on(caption):
    (words,) = tokenize_captions([caption])
    assert words.split() == words_of_tokenizer(caption)


@pytest.mark.slow
def test_random_mixtures_have_the_words_that_a_captioner_is_trained_on():
    rng = np.random.default_rng(0)
    parts = ["一", "个", "ガ", "ｶﾞ", "น้ำ", "ကို", "ស្រី", "ཀྲུ", "々", "ー", "。", "，", "！", "Ｔ", "１", "\u200b", "\u3099"]
    parts += [
        "dog",
        "Man",
        "'s",
        "n't",
        "don't",
        "'",
        "-",
        "--",
        "1,000",
        "3.5",
        "10:30",
        ".",
        ",",
        "&",
        "50%",
        "(",
        "<b>",
    ]
    parts += ["é", "e\u0301", "Σ", "개", "²", "½", "\u2019", "\u2010", "\u00ad", "😀", " ", " ", "\t", "\n", "_", "/"]
    for _ in range(2000):
        caption = "".join(rng.choice(parts, rng.integers(1, 9))) + rng.choice(parts[:10])
        expected = [word.replace("ς", "σ") for word in words_of_tokenizer(caption)]
        assert tokenize_captions([caption]) == [" ".join(expected)], ascii(caption)


def test_a_mixed_sentence_is_characters_and_words():
    assert tokenize_captions(["一个 Red box。", "它isn't《the man's》"]) == ["一 个 red box", "它 is n't the man 's"]


def test_the_unknown_word_is_one_word_in_every_script():
    assert tokenize_captions(["一个<unk>盒子", "a <unk> box"]) == ["一 个 <unk> 盒 子", "a <unk> box"]
    assert caption_health(["一个<unk>盒子", "一个盒子"])["unknown"] == 0.5


SPACED_CAPTIONS = [
    "un café près de l'hôtel",
    "Một người đàn ông đang chạy trên đường phố",
    "개 한 마리가 잔디밭을 달린다",
    "ㅋㅋ 웃는 아이",
    "काले रंग का कुत्ता सड़क पर दौड़ता है",
    "काला कुत्ता स\u095cक पर",
    "كلبٌ يجري على العشب ٣ مرات",
    "ﻛﻠﺐ ﻳﺠﺮﻱ ﻋﻠﻰ ﺍﻟﻌﺸﺐ",
    "סוּס רץ בַּשָּׂדֶה",
    "Η ΟΔΟΣ και ο σκύλος",
    "Собака бежит по траве возле ёлки й",
    "Շունը և կատուն",
    "İstanbul'da bir köpek",
    "Ｗｉｄｅ ｒｏａｄ ９",
]


@pytest.mark.parametrize("caption", SPACED_CAPTIONS + UNSPACED_CAPTIONS)
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_a_caption_known_by_heart_has_the_words_of_the_reference_in_any_normal_form(caption, form):
    reference = unicodedata.normalize(form, caption)
    assert tokenize_captions([written_by_a_captioner(caption)]) == tokenize_captions([reference])


@pytest.mark.parametrize(
    "caption",
    ["A dog, in the Café — it's 5 o'clock…", "niño №3 ½ cup ﬁne 2² ™", "Собака бежит.", "हिन्दी है।", "개가 달린다"],
)
def test_captions_without_such_characters_have_the_tokens_of_coco_caption(caption):
    beside = ["He lives in St.", caption, "The 红色 box", "no.", "5 dogs"]
    tokens = tokenize_captions(beside)
    official = ptb_tokenize(beside)
    assert tokens[:2] + tokens[3:] == official[:2] + official[3:]


def test_near_matches_score_by_their_characters():
    predictions = ["一个红色盒子放在白纸上", "一个蓝色球放在桌子上"]
    references = [["一个红色的盒子放在白纸上。"], ["一个蓝色的球放在桌子上。"]]
    by_hand = caption_metrics(
        [" ".join(map(str, map(ord, text))) for text in predictions],
        [
            [" ".join(str(ord(character)) for character in text if character != "。") for text in references_of_image]
            for references_of_image in references
        ],
    )
    scores = caption_metrics(predictions, references)
    assert scores == by_hand
    assert scores["CIDEr"] > 3


def test_health_counts_characters_where_there_are_no_spaces():
    health = caption_health(["一个人在跑步。", "一个人 在跑步"], training_captions=["一个人在跑步！"])
    assert (health["vocabulary"], health["mean_length"], health["unique"], health["novel"]) == (6, 6.0, 0.5, 0.0)
