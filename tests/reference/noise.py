"""SplitMix64 (Steele, Lea and Flood 2014) on Python's unbounded integers."""

import hashlib

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mix(bits):
    bits %= WORD
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) % WORD
    return bits ^ (bits >> 31)


def uniforms(seed, epoch, example_id, name, length):
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
    row = mix(mix(key + epoch * GOLDEN) + example_id * GOLDEN)
    return [(mix(row + (position + 1) * GOLDEN) >> 40) / 2**24 for position in range(length)]
