"""A page as a tree, by Python's own HTML parser: what a test looks things up in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = ("meta", "link", "input", "br", "hr")


@dataclass
class Node:
    """An element with its attributes and what is in it, text included, in order."""

    name: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    content: list[Node | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text below."""
        return "".join(each if isinstance(each, str) else each.text for each in self.content)

    def all(self, name: str = "", **attributes: str) -> list[Node]:
        """Every element below of this name with these attributes; `class_` asks for one of the classes."""
        return [node for node in self._below() if name in ("", node.name) and node._has(attributes)]

    def one(self, name: str = "", **attributes: str) -> Node:
        """The only such element. AssertionError if there are more or none."""
        found = self.all(name, **attributes)
        assert len(found) == 1, f"{len(found)} of {name} {attributes}"
        return found[0]

    def rows(self) -> list[list[str]]:
        """A table's cells as text."""
        return [[cell.text for cell in row.content if isinstance(cell, Node)] for row in self.all("tr")]

    def _has(self, wanted: dict[str, str]) -> bool:
        return all(
            value in (self.attributes.get("class") or "").split()
            if key == "class_"
            else self.attributes.get(key) == value
            for key, value in wanted.items()
        )

    def _below(self) -> Iterator[Node]:
        for each in self.content:
            if isinstance(each, Node):
                yield each
                yield from each._below()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("")
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].content.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].content.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].content.append(data)


def parse(text: str) -> Node:
    """The tree of a page. AssertionError where an element is not closed, or not in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].name}> is not closed"
    return reader.root
