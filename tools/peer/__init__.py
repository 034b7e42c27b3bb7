"""What transformers, PEFT and PyTorch compute for small Qwen3-VL models: behind reference.py and bench_peer.py.

checkpoint.py   random models as Hugging Face folders, in both spellings of the config
pictures.py     the pictures that cases look at, and how a picture file becomes RGB
forward.py      prompt, positions, features, hidden states, logits and greedy tokens of one conversation
training.py     LoRA runs with PEFT
cases.py        many of these, as a folder
ops.py          single operations with gradients
merged.py       a merged folder against base and adapter
"""
