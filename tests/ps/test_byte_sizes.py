"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ps.byte_sizes import ByteSize, read_bytes, show_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("8GiB", 8 << 30),
        ("8 gib", 8 << 30),
        (" 500MB ", 500 * 10**6),
        ("1.5TiB", 3 << 39),
        ("0.1KB", 100),
        ("1.0000000000000001PiB", 1 << 50),  # not through a float
        ("12", 12),
        ("12 B", 12),
        ("3PB", 3 * 10**15),
    ],
)
def test_reading(text, num_bytes):
    assert read_bytes(text) == num_bytes
    assert TypeAdapter(ByteSize).validate_python(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "8 gigs", "-1GiB", "1e9", "8G", "1,5GiB", "0x10"])
def test_mistakes_say_what_is_allowed(text):
    with pytest.raises(ValueError, match="must be a number of bytes or a size as 8GiB or 500MB"):
        read_bytes(text)


def test_an_option_takes_numbers_too_and_names_what_it_found():
    option = TypeAdapter(ByteSize)
    assert option.validate_python(7) == 7
    with pytest.raises(ValidationError, match="found '8 gigs'"):
        option.validate_python("8 gigs")
    with pytest.raises(ValidationError):
        option.validate_python([8])


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (8 << 30, "8 GiB"), (1.5e9, "1.397 GiB"), (1 << 60, "1024 PiB")],
)
def test_showing(num_bytes, text):
    assert show_bytes(num_bytes) == text


@given(st.integers(0, 1 << 60))
def test_what_is_shown_reads_as_the_same_within_its_digits(num_bytes):
    assert read_bytes(show_bytes(num_bytes)) == pytest.approx(num_bytes, rel=1e-3)
