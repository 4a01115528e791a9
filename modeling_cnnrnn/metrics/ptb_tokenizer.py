"""
Tokenize as coco-caption does, with Stanford's Penn Treebank tokenizer, but without Java.

coco-caption writes all captions into one text, one per line, runs CoreNLP 3.4.1 with `-preserveLines -lowerCase`
over it and removes 17 punctuation tokens. The rules below were found by comparing outputs, not by reading CoreNLP,
whose code is under the GPL: the abbreviations by trying all strings of up to three letters and the words of captions
before a stop, the characters by trying all of Unicode. Where more than one rule matches, the longest match wins.

The official numbers depend on these rules, so they are kept:

- brackets come out as `-lrb-` and the like, and stay: the list of removed tokens has them in capitals;
- "cannot" is two words, "22 3/4" is one (with a no-break space inside), `<unk>` is one, "@" joins its neighbours;
- `St.`, `p.m.` and a single letter keep their stop, the letter not before a capitalised word such as "The"; that word may
  be the next caption's, so the result can depend on the order of the captions;
- emoji and characters younger than Unicode 6 vanish, and separate words.

All real captions that were tried have the same tokens; of captions with random signs about four in 100,000 differ. One
difference is deliberate. A line break other than "\\n" (carriage return, vertical tab, form feed, U+2028,
U+2029) ends the line for CoreNLP too, and coco-caption then gives every later caption the tokens of its predecessor.
Here it is a space, as coco-caption makes of "\\n".
"""

import re
from collections.abc import Iterable, Iterator


# What coco-caption removes.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# Abbreviations that keep their stop: those that stand before a word, those that may end a sentence (in any case, or with
# a capital letter only), those that stand before a number.
_ABBREVIATIONS = """
adj adm adv assoc asst atty ave brig capt cf cie cmdr col comdr cpl dept det dr drs ens ft gen gov hon insp jos lieut
lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph prof pvt rep rev sen sfc sgt spc st ste supt vs wm
"""
_ENDING_ABBREVIATIONS = """
al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga inc
ind intl jan jr jul jun kan ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc pte pty rd rt sep sept
seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wyo
"""
_CAPITAL_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_NUMBER_ABBREVIATIONS = "art ca fig figs no nos op pp prop"

# Words that begin a sentence: before them a single letter loses its stop.
_SENTENCE_STARTS = """
A About According After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms. Now Once One Other Our She
Since So Some Such That The Their Then There These They This We What When While Yet You
"""

