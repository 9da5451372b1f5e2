"""What a prompt says about an item, and what is said where it cannot."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.captioning.prompts.template import MAX_CHARACTERS, Template
from broker_pipeline.captioning.sources.item import Item
from broker_pipeline.errors import ConfigurationError, InvalidRequestError

CAT = Item(
    "photos/cats/tom.jpg",
    bytes,
    {"alt text": "a cat", "title": "Tom", "width": 640, "license": None, "id": "column"},
    Path("photos/cats/tom.jpg"),
)
ROW = Item("a.parquet#17", bytes)


def render(text: str, item: Item = CAT, **texts: str) -> str:
    return Template(text, "--prompt").render(item, texts)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("{{ name }} in {{ folder }}", "tom in cats"),
        ("{{ id }} {{ path }}", "photos/cats/tom.jpg photos/cats/tom.jpg"),
        ('{{ title }}, {{ width }}, {{ fields["alt text"] }}, {{ fields.id }}', "Tom, 640, a cat, column"),
        ("{% if tags %}Tags: {{ tags }}.{% else %}None.{% endif %}", "None."),
        ("{{ caption | default('no caption') }} {{ license | default('?') }}", "no caption ?"),
        ("{% if license %}{{ license }}{% endif %}free", "free"),
        ("{% if nonsense is defined %}a{% else %}b{% endif %}", "b"),
        ('Answer as {"a": 1} {# not parsed #}', 'Answer as {"a": 1} {# not parsed #}'),
    ],
)
def test_templates_name_what_is_known_of_the_item(text: str, prompt: str) -> None:
    assert render(text) == prompt


def test_answers_and_neighbours_come_before_columns() -> None:
    assert render("{{ tags }} {{ title }}", tags="red, blue", title="An answer") == "red, blue An answer"
    assert render("{{ caption }}", Item("a.tar::1", bytes, {"caption": "a column"})) == "a column"


@pytest.mark.parametrize(
    ("text", "item", "reason"),
    [
        ("{{ titel }}", CAT, "there is no `titel`"),
        ("{% if titel %}x{% endif %}", CAT, "there is no `titel`"),
        ('{{ fields["alt"] }}', CAT, "there is no `alt`"),
        ("{{ license }}", CAT, "there is no `license`"),
        ("{{ caption }}", CAT, "there is no `caption`"),
        ("{{ path }}", ROW, "there is no `path`"),
        ("{{ 1 / 0 }}", CAT, "division"),
        ("{% include 'x' %}", CAT, "loader"),
        ("{{ ''.__class__.__mro__ }}", CAT, "there is no `__class__`"),
        ("{% for i in range(10**7) %}x{% endfor %}", CAT, "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", CAT, "longer than"),
        ("{% if false %}x{% endif %} ", CAT, "nothing is left"),
    ],
)
def test_what_cannot_be_asked_names_prompt_item_and_reason(text: str, item: Item, reason: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        render(text, item)
    assert raised.value.message.startswith(f"--prompt cannot be asked about {item.id}: ")
    assert reason in raised.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n{{ two", "--prompt, line 2: "),
        ("{{ name | nonsense }}", "--prompt, line 1: No filter named 'nonsense'"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "--prompt: "),
        (" \n", "--prompt is empty"),
    ],
)
def test_what_is_no_template_is_said_at_once(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Template(text, "--prompt")
    assert message in raised.value.message


def test_names_that_are_no_utf8_can_be_sent() -> None:
    prompt = render("{{ name }}", Item("photos/caf\udce9.jpg", bytes))
    assert prompt.encode() == b"caf\\udce9"


def test_variables_are_known_beforehand() -> None:
    names = Template("{% for i in range(3) %}{{ i }}{{ subject }}{% endfor %}{{ fields.x }}", "x").names
    assert names == {"subject", "fields"}


@settings(deadline=None, max_examples=50)
@given(st.text(min_size=1).map(lambda text: f"{{{text}}}".replace("{{", "{").replace("{%", "{")))
def test_a_plain_text_is_itself(text: str) -> None:
    assert render(text) == text


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=200), st.text(max_size=200))
def test_a_value_is_no_template_and_no_html(before: str, value: str) -> None:
    text = before.replace("{", "").replace("\r", "").replace("\n", "")
    item = Item("x", bytes, {"value": f"<{value}{{{{ name }}}}>"})
    prompt = render(f"{text}|{{{{ value }}}}", item)
    assert prompt == f"{text}|<{value}{{{{ name }}}}>".encode("utf-8", "backslashreplace").decode()
    assert len(prompt) <= MAX_CHARACTERS


ODD_NAMES = sorted({*dir({}), *dir(""), "self", "loop", "range", "dict", "context", "environment", "_columns", "None"})


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_column_of_any_name_is_found_among_fields(name: str) -> None:
    item = Item("a.parquet#1", bytes, {name: "a column"})
    assert render(f"{{{{ fields['{name}'] }}}}", item) == "a column"
    if not name.startswith("_"):
        assert render(f"{{{{ fields.{name} }}}}", item) == "a column"


@pytest.mark.parametrize("text", ["{{ self }}", "{{ range }}", "{{ dict }}", "{{ fields.items }}", "{{ name.upper }}"])
def test_what_is_no_text_is_not_asked(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"which is no text; a column is fields\['NAME'\]"):
        render(text)
