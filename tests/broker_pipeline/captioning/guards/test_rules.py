# ruff: noqa: RUF001 - letters of other scripts are what this is about
"""What each rule refuses, and what it lets pass."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.captioning.guards.languages import LANGUAGES, other_language
from broker_pipeline.captioning.guards.looping import repeated_end
from broker_pipeline.captioning.guards.refusal import is_refusal
from broker_pipeline.captioning.guards.scripts import share_of
from broker_pipeline.captioning.guards.words import pattern_of, words_of

REFUSALS = [
    "I'm sorry, but I can't",
    "I\u2019m sorry, but I can\u2019t assist with that request.",
    "I am very sorry, but I am unable to help with identifying people.",
    "Sorry, I can't describe this image.",
    "I apologize, but I cannot provide a caption.",
    "I'm sorry for the confusion, but I don't see an image.",
    "I cannot assist with that.",
    "I can't help with this.",
    "**I'm unable to** identify people".replace("**", ""),
    "I am not able to view images.",
    "Unfortunately, I cannot process this image.",
    "As an AI language model, I don't have the ability to see.",
    "As an AI, I cannot",
    "I'm sorry, but as an AI assistant, I must refuse.",
    "I must decline to describe this.",
    "It seems that no image was provided.",
    "Please upload the image that you want described.",
    "抱歉,我无法提供帮助。",
    "很抱歉，我不能描述这张图片。",
    "對不起，我無法協助這個請求。",
    "作为一个人工智能语言模型，我无法查看图片。",
    "我无法识别图中的人物。",
    "申し訳ありませんが、そのリクエストにはお応えできません。",
    "AIアシスタントとして、画像の人物を特定することはできません。",
    "죄송합니다. 이 요청은 도와드릴 수 없습니다.".replace(". ", ", "),
    "죄송하지만 도와드릴 수 없습니다.",
    "Lo siento, pero no puedo ayudar con eso.",
    "No puedo identificar a las personas.",
    "Como modelo de lenguaje, no puedo ver imágenes.",
    "Désolé, mais je ne peux pas répondre à cette demande.",
    "Je suis désolé, je ne peux pas vous aider.",
    "En tant qu'IA, je ne peux pas voir d'images.",
    "Es tut mir leid, aber ich kann dabei nicht helfen.",
    "Tut mir leid, dabei kann ich nicht helfen.",
    "Leider kann ich dieses Bild nicht beschreiben.",
    "Als KI kann ich keine Personen erkennen.",
    "Sinto muito, mas não posso ajudar com isso.",
    "Mi dispiace, ma non posso aiutarti.",
    "Het spijt me, maar ik kan daar niet bij helpen.",
    "Извините, но я не могу помочь с этим.",
    "К сожалению, я не могу описать это изображение.",
    "عذرًا، لا يمكنني المساعدة في ذلك.",
    "آسف، لا أستطيع وصف هذه الصورة.",
]
CAPTIONS = [
    "A sign that says I'm sorry",
    "\"I'm sorry, but I can't\" is printed on a red mug.",
    "I'm Sorry, a painting by an unknown artist, hangs on the wall.",
    "Sorry, we are closed, reads the sign on a glass door.",
    "As an AI-generated picture, it has too many fingers.",
    "As an airplane lands, people wave.",
    "A man who cannot help but smile holds a fish.",
    "No image of the queen is on this coin.",
    "I love NY, printed in black on a white shirt.",
    "Als Kind verkleidet steht ein Mann auf der Bühne.",
    "对不起三个字写在墙上。",
    "Como una isla, el barco flota en el mar.",
    "Désolé est écrit sur la porte.",
    "Извините - надпись на двери.",
    "Unfortunately placed, the lamp hides the face.",
    "I can't help but notice is embroidered on a cushion.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text: str) -> None:
    assert is_refusal(text)
    assert is_refusal(f"\n **{text}")


@pytest.mark.parametrize("text", CAPTIONS)
def test_captions_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("A red car, a red car, a red car, a red car", "a red car"),
        ("The street has cars and cars and cars and cars and cars", "and cars"),
        ("It shows a dog. The dog is brown. The dog is brown. The dog is brown. The dog is brown. The do", None),
        ("It is very very very very very", "very"),
        ("Signs:\n- STOP\n- STOP\n- STOP", "- STOP"),
        ("Signs:\nGo left\nSTOP\nSTOP\nSTOP\nST", "STOP"),
        ("x" * 20, "x"),
        ("A wave: ~ " + "~ " * 20, "~"),
        ("红色的汽车" * 4, "红 色 的 汽 车"),
        ("一辆车" + "停在路边," * 4, "停 在 路 边"),
        ('{"colors": ["red", "red", "red", "red", "red"', "red"),
    ],
)
def test_loops(text: str, end: str | None) -> None:
    found = repeated_end(text)
    assert found is not None
    assert end is None or found == end


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A cat.",
        "A red car, a blue car, a green car, a red car",
        "No, no, no! reads the banner.",
        "A red car, a red car, a red car, a red car, and a tree.",
        "The timer shows 00:00:00:00",
        '{"a": {"b": {\n "c": 1\n}\n}\n}\n}',
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "哈哈哈哈",
        "To be continued..........",
        "STOP\nSTOP\nGO",
    ],
)
def test_captions_that_do_not_loop(text: str) -> None:
    assert repeated_end(text) is None


WORDS = st.lists(st.from_regex(r"[a-z]{2,8}", fullmatch=True), min_size=1, max_size=20)


@settings(deadline=None, max_examples=50)
@given(WORDS, WORDS, st.integers(4, 8))
def test_every_phrase_of_up_to_twenty_words_is_found_four_times(
    before: list[str], phrase: list[str], count: int
) -> None:
    assert repeated_end(" ".join(before + phrase * count)) is not None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(10, 10**9), unique=True))
def test_words_that_all_differ_are_no_loop(numbers: list[int]) -> None:
    assert repeated_end(" ".join(map(str, numbers))) is None


@pytest.mark.parametrize(
    ("script", "text", "is_most"),
    [
        ("latin", "A cat with the word 猫", True),
        ("latin", "一只猫 cat", True),
        ("latin", "一只黑色的猫坐着 cat", False),
        ("latin", "Ｃａｔ", True),
        ("latin", "Élan, naïve, ß", True),
        ("latin", "123 !?", True),
        ("cjk", "猫とねこカタカナ한국어", True),
        ("han", "ねこがいる", False),
        ("japanese", "猫がいる", True),
        ("cyrillic", "Кошка на ковре", True),
        ("arabic", "قطة على السجادة", True),
        ("arabic", "a cat", False),
    ],
)
def test_scripts(script: str, text: str, is_most: bool) -> None:
    assert (share_of(script, text) >= 0.5) is is_most


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A cat's (red) hat -- e.g. 3.5m.", ["a", "cat's", "red", "hat", "e.g", "3.5m"]),
        ("黑猫 cat", ["黑", "猫", "cat"]),
        ("Ein Café", ["ein", "café"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("... !", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("word", "text", "is_there"),
    [
        ("man", "A Man, a plan", True),
        ("man", "A woman", False),
        ("man", "A man's hat", True),
        ("straße", "Eine STRASSE", True),
        ("über", "Überall", False),
        ("猫", "一只黑猫坐着", True),
        ("red car", "a red\ncar", True),
        ("c++", "written in C++.", True),
        ("кот", "Кот и пёс", True),
    ],
)
def test_whole_words(word: str, text: str, is_there: bool) -> None:
    assert (pattern_of(word).search(text.casefold()) is not None) is is_there


SAID = {
    "en": "A blue heart to the left of a moon on a white background.",
    "de": "Ein roter Hund liegt auf einem Sofa neben der Lampe.",
    "es": "Un perro rojo está en el sofá con una lámpara.",
    "fr": "Un chien rouge est couché sur le canapé avec une lampe.",
    "it": "Un cane rosso è sdraiato sul divano con una lampada.",
    "nl": "Een rode hond ligt op het kussen van de bank.",
    "pt": "Um cachorro vermelho está no sofá com uma lâmpada.",
    "ru": "Красная собака лежит на диване.",
    "zh": "一只红色的狗躺在沙发上。",
    "ja": "赤い犬がソファーに寝ています。",
    "ko": "빨간 개가 소파에 누워 있다.",
    "ar": "كلب أحمر مستلق على الأريكة.",
}


@pytest.mark.parametrize("wanted", SAID)
def test_a_caption_is_in_its_own_language_and_in_no_other(wanted: str) -> None:
    assert other_language(wanted, SAID[wanted]) is None
    others = SAID.keys() - {wanted} - ({"ja"} if wanted == "zh" else set())
    assert {code for code in SAID if other_language(code, SAID[wanted])} == others


@pytest.mark.parametrize(
    "text",
    ["1girl, solo, red hair", 'A sign reads "El camino de la costa es largo".', "La Tour Eiffel at night", "7", ""],
)
def test_tags_quotes_and_names_are_no_other_language(text: str) -> None:
    assert other_language("en", text) is None


@given(st.text())
def test_any_text_has_a_language_or_none(text: str) -> None:
    assert all(other_language(code, text) is None or text for code in LANGUAGES)