# Every other character beyond ASCII vanishes.
_LETTERS = """
aa b5 ba c0-d6 d8-f6 f8-37d 384-386 388-38a 38c 38e-3a1 3a3-481 483-487 48a-527 531-556 559-55f 561-587 591-5bd 5bf
5c1-5c2 5c4-5c5 5c7 5d0-5ea 5f0-5f2 615-61a 620-65e 660-669 66e-6d3 6d5-6ff 70f-7b1 7c0-7f5 7fa 800-815 81a 824 828
840-858 8a0 8a2-8ac 900-939 93c-94e 950-955 958-963 966-96f 971-977 979-97f 981-983 985-98c 98f-990 993-9a8 9aa-9b0
9b2 9b6-9b9 9bc-9c4 9c7-9c8 9cb-9ce 9d7 9dc-9dd 9df-9e3 9e6-9f1 a01-a03 a05-a0a a0f-a10 a13-a28 a2a-a30 a32-a33
a35-a36 a38-a39 a3c a3e-a4f a59-a5c a5e a66-a6f a72-a74 a81-a83 a85-a8d a8f-a91 a93-aa8 aaa-ab0 ab2-ab3 ab5-ab9
abc-ad0 ae0-ae1 ae6-aef b05-b0c b0f-b10 b13-b28 b2a-b30 b32-b33 b35-b39 b3d b5c-b5d b5f-b61 b66-b6f b71 b82-b83
b85-b8a b8e-b90 b92-b95 b99-b9a b9c b9e-b9f ba3-ba4 ba8-baa bae-bb9 bbe-bc2 bc6-bc8 bca-bcd bd0 be6-bef c01-c03
c05-c0c c0e-c10 c12-c28 c2a-c33 c35-c39 c3d-c56 c58-c59 c60-c61 c66-c6f c85-c8c c8e-c90 c92-ca8 caa-cb3 cb5-cb9 cbd
cde ce0-ce1 ce6-cef cf1-cf2 d05-d0c d0e-d10 d12-d3a d3d-d44 d46-d48 d4e d60-d61 d66-d6f d7a-d7f d85-d96 d9a-db1
db3-dbb dbd dc0-dc6 e01-e3a e40-e4e e50-e59 e81-e82 e84 e87-e88 e8a e8d e94-e97 e99-e9f ea1-ea3 ea5 ea7 eaa-eab
ead-ebd ec0-ec4 ec6 ec8-ecd ed0-ed9 edc-edf f00 f20-f29 f40-f47 f49-f6c f88-f8c 1000-102a 103f-1049 1050-1055
105a-105d 1061 1065-1066 106e-1070 1075-1081 108e 1090-1099 10a0-10c5 10c7 10cd 10d0-10fa 10fc-1248 124a-124d
1250-1256 1258 125a-125d 1260-1288 128a-128d 1290-12b0 12b2-12b5 12b8-12be 12c0 12c2-12c5 12c8-12d6 12d8-1310
1312-1315 1318-135a 1380-138f 13a0-13f4 1401-166c 166f-167f 1681-169a 16a0-16ea 1700-170c 170e-1711 1720-1731
1740-1751 1760-176c 176e-1770 1780-17b3 17d7 17dc 17e0-17e9 1810-1819 1820-1877 1880-18a8 18aa 18b0-18f5 1900-191c
1946-196d 1970-1974 1980-19ab 19c1-19c7 19d0-19d9 1a00-1a16 1a20-1a54 1a80-1a89 1a90-1a99 1aa7 1b05-1b33 1b45-1b4b
1b50-1b59 1b83-1ba0 1bae-1be5 1c00-1c23 1c40-1c49 1c4d-1c7d 1ce9-1cec 1cee-1cf1 1cf5-1cf6 1d00-1dbf 1e00-1f15
1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc
1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2071 207f 2090-209c 2102 2107 210a-2113 2115 2119-211d 2124 2126
2128 212a-212d 212f-2139 213c-213f 2145-2149 214e 2183-2184 2c00-2c2e 2c30-2c5e 2c60-2ce4 2ceb-2cee 2cf2-2cf3
2d00-2d25 2d27 2d2d 2d30-2d67 2d6f 2d80-2d96 2da0-2da6 2da8-2dae 2db0-2db6 2db8-2dbe 2dc0-2dc6 2dc8-2dce 2dd0-2dd6
2dd8-2dde 2e2f 3005-3006 3031-3035 303b-303c 3041-3096 309d-309f 30a1-30fa 30fc-30ff 3105-312d 3131-318e 31a0-31ba
31f0-31ff 3400-4db5 4e00-9fcc a000-a48c a4d0-a4fd a500-a60c a610-a62b a640-a66e a67f-a697 a6a0-a6e5 a717-a71f
a722-a788 a78b-a78e a790-a793 a7a0-a7aa a7f8-a801 a803-a805 a807-a80a a80c-a822 a840-a873 a882-a8b3 a8d0-a8d9
a8f2-a8f7 a8fb a900-a925 a930-a946 a960-a97c a984-a9b2 a9cf-a9d9 aa00-aa28 aa40-aa42 aa44-aa4b aa50-aa59 aa60-aa76
aa7a aa80-aaaf aab1 aab5-aab6 aab9-aabd aac0 aac2 aadb-aadd aae0-aaea aaf2-aaf4 ab01-ab06 ab09-ab0e ab11-ab16
ab20-ab26 ab28-ab2e abc0-abe2 abf0-abf9 ac00-d7a3 d7b0-d7c6 d7cb-d7fb f900-fa6d fa70-fad9 fb00-fb06 fb13-fb17 fb1d
fb1f-fb28 fb2a-fb36 fb38-fb3c fb3e fb40-fb41 fb43-fb44 fb46-fbb1 fbd3-fd3d fd50-fd8f fd92-fdc7 fdf0-fdfb fe70-fe74
fe76-fefc ff10-ff19 ff21-ff3a ff41-ff5a ff66-ffbe ffc2-ffc7 ffca-ffcf ffd2-ffd7 ffda-ffdc
"""

_SYMBOLS = """
80 91-94 96-97 a1-a9 ab-ac ae-b4 b6-b9 bb-bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c 614 61b 61e-61f
66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2013-2023 2026 2030-203b 203e-2042 2044 2070 2074-207e 2080-208e 20a0
20a4 20ac 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d
214f 2153-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6
"""


def character_class(ranges: str) -> str:
    """Turn ranges of hexadecimal code points into the inside of a regular expression's brackets."""
    return "".join("-".join(chr(int(code, 16)) for code in span.split("-")) for span in ranges.split())


def _any_of(words: str) -> str:
    return "|".join(words.split())


