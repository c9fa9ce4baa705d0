"""Two small byte-level BPE tokenizers, trained on the sentences below, and vectors of what they do."""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"

# The pre-tokenizer of Llama 3, which GGUF files call "llama-bpe".
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SENTENCES = (
    "the miller's boy went down to the river and there he saw that the water was still.",
    "when the wind came from the north, the other mills turned, and theirs did not.",
    "is it the wheel? no, it is the stone! the wheel turns when the water turns it.",
    "they waited there all the winter, and in the spring the ice went out with thunder.",
    "then she said: what isn't broken needn't be mended, and what is mended isn't new.",
)

# Letters, space, newline and a few marks only, so that a vocabulary of 64 covers the alphabet.
PLAIN = tuple(line.replace(":", ",") for line in SENTENCES)

TEXTS = (
    "",
    " ",
    "   ",
    "\n",
    "\n\n \n",
    "\t\ttabs\tand\r\nreturns\r\n",
    "The miller's boy went down to the river.",
    " The  river ",
    "trailing space ",
    "I'm sure you'LL don't, we've; 'tis the mill'n'wheel",
    "1234567 3.14159 1,000,000 2²",
    "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
    "ÀÉÎõü naïve Ärger façade",
    "e\u0301 combined, \u00e9 composed, \u0301alone, n\u0303o\u0308",
    "水車は川のそばにある。",
    "한국어 风车 русский عربى हिन्दी",
    "🙂🚀 👩\u200d🌾 🇳🇱 ✌🏽",
    "\u00a0no-break\u200bzero width\ufeffmark\u3000wide",
    "—“quotes”… ½",
    "fn f(x: i32) -> i32 {\n    x * x // square\n}\n",
    "MiXeD CaSe HTTPServer2Go",
    "<|begin_of_text|>the wheel<|eot_id|>",
    "stone<|end_of_text|>water",
    "<|begin_of_text |> </s><s>",
    "end.",
)

PLAIN_TEXTS = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n the wheel",
    "the miller's boy went down to the river",
    " the  river ",
    "when? then! there, other.",
    "isn't needn't mended'",
    "zzz qxj",
    "eeeeeeeeeeeeeeee",
    "<|begin_of_text|>the wheel<|eot_id|>",
    "stone<|end_of_text|>water",
)


def train(vocab: int, sentences: tuple[str, ...], alphabet: list[str]) -> Tokenizer:
    """A tokenizer of `vocab` entries: the alphabet, then merges, then the three special tokens."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab - 3, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    specials = [AddedToken(text, special=True, normalized=False) for text in (BOS, EOS, EOT)]
    tokenizer.add_special_tokens(specials)
    bos = tokenizer.token_to_id(BOS)
    if tokenizer.get_vocab_size() != vocab or bos != vocab - 3:
        raise SystemExit(f"the sentences gave {tokenizer.get_vocab_size()} entries, expected {vocab}")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, bos)]
            ),
        ]
    )
    return tokenizer


def full(vocab: int) -> Tokenizer:
    """Every byte has an entry."""
    return train(vocab, SENTENCES, sorted(pre_tokenizers.ByteLevel.alphabet()))


def plain(vocab: int) -> Tokenizer:
    """Only the bytes of `PLAIN`, lower-case letters, space and newline have an entry."""
    return train(vocab, PLAIN, [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ"])


def vectors(tokenizer: Tokenizer, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the tokenizer makes of each text; `tokens` and the decoded forms belong to `ids_no_special`."""
    rows = []
    for text in texts:
        bare = tokenizer.encode(text, add_special_tokens=False)
        rows.append(
            {
                "text": text,
                "ids": tokenizer.encode(text).ids,
                "ids_no_special": bare.ids,
                "tokens": bare.tokens,
                "decoded": tokenizer.decode(bare.ids, skip_special_tokens=False),
                "decoded_skip_special": tokenizer.decode(bare.ids, skip_special_tokens=True),
            }
        )
    return rows
