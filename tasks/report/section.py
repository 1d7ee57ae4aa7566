"""One section of the page."""

from dataclasses import dataclass

from tasks.report.html import Html, tag


@dataclass(frozen=True)
class Section:
    """A heading, what the table of contents calls it, and what is below."""

    anchor: str
    title: str
    body: Html
    lead: object = ""  # one or two sentences under the heading

    def html(self) -> Html:
        """The section as a landmark named by its heading."""
        heading = f"{self.anchor}-heading"
        return tag(
            "section",
            {"id": self.anchor, "aria-labelledby": heading},
            tag("h2", {"id": heading}, self.title),
            tag("p", {"class": "lead"}, self.lead) if self.lead else None,
            self.body,
        )