_OTHER_LETTERS = character_class(_LETTERS)
_L = f"[A-Za-z{_OTHER_LETTERS}]"  # a letter
_A = f"[A-Za-z0-9{_OTHER_LETTERS}]"  # a letter or digit
_HYPHEN = "[-_\u058a\u2010\u2011]"
_CURLED = "[\u2019\x92]"
_APOSTROPHE = "['\u2019\x92]"
_TICK = "['\u2019\x92\u2018\u201b\x91`]"  # an apostrophe, or what is typed for one
_CLITIC = "(?i:s|m|d|ll|re|ve)"  # what "'" parts from a word
_ELISION = f"(?:{_APOSTROPHE}(?!{_CLITIC}(?![A-Za-z]))|[`\u2018\u201b\x91])"
_PART = f"(?:[DLOdlo]{_TICK}{_A}{{2,}}|{_A}+)"  # of a hyphenated word
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
_IN_URL, _ENDS_URL = r"[^\s<>\"(){}|\\^`\[\]]", r"[^\s<>\"(){}|\\^`\[\].,;:!?']"
_IN_EMAIL = r"[^\s\"<>|(){}.]"
_NAME = r"[A-Za-z][\w:.-]*"  # of a mark-up element
_TAG = rf"<(?:{_NAME}(?: +{_NAME}(?:=\"[^\"\n]*\"|='[^'\n]*')?)* */?|/{_NAME}|[!?][A-Za-z-][^<>\n]*)>"
_QUOTE = "[`\u00ab\u00bb\u2018-\u201f\u2039\u203a\x91-\x94]"
_SPACE = "[ \t\n\u00a0]"
_START = "|".join(f"{word[0]}(?i:{re.escape(word[1:])})" for word in _SENTENCE_STARTS.split())
_CAPITALIZED = "|".join(f"{word}|{word.upper()}" for word in _CAPITAL_ABBREVIATIONS.split())
_ENDING = f"(?:(?i:{_any_of(_ENDING_ABBREVIATIONS)})|{_CAPITALIZED})"

_RULES = [
    # mark-up and addresses
    _TAG,
    rf"(?i:https?)://{_IN_URL}+{_ENDS_URL}",
    rf"(?:[A-Za-z][A-Za-z0-9]+\.)+(?i:com|net|org|edu)(?:/{_IN_URL}*{_ENDS_URL})?(?!{_A})",
    rf"<?[A-Za-z0-9][^\s\"<>|(){{}}]*@{_IN_EMAIL}+(?:\.{_IN_EMAIL}+)*>?",
    rf"@[A-Za-z_][A-Za-z0-9_]*|#{_L}+",
    r"&(?:(?i:amp|lt|gt|quot|apos|nbsp)|#\d+);",
    # numbers
    r"(?:\d{1,4}[- \u00a0])?\d{1,4}\\?/\d{1,4}(?!\d)",
    r"[-+]?\d*(?:[.,:]\d+)+|[-+]?\d+",
    # words
    rf"{_A}+(?:{_HYPHEN}{_A}+)*",
    rf"{_PART}(?:{_HYPHEN}{_PART})+",
    r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*){1,2}",
    rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9]+))+",
    rf"(?!{_ENDING}\.{_L}(?!{_A})){_L}{_A}*(?:[.!?]{_L}{_A}*)+",
    rf"{_ACRONYM}\.?(?!{_L})",
    rf"[A-Z]+(?:[+&][A-Z]+)+|[A-Z]+\$|[Cc]\+\+|[CFcf]#|\d+\.[CHXchx](?=[.,]|{_SPACE})",
    # abbreviations
    rf"(?i:{_any_of(_ABBREVIATIONS)})\.(?!{_L})",
    rf"{_ENDING}\.(?!{_L}{_A})",
    rf"(?i:{_any_of(_NUMBER_ABBREVIATIONS)})\.(?={_SPACE}?\d)",
    rf"[A-Za-z]\.(?!{_L}|{_SPACE}+(?:(?:{_START}){_SPACE}|{_TAG}))",
    rf"{_A}+(?:(?:{_HYPHEN}|\.){_A}+)*\.(?=[,;:])",
    # apostrophes
    rf"(?i:n{_TICK}t|'{_CLITIC})(?![A-Za-z])|{_CURLED}{_CLITIC}",
    rf"(?i:ma'am|c'mon|o'clock|somethin'|[no]?e'er|s'mores|{_APOSTROPHE}(?:em|till?|cause)|'t(?=is|was))",
    rf"{_APOSTROPHE}[Nn]{_APOSTROPHE}|{_CURLED}[Nn]|'[Nn](?={_SPACE}|\Z)",
    rf"'\d\d(?={_SPACE})|'\d\ds(?![A-Za-z0-9])|{_CURLED}\d\ds?(?![A-Za-z0-9])",
    rf"[DLdl]{_APOSTROPHE}(?!{_CLITIC}(?![A-Za-z]))|[Oo]l{_APOSTROPHE}(?!{_CLITIC}(?![A-Za-z])|{_L}{{2}})",
    rf"(?:[Jj]{_APOSTROPHE}|[Yy]{_APOSTROPHE}(?={_L}))(?!{_CLITIC})",
    rf"[A-HJ-XZdlno]{_ELISION}{_L}{{2,}}",
    rf"[DLOdlo]{_ELISION}{_A}{{2,}}",
    rf"{_L}+[AEIOUYaeiouy]{_ELISION}[aeiouA-Z]{_L}*",
    # signs
    rf"[<>]?[:;=][-o*']?[()\[\]{{|\\pPdDO@](?!{_A}|\Z)",
    r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][-_.][-^x=~<>']\)",
    rf"''|{_QUOTE}{{1,2}}|[\u00b9\u00b2\u00b3\u2070\u2074-\u2079]+|[\u2080-\u2089]+",
    r"\*+|(?:\\\*)+|##+|@@+|__+|<<|>>|[?!]+|--+|\.\.\.+|\.(?: \.){2,}",
    r"\S",
]
_MATCHES = [re.compile(rule).match for rule in _RULES]

