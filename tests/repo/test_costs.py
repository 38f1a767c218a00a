"""tools/costs.py counts what the text of a rule does, and refuses text that it cannot count."""

import re
import sys

import pytest
from places import ROOT

sys.path.append(str(ROOT))          # last: optimc may be an installed one

costs = pytest.importorskip("tools.costs", reason="needs the source tree")

ROWS = """
RULE_ROW(a, (s, t, u), (x), (y), ())
KERNEL_ROW(plain, a, PLAIN, SLOT_0)
KERNEL_ROW(both, a, FAST | WIDE, SLOT_0 | SLOT_1)
MEASURED_ROW(measured, b, PLAIN, SLOT_0)
RULE_ROW(b, (s), (x), (y), ())
RULE_ROW(c, (m, n), (x), (y), ())
SHARED_ROW(shared, c, a,
           PLAIN, SLOT_0)
"""
RULES = """
/* A comment / with a division and SQRT(x). */
RULE(a, s, t)
{
    *s = *s + g;    /* another / one */
    if (variant & FAST)
        *t = variant & WIDE ? SQRT(*s) / (c->x + *t) : *s;
    STEP((variant & WIDE ? OVER(*s, c->x) : *s) * c->y);
}

MEASURE(b, 1, s)
{
    if (!(variant & FACTORED)) {
        *s = g / c->x;
    } else {
        *s = g / c->x / c->x;
    }
    SUM(0, *w * *w);
}

RULE(b, s)
{
    *w = *w - *s;
}
"""


def counted(rules=RULES, rows=ROWS):
    return costs.costs(rules, rows)


def test_branches_are_those_that_the_kernel_takes():
    found = counted()
    assert found["plain"] == (costs.Cost(("g",), ("w", "s"), 0, 0, 0),)
    assert found["both"] == (costs.Cost(("g",), ("w", "s", "t"), 1, 1, 1),)


def test_a_measuring_pass_comes_first():
    assert counted()["measured"] == (costs.Cost(("g", "w"), ("s",), 0, 1, 0), costs.Cost(("s",), ("w",), 0, 0, 0))
    factored = counted(rows=ROWS.replace("MEASURED_ROW", "FACTORED_ROW"))["measured"]
    assert factored[0].divisions == 2


def test_a_shared_body_is_that_of_the_other_rule():
    assert counted(RULES.replace("*s", "*m"))["shared"] == (costs.Cost(("g",), ("w", "m"), 0, 0, 0),)


def test_more_than_a_stream_has_no_passes():
    assert counted(RULES.replace("*s + g", "POW(*s, c->x)"))["plain"] is None
    assert counted(rows=ROWS.replace("PLAIN, SLOT_0)\nKERNEL", "PLAIN, SLOT_0 | SLOT_2)\nKERNEL"))["plain"] is None


@pytest.mark.parametrize(("rules", "message"), [
    (RULES.replace("variant & FAST", "variant & FAST && g"), "cannot be counted: 'variant & FAST && g"),
    (RULES.replace("variant & FAST", "variant > FAST"), "cannot be counted: 'variant > FAST"),
    (RULES.replace("RULE(b", "RULE(d"), "rules.inc has no RULE(b, ...)"),
])
def test_text_that_cannot_be_counted_is_refused(rules, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        counted(rules)
