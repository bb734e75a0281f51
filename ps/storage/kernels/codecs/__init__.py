"""Storage precisions of a segment. A codec is a module with

    words(dim) -> int                                              32-bit words that dim codes take
    codes(floats, halves, word, dim) -> array [dim]                the codes at a word offset of the arena
    decode(codes, values)                                          values: float32 [dim], out
    encode_nearest(values, codes) -> int                           to the nearest code, ties to even
    encode_stochastic(values, codes, stream, key, step) -> int     up or down with the probability of its nearness

Both encoders take finite values, return how many exceeded the greatest finite code and were set to it, and keep the
code of a value that `decode` gave.
"""

from ps.storage.kernels.codecs import bf16, fp16, fp32

CODECS = {"fp32": fp32, "fp16": fp16, "bf16": bf16}
