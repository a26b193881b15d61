"""A page in parts, and what every page has to keep."""

import html.parser

VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = (
    '</td><script>alert("x")</script><img src=http://e.invalid/x onerror=alert(1)>&{{ 7777*7777 }}\'"\ud800'
)


class Page(html.parser.HTMLParser):
    """A page in parts: tags, attributes, text; it checks that every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def assert_self_contained(found: Page, source: str) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert name not in ("src", "href", "srcset", "data", "action", "xlink:href"), (tag, name)
        assert not name.startswith("on"), (tag, name)
        assert "url(" not in value
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
