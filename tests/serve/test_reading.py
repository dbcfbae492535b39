"""What a request's text is taken for."""

import base64

import pytest

from van.serve.reading import of_base64
from van.serve.refusals import Refused


@pytest.mark.parametrize(
    "address", ["http://x/a.png", " HTTPS://x", "file:/etc/passwd", "//example.org/a", "//10.0.0.1/a", "//host:80/a"]
)
def test_an_address_is_named_as_one(address):
    with pytest.raises(Refused, match="nothing is fetched here"):
        of_base64(address, "picture 0")


def test_bytes_whose_base64_begins_as_an_address_may_are_read():
    content = b"\xff\xff\xff and more"
    text = base64.b64encode(content).decode()
    assert text.startswith("//")
    assert of_base64(text, "picture 0") == content
