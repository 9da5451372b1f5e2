"""Whether a text begins as one in which a model declines to answer.

Each language has what a model apologises or begins with, and the verbs that turn it into a refusal. A caption of a sign
that apologises has no such verb of the first person, or has the sign first.
"""

from __future__ import annotations

import re

_SORRY = (
    r"(?:(?:i'?m|i am|i|my) )?(?:so |very |truly |really )?(?:sorry|apologi[sz]e|apologies)(?: for [^.,!?]{1,40})?"
    r"[,.!:;-]*\s+(?:but,? )?"
)
_CANNOT = (
    r"(?:however,? |unfortunately,? )*i(?:'m| am)? "
    r"(?:can't|can not|cannot|couldn't|won't|will not|don't|do not|not able to|unable to|not allowed to)\b"
)
_HELP = (
    r"(?:assist|help(?! but)|provide|fulfil|fulfill|comply|describe|identify|generate|create|answer|continue|discuss|"
    r"engage|see|view|process|analy[sz]e|access|share|recogni[sz]e|caption|complete|support|do that)\b"
)
_ASSISTANT = r"(?:ai|artificial intelligence|(?:large )?language model|virtual assistant)"
_PICTURE = r"(?:image|picture|photo)"
_PATTERNS = (
    # English
    rf"{_SORRY}{_CANNOT}",
    rf"(?:regrettably,? )?{_CANNOT}(?: {_HELP}|\W*$)",
    r"i must (?:respectfully )?decline\b",
    rf"(?:{_SORRY})?as an? {_ASSISTANT}(?: (?:language|vision|model|assistant|system))*(?:,? (?:i|my)\b|,?\W*$)",
    rf"(?:it (?:seems|looks like|appears)(?: that)? )?no {_PICTURE} (?:was|has been) (?:provided|uploaded|attached)",
    rf"please (?:provide|upload|share|attach) (?:the|an|a|your) {_PICTURE}",
    # Chinese
    r"[很非常十分]*(?:抱歉|对不起|對不起|不好意思)\W*[^。]{0,20}?(?:无法|無法|不能|不會|不会|没有办法|沒辦法|没法)",
    r"我(?:无法|無法|不能)(?:[为為][您你])?(?:提供|协助|協助|帮助|幫助|回答|描述|识别|識別|满足|完成|处理|生成)",
    r"(?:作为|作為)(?:一[个名個款])?(?:AI|人工智能|人工智慧|大?语言模型|大型語言模型)\w{0,6}\W*我",
    # Japanese
    r"(?:大変)?(?:申し訳(?:ありません|ございません)|すみません|ごめんなさい)[^。]{0,60}?(?:できません|かねます)",
    r"(?:私は)?AI(?:アシスタント|言語モデル|モデル)?として",
    # Korean
    r"(?:정말 )?(?:죄송|미안)(?:합니다|하지만)[^.]{0,60}?(?:수가? 없|어렵습니다|못합니다)",
    r"(?:저는 )?(?:AI|인공지능)(?: 언어)? ?(?:모델|어시스턴트|비서)?(?:로서|이므로|이기 때문에)",
    # Spanish
    r"(?:lo siento|lo lamento|disculpa|disculpe)\b[^.]{0,20}?\bno (?:puedo|podemos|me es posible)\b",
    r"no puedo (?:ayudar|asistir|proporcionar|describir|identificar|cumplir|responder|generar)",
    r"como (?:un )?(?:modelo de lenguaje|ia|inteligencia artificial)\b[^.]{0,20}, no\b",
    # Portuguese
    r"(?:sinto muito|desculpe|lamento|peço desculpas?)\b[^.]{0,20}?\bnão (?:posso|consigo)\b",
    r"(?:eu )?não posso (?:ajudar|fornecer|descrever|identificar|atender|responder|gerar)",
    r"como (?:um )?(?:modelo de linguagem|ia|inteligência artificial)\b[^.]{0,20}, (?:eu )?não\b",
    # Italian
    r"mi (?:di)?spiace\b[^.]{0,20}?\bnon (?:posso|sono in grado)\b",
    r"non posso (?:aiutar|assister|fornire|descrivere|identificare|rispondere|generare)",
    # French
    r"(?:je suis (?:vraiment )?)?(?:désolée?|navrée?)\b[^.]{0,20}?\bje ne (?:peux|suis)\b",
    r"je ne peux pas (?:vous |t')?(?:aider|fournir|décrire|identifier|répondre|générer|assister)",
    r"en tant qu(?:'|e )(?:ia|intelligence artificielle|modèle de langage|assistant virtuel)\b[^.]{0,20}, je\b",
    # German and Dutch
    r"(?:es )?tut mir (?:sehr )?leid\b[^.]{0,20}?\b(?:ich kann|kann ich|ich bin nicht in der lage)\b",
    r"(?:leider kann ich|ich kann (?:dir|ihnen|dabei|hierbei|diese (?:anfrage|bitte)))\b[^.]{0,40}?\bnicht\b",
    r"als (?:eine? )?(?:ki|künstliche intelligenz|sprachmodell)(?:-\w+)? (?:kann|bin|habe|darf) ich",
    r"(?:het spijt me|sorry)\b[^.]{0,10}?\bik kan\b[^.]{0,40}?\bniet\b",
    # Russian
    r"(?:извините|простите|к сожалению|прошу прощения|мне жаль)\b[^.]{0,20}?\bя не (?:могу|смогу|в состоянии)\b",
    r"я не могу (?:помочь|предоставить|описать|выполнить|ответить|определить|создать)",
    r"как (?:ии|искусственный интеллект|языковая модель),? я",
    # Arabic
    r"(?:عذر\w?\W?\w?|آسف|أعتذر|أنا آسف)[^.]{0,30}?(?:لا يمكنني|لا أستطيع)",
    r"(?:لا يمكنني|لا أستطيع) (?:مساعدت|تقديم|وصف|تحديد|الإجابة)",
)
_REFUSAL = re.compile(rf"[\s*_#>]*(?:{'|'.join(_PATTERNS)})", re.IGNORECASE)
_MAX_START = 400


def is_refusal(text: str) -> bool:
    """Whether a text begins by declining; one that begins with such words in quotes does not."""
    return _REFUSAL.match(text[:_MAX_START].replace("\u2019", "'")) is not None
