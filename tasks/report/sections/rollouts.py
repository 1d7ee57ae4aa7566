"""What the teacher rewards: the student's rollouts token by token, each coloured by a quantity that the reader chooses.

Colours run from orange (below the centre) to blue (above), which colour-blind people tell apart; the number
stands under each token as well. Without the script the page shows the rewards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.formatting import fixed, short
from tasks.report.figures import folded, table, thinned
from tasks.report.html import Html, join, quoted, shortened, tag
from tasks.report.results import Results, Row
from tasks.report.section import Section

MOST_ROLLOUTS = 24  # more are a long way to scroll, on a phone most of all
MOST_TOKENS = 4_000  # of all rollouts shown
MOST_BYTES = 400_000  # of all rollouts shown
MOST_OF_ONE = 256  # tokens of one rollout
TEXT_CHARACTERS = 400  # of an input or a teacher's output
TOKEN_CHARACTERS = 40
STEPS = 4  # of colour on each side of the centre
EXTREMES = 10  # tokens at each end of the table

# an artifact of an earlier version has no number: there an input was rolled out once in a step
COLUMNS = "step, coalesce(rollout, id) AS rollout, id, position, token, q_value, value, reward, gain, log_prob"
ROLLOUTS = f"""
SELECT coalesce(cell, '') AS cell, {COLUMNS} FROM rollouts WHERE run = $run ORDER BY ALL
"""
TOKENS = """
SELECT token, count(*) AS times, avg(reward) AS reward, avg(q_value - value) AS below
FROM rollouts WHERE run = $run GROUP BY token HAVING count(*) >= (
    SELECT CASE WHEN count(*) > 500 THEN 5 WHEN count(*) > 100 THEN 3 ELSE 1 END FROM rollouts WHERE run = $run)
ORDER BY reward DESC, token
"""
# of all tokens but the last of each rollout, after which there is no state: its reward is its whole q-value
SPREAD = """
SELECT {values} FROM (
    SELECT *, q_value - value AS below, max(position) OVER (PARTITION BY cell, step, coalesce(rollout, id)) AS last
    FROM rollouts WHERE run = $run) WHERE position < last
"""


@dataclass(frozen=True)
class Quantity:
    """What tokens can be coloured by. The centre of the colours is 0, or the median of all tokens."""

    name: str  # of the column; `below` is q_value - value
    label: str
    meaning: str
    around_0: bool


QUANTITIES = (
    Quantity(
        "reward",
        "reward",
        "q-value minus the value of the state it leads to (Eq. 3); after the last token there is none",
        True,
    ),
    Quantity(
        "below", "below the best", "q-value minus this state's value: 0 where the teacher would say the same", True
    ),
    Quantity("gain", "gain", "the reward of this token and all after it, as the update weighs it", False),
    Quantity("q_value", "q-value", "the teacher's logit of the token (Eq. 2)", False),
    Quantity("value", "value", "what the teacher expects of the state before the token", False),
    Quantity("log_prob", "log-probability", "of the student that wrote it, in nats", False),
)


@dataclass(frozen=True)
class Colours:
    """Where the middle of a quantity's colours is, and how far from it their ends are."""

    centre: float
    reach: float

    def step(self, value: float) -> int:
        """The colour of a value, -4 to 4."""
        return max(-STEPS, min(STEPS, round((value - self.centre) / self.reach * STEPS)))


def rollouts(results: Results) -> Section | None:
    """The explorer, and which tokens are rewarded most and least."""
    found = _rollouts(results.ask("rollouts", ROLLOUTS))
    if not found:
        return None
    shown = _bounded(found)
    colours = _colours(results)
    about = _about(results, {row["id"] for _, rows in shown for row in rows[:1]})
    articles = [_rollout(key, rows, colours["reward"], about.get(rows[0]["id"], {})) for key, rows in shown]
    size = sum(len(article.encode()) for article in articles)
    if size > MOST_BYTES:
        kept = thinned(range(len(shown)), max(2, len(shown) * MOST_BYTES // size))
        shown, articles = [shown[k] for k in kept], [articles[k] for k in kept]
    lead = (
        "LLMR lets the student write and turns the teacher's logits into a reward for every token. "
        f"{len(shown):,} of {len(found):,} recorded rollouts, spread over training."
    )
    body = join(
        [_controls(shown, colours), tag("div", {"id": "rollout-list"}, articles), _details(), _extremes(results)]
    )
    return Section("rollouts", "What the teacher rewards", body, lead)


def _rollouts(rows: Sequence[Row]) -> list[tuple[tuple[str, int, int], list[Row]]]:
    """The tokens of each rollout, by its cell, step and number."""
    found: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["cell"], row["step"], row["rollout"]), []).append(row)
    return list(found.items())