# Most of a caption, for speed: a space ends what it matches in every rule that could begin there.
_PLAIN = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*(?=[ \n])|,(?= )|\.(?=\n)").match
_SPACES = re.compile(r"[^\S\n]+").match
_LINE_BREAK = re.compile("[\n\r\v\f\u2028\u2029]")
# "\x1c", which takes the place of a vanished character, is white space for a regular expression but not in `_SPACE`:
# it parts tokens and is no space between them.
_VANISHING = re.compile(f"[^\t\n\u00a0 -~{_OTHER_LETTERS}{character_class(_SYMBOLS)}\u058a\u2010\u2011]")
_VERB = re.compile("[A-Za-z]*[A-MO-Za-mo-z][Nn]").fullmatch
_NOT = re.compile(f"[Nn]{_TICK}[Tt]").match
_CONTRACTION = re.compile(f"{_APOSTROPHE}{_CLITIC}").match

_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}
_SPELLINGS = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": "-"},
    **dict.fromkeys("\x80\u00a4\u20a0\u20ac", "$"),
    **dict.fromkeys("\x96\x97\u2013\u2014\u2015\u058a\u2010\u2011", "-"),
    "\u00a2": "cents",
    "\u00a3": "#",
    "\u2026": "...",
    '"': "''",
}
_IS_QUOTED = re.compile(rf"{_QUOTE}+|n{_TICK}t|{_CURLED}{_CLITIC}").fullmatch
_STRAIGHT_QUOTES = {
    **dict.fromkeys(map(ord, "\u2018\u201b\u2039\x91"), "`"),
    **dict.fromkeys(map(ord, "\u2019\u203a\x92"), "'"),
    **dict.fromkeys(map(ord, "\u00ab\u201c\x93"), "``"),
    **dict.fromkeys(map(ord, "\u00bb\u201d\x94"), "''"),
}


def ptb_tokenize(captions: Iterable[str]) -> list[str]:
    """
    Tokenize captions as coco-caption's `PTBTokenizer` does when it is given them in this order.

    Args:
        captions: raw sentences. coco-caption calls its tokenizer twice: for all references, image by image in the order of
            the references' file, and for all predictions in the same order of images.

    Returns:
        The tokens of each caption in lower case, with one space between them.
    """
    text = "\n".join(_LINE_BREAK.sub(" ", caption) for caption in captions).replace("\u00ad", "")
    return [
        " ".join(token for token in line if token not in PUNCTUATION) for line in _lines(_VANISHING.sub("\x1c", text))
    ]


def _lines(text: str) -> Iterator[list[str]]:
    """Yield the tokens of each line of `text`; a rule may read beyond the end of the line."""
    line: list[str] = []
    position = 0
    while position < len(text):
        if text[position] == "\n":
            yield line
            line = []
            position += 1
            continue
        if spaces := _SPACES(text, position):
            position = spaces.end()
            continue
        longest = _PLAIN(text, position) or max(
            filter(None, (match(text, position) for match in _MATCHES)), key=lambda match: match.end()
        )
        token, position = longest.group(), longest.end()
        if _VERB(token) and _NOT(text, position - 1):
            token, position = token[:-1], position - 1  # "don't" is "do" and "n't"
        if token.lower() in _TWO_WORDS and not _CONTRACTION(text, position):
            line.extend(_TWO_WORDS[token.lower()])
        else:
            line.append(_spell(token.lower()))
    yield line


def _spell(token: str) -> str:
    """Spell a token as CoreNLP does."""
    if token in _SPELLINGS:
        return _SPELLINGS[token]
    if token.isalpha():
        return token
    if _IS_QUOTED(token):
        return token.translate(_STRAIGHT_QUOTES)
    if token.startswith(("...", ". .")):
        return "..."
    if token.startswith("--"):
        return "--"
    return token.replace(" ", "\u00a0").replace("(", "-lrb-").replace(")", "-rrb-")
