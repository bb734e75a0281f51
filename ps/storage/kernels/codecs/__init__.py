"""Storage precisions of a segment. A codec is a module with

    words(dim) -> int                                              32-bit words that dim codes take
    codes(floats, halves, word, dim) -> array                      the codes at a word offset of the arena
    clear(codes)                                                   make codes of reused memory as good as zeroed ones
    decode(codes, values)                                          values: float32 [dim], out
    encode_nearest(values, codes) -> int                           to the nearest code, ties to even
    encode_stochastic(values, codes, stream, key, step) -> int     up or down with the probability of its nearness

Both encoders take finite values, return how many exceeded the greatest finite code and were set to it, and keep a value
that `decode` gave. They may depend on what the codes were: a row's codes start as zero bytes. The state of optimizers
is kept by a codec too; one of STATE_CODECS, whose codes depend on their own element only.
"""

from ps.storage.kernels.codecs import bf16, fp16, fp32, int8

CODECS = {"fp32": fp32, "fp16": fp16, "bf16": bf16, "int8": int8}
STATE_CODECS = {"fp32": fp32, "bf16": bf16}
