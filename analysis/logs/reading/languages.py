"""Words of a training log in other languages, as the English ones that most scripts print."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORDS = {
    "val_loss": (
        "validierungsverlust", "validierungs-loss", "validierungsfehler", "perte de validation",
        "perte_validation", "perte_val", "perte val", "pérdida de validación", "perdida de validacion",
        "pérdida_val", "pérdida val", "perda de validação", "perda de validacao", "perda_val",
        "perdita di validazione", "perdita_val", "validatieverlies", "потери на валидации",
        "потеря на валидации", "валидационный loss", "лосс на валидации", "验证损失", "验证集损失",
        "驗證損失", "検証損失", "検証ロス", "검증 손실",
    ),
    "train_loss": (
        "trainingsverlust", "trainings-loss", "perte d'entraînement", "perte d’entraînement",
        "perte_train", "perte train", "pérdida de entrenamiento", "perda de treino",
        "perda de treinamento", "perdita di addestramento", "trainingsverlies", "потери на обучении",
        "потеря на обучении", "训练损失", "訓練損失", "学習損失", "訓練ロス", "훈련 손실", "학습 손실",
    ),
    "val_bpb": ("検証bpb", "验证bpb", "검증 bpb"),
    "bits per byte": (
        "bit/byte", "bit pro byte", "bits pro byte", "bits par octet", "bit par octet", "bits por byte",
        "bit per byte",
        "бит на байт", "бита на байт", "бит/байт", "每字节比特数", "每字节比特", "每字節位元數",
        "バイトあたりのビット数", "バイトあたりのビット", "バイトあたりビット", "바이트당 비트",
    ),
    "quantization": (
        "quantisierung", "quantification", "cuantización", "cuantizacion", "quantização", "quantizzazione",
        "kwantisatie", "квантования", "квантование", "квантизации", "量化", "量子化", "양자화",
    ),
    "sliding window": (
        "gleitendem fenster", "gleitendes fenster", "fenêtre glissante", "ventana deslizante",
        "janela deslizante", "finestra scorrevole", "schuivend venster", "скользящее окно",
        "скользящим окном", "滑动窗口", "滑動窗口", "スライディングウィンドウ", "슬라이딩 윈도우",
    ),
    "artifact size": (
        "größe des artefakts", "artefaktgröße", "taille de l'artefact", "taille de l’artefact",
        "tamaño del artefacto", "tamanho do artefato", "dimensione dell'artefatto", "размер артефакта",
    ),
    "bytes": ("octets", "байт", "байтов", "字节"),
    "seed": ("startwert", "graine", "semilla", "semente", "сид", "种子", "シード", "시드"),
    "after": (
        "nach", "nach der", "après", "après la", "después de", "después de la", "após", "após a", "dopo",
        "dopo la",
        "после", "na de",
    ),
    "with": ("mit", "avec", "con", "com", "met", "с"),
    "steps": ("schritte", "schritten", "étapes", "pasos", "passos", "passi", "stappen", "шагов", "шаги"),
    "step": (
        "schritt", "étape", "etape", "paso", "passo", "stap", "шаг", "итерация", "步数",
        "步骤", "步", "迭代", "ステップ", "스텝", "단계",
    ),
}  # fmt: skip
_SHORT = {"after", "with", "bytes", "seed"}
"""What is translated only in a text that has other such words."""
_ENGLISH = {word: english for english, words in _WORDS.items() for word in words}
_BLANKLESS = "\u2e80"
"""From here on scripts put no blanks between words."""


def _any_of(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


_FOREIGN = re.compile(
    rf"(?<![^\W_])(?:{_any_of(w for w in _ENGLISH if w < _BLANKLESS)})(?![a-zà-ÿа-я])"
    rf"|(?:{_any_of(w for w in _ENGLISH if w >= _BLANKLESS)})",
    re.IGNORECASE,
)
_OF = re.compile(r"(\bstep\W{0,2}\d[\d,]*) (?:von|sur|de|di|van|из) (\d)")
_PAS = re.compile(r"(?<![\w'’])pas(?=\s+\d)", re.IGNORECASE)
_NUMBERED = re.compile(r"第\s*(\d[\d,]*)\s*(?:步|ステップ|轮迭代)")
"""`第 100 步`: the number within the word."""


def in_english(text: str) -> str:
    """The text with such words translated; any other as it is."""
    lowered, ascii_only = text.lower(), text.isascii()
    known = [
        word
        for word in _ENGLISH
        if (word.isascii() or not ascii_only) and word in lowered and _ENGLISH[word] not in _SHORT
    ]
    if not known:
        return text
    if "perte" in lowered or "octet" in lowered:
        text = _PAS.sub("step", text)
    if "第" in text:
        text = _NUMBERED.sub(r"step \1", text)
    return _OF.sub(r"\1 of \2", _FOREIGN.sub(_translated, text))


def _translated(match: re.Match[str]) -> str:
    english = _ENGLISH.get(match[0].lower(), match[0])
    return f" {english} " if match[0] >= _BLANKLESS else english  # where no blanks part words