def _bounded(found: list[tuple[tuple[str, int, int], list[Row]]]) -> list[tuple[tuple[str, int, int], list[Row]]]:
    """As many rollouts as the page can hold, spread over training, the first and the last among them."""
    longest = max(min(len(rows), MOST_OF_ONE) for _, rows in found)
    return thinned(found, min(MOST_ROLLOUTS, max(2, MOST_TOKENS // longest)))


def _colours(results: Results) -> dict[str, Colours]:
    """The ends of the colours leave out the most extreme tenth, which would make all others look alike."""
    medians = _spread(results, {q.name: f"median({q.name})" for q in QUANTITIES if not q.around_0})
    centres = {q.name: medians.get(q.name) or 0.0 for q in QUANTITIES}
    reach = _spread(
        results, {name: f"quantile_cont(abs({name} - {centre!r}), 0.9)" for name, centre in centres.items()}
    )
    return {name: Colours(centre, reach[name] or 1.0) for name, centre in centres.items()}


def _spread(results: Results, values: dict[str, str]) -> Row:
    listed = ", ".join(f"{sql} AS {name}" for name, sql in values.items())
    return results.ask("rollouts", SPREAD.format(values=listed))[0]


def _about(results: Results, ids: set[int]) -> dict[int, Row]:
    """What the teacher itself wrote for those inputs, and the inputs, where they are known."""
    listed = ", ".join(str(int(each)) for each in sorted(ids))
    found: dict[int, Row] = {}
    pairs = results.ask(
        "pairs", f"SELECT id, source, target FROM pairs WHERE run = $run AND split = 'train' AND id IN ({listed})"
    )
    wrote = results.ask("teacher_scores", f"SELECT id, text FROM teacher_scores WHERE run = $run AND id IN ({listed})")
    for row in (*pairs, *wrote):
        found.setdefault(row["id"], {}).update(row)
    return found


def _rollout(key: tuple[str, int, int], rows: Sequence[Row], colours: Colours, about: Row) -> Html:
    cell, step, _ = key
    facts = [_fact("Input", about.get("source")), _fact("The teacher wrote", about.get("text"))]
    total = sum(row["reward"] for row in rows)
    title = f"Step {step}, input {rows[0]['id']}" + (f", {cell}" if cell else "")
    left = len(rows) - MOST_OF_ONE
    return tag(
        "article",
        {"class": "rollout", "data-step": step},
        tag("h3", title, tag("small", f"{len(rows)} tokens, reward {fixed(total, 2)} in all")),
        tag("dl", {"class": "about"}, facts) if any(facts) else None,
        tag(
            "p",
            {"class": "tokens", "role": "group", "aria-label": f"Tokens of {title}"},
            [_token(row, colours) for row in rows[:MOST_OF_ONE]],
        ),
        tag("p", {"class": "note"}, f"{left} more tokens") if left > 0 else None,
    )


def _fact(name: str, text: str | None) -> Html | None:
    if text is None:
        return None
    shown, left = shortened(text, TEXT_CHARACTERS)
    return tag("div", tag("dt", name), tag("dd", {"dir": "auto"}, quoted(shown), " …" if left else None))


def _token(row: Row, colours: Colours) -> Html:
    values = ",".join(f"{row[name]:.4g}" for name in ("q_value", "value", "reward", "gain", "log_prob"))
    shade = colours.step(row["reward"])
    return tag(
        "span",
        {"class": f"t b{shade}", "data-v": values},
        quoted(readable(row["token"])),
        tag("i", fixed(row["reward"], 1)),
    )


def readable(token: str) -> str:
    """A token with its marks for spaces (SentencePiece ▁, byte-level Ġ Ċ) as a person reads them."""
    shown, left = shortened(token.replace("▁", "␣").replace("Ġ", "␣").replace("Ċ", "⏎"), TOKEN_CHARACTERS)
    return f"{shown}…" if left else shown


def _controls(shown: Sequence[tuple[tuple[str, int, int], list[Row]]], colours: dict[str, Colours]) -> Html:
    steps = list(dict.fromkeys(step for (_, step, _), _ in shown))
    steps.sort()
    options = [
        tag(
            "option",
            {
                "value": q.name,
                "data-centre": f"{colours[q.name].centre:.6g}",
                "data-reach": f"{colours[q.name].reach:.6g}",
                "data-meaning": q.meaning,
            },
            q.label,
        )
        for q in QUANTITIES
    ]
    chosen = [tag("option", {"value": ""}, "all")] + [tag("option", {"value": step}, step) for step in steps]
    reward = colours["reward"]
    ends = [fixed(reward.centre - reward.reach, 1), fixed(reward.centre, 1), fixed(reward.centre + reward.reach, 1)]
    return tag(
        "div",
        {"class": "explorer"},
        tag(
            "div",
            {"class": "controls", "id": "rollout-controls", "hidden": True},
            tag("label", "Colour by ", tag("select", {"id": "rollout-quantity"}, options)),
            tag("label", "Training step ", tag("select", {"id": "rollout-step"}, chosen)),
        ),
        tag(
            "div",
            {"class": "scale"},
            tag("span", {"id": "scale-low"}, f"≤ {ends[0]}"),
            [tag("span", {"class": f"t b{k}", "aria-hidden": "true"}) for k in range(-STEPS, STEPS + 1)],
            tag("span", {"id": "scale-high"}, f"≥ {ends[2]}"),
            tag(
                "span",
                {"id": "scale-meaning", "role": "status"},
                f"reward: {QUANTITIES[0].meaning}. The middle is {ends[1]}.",
            ),
        ),
    )


def _details() -> Html:
    """Where the script writes what it knows of the token under the pointer or the focus."""
    return tag("div", {"id": "token-details", "role": "status", "hidden": True})


def _extremes(results: Results) -> Html:
    rows = results.ask("rollouts", TOKENS)
    ends = rows if len(rows) <= 2 * EXTREMES else rows[:EXTREMES] + rows[-EXTREMES:]
    cells = [
        [quoted(readable(row["token"])), f"{row['times']:,}", short(row["reward"]), short(row["below"])] for row in ends
    ]
    caption = f"Mean over all recorded rollouts; {len(ends)} of {len(rows)} frequent tokens, highest reward first"
    headers = ["token", "times", "mean reward", "mean of q-value − value"]
    return folded("Which tokens are rewarded most and least", table(caption, headers, cells))
