"""The programs of docs/howto/trainer-lightning-accelerate.md."""

import re

from places import ROOT

PAGE = ROOT / "docs" / "howto" / "trainer-lightning-accelerate.md"


def program(part):
    """The one program of the page that has this part."""
    programs = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    found, = (text for text in programs if part in text)
    return found
