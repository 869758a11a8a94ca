"""A small tokenizer like GPT-2's: of bytes, so that a rare character is split over several tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PLAIN = "the model reads a long report that says / s < > | i m _ end again "
SPECIALS = ["<s>", "</s>", "<|im_end|>"]


def byte_level(post_processor=None, *, vocab_size=290, **names):
    """Its special tokens have the ids 0, 1 and 2; two tokens that are not special are added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([PLAIN * 10], trainer)
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("</th>", normalized=False)])
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    names = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 8} | names
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
