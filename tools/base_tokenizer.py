#!/usr/bin/env python3
"""Writes tokenizer.json of the bundled base model: byte-level BPE with the words of its task and of everyday questions.

    tools/base_tokenizer.py tests/golden/cases/single/tokenizer.json assets/base/tokenizer.json

The first file lends normaliser, pre-tokenizer and special tokens, which are Qwen's. Needs `pip install tokenizers`.
"""

import json
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

MOST = 740  # the model has 768 rows; words of this task need fewer
WORDS = """user assistant system What Which How many Where way mark paint damage is this the a it one two three of or
on in to and see here kind word with Answer question picture photo panel car Lighter lighter darker Darker line wave
zigzag fork star ring spot hill ridge hollow top middle bottom left centre right flat falling upright rising white silver
black red blue green yellow brown scratch dent crack yes no glass metal plastic good bad class label
none bend a b c d e f g h i j k l""".split()

source, target = sys.argv[1:]
spec = json.load(open(source))
training = Tokenizer.from_file(source)
training.model = models.BPE()
trainer = trainers.BpeTrainer(
    vocab_size=MOST,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
)
corpus = [w for word in WORDS for w in (word, " " + word)] * 3
training.train_from_iterator(corpus, trainer)
learnt = json.loads(training.to_str())["model"]
spec["model"]["vocab"], spec["model"]["merges"] = learnt["vocab"], learnt["merges"]
for at, token in enumerate(spec["added_tokens"]):
    token["id"] = len(learnt["vocab"]) + at  # the library numbers them so, whatever the file says
json.dump(spec, open(target, "w"), ensure_ascii=False, separators=(",", ":"))
print(len(learnt["vocab"]), "tokens;", {t["content"]: t["id"] for t in spec["added_tokens"]})
