"""Templates: the whole language, what it refuses, and that what is put in is not read again."""

import pytest

from pilot.errors import PilotError, UsageError
from pilot.programs.reference import Reference
from pilot.programs.template import parse_template

DB = Reference("team/app/db", "password")
VALUES = {DB: b'it"s {{ team/app/key }}', Reference("team/app/key", "value"): b"\x00\xff"}


@pytest.mark.parametrize(
    ("template", "content"),
    [
        pytest.param(b"", b"", id="empty"),
        pytest.param(b"no secret\n", b"no secret\n", id="nothing to put in"),
        pytest.param(b"p={{ team/app/db#password }}\n", b'p=it"s {{ team/app/key }}\n', id="a value, not read again"),
        pytest.param(b"{{team/app/db#password}}", b'it"s {{ team/app/key }}', id="without spaces"),
        pytest.param(b"{{ team/app/key }}", b"\x00\xff", id="bytes of the field value"),
        pytest.param(b"{{ team/app/key }}{{ team/app/key }}", b"\x00\xff\x00\xff", id="twice"),
        pytest.param(b"{{ team/app/key | base64 }}", b"AP8=", id="base64"),
        pytest.param(b"{{ team/app/db#password|json }}", b'"it\\"s {{ team/app/key }}"', id="json"),
        pytest.param(b'{{"{{"}} x }}', b"{{ x }}", id="braces that stay"),
        pytest.param(b"{ } }} \xff\r\n", b"{ } }} \xff\r\n", id="everything else stays"),
    ],
)
def test_language(template: bytes, content: bytes) -> None:
    """Each form of the language."""
    assert parse_template(template, name="app.tmpl").render(VALUES) == content


@pytest.mark.parametrize(
    ("template", "said"),
    [
        pytest.param(b"a\nb {{ team/app", "app.tmpl line 2: got {{ without }} on the same line", id="not closed"),
        pytest.param(b"{{ team/app\n}}", "app.tmpl line 1: got {{ without }} on the same line", id="two lines"),
        pytest.param(b"{{ }}", "app.tmpl line 1: got nothing in {{ }}, want PATH#FIELD", id="empty"),
        pytest.param(b"\n\n{{ a b }}", "app.tmpl line 3: got 'a b', want PATH#FIELD", id="no reference"),
        pytest.param(b"{{ a#b | shell }}", "app.tmpl line 1: got the filter 'shell', want json or base64", id="filter"),
        pytest.param(b"{{ a#b | }}", "app.tmpl line 1: got the filter '', want json or base64", id="no filter"),
        pytest.param(b"{{ \xff }}", "app.tmpl line 1: got '\\\\xff', want PATH#FIELD", id="not UTF-8"),
    ],
)
def test_refusals(template: bytes, said: str) -> None:
    """What the language does not have is an error that names the line."""
    with pytest.raises(UsageError) as caught:
        parse_template(template, name="app.tmpl")
    assert str(caught.value).startswith(said)


def test_json_takes_text_only() -> None:
    """The error says which value, without it."""
    template = parse_template(b"{{ team/app/key | json }}", name="app.tmpl")
    with pytest.raises(PilotError, match="^app.tmpl: the value of team/app/key#value is not UTF-8") as caught:
        template.render(VALUES)
    assert caught.value.__cause__ is None


def test_references() -> None:
    """A template knows what it refers to."""
    template = parse_template(b"{{ team/app/db#password }}{{ team/app/key | base64 }}", name="app.tmpl")
    assert template.references == set(VALUES)
