"use strict";
// The page is complete without this. It adds: a theme, copying, search and pages of samples, the explorer of rollouts.
(() => {
  const at = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  theme(at("theme"));
  all(".command").forEach(copying);
  if (at("sample-list")) samples(at("sample-list"));
  if (at("rollout-list")) rollouts(at("rollout-list"));

  function theme(button) {
    const names = { "": "as the system", light: "light", dark: "dark" };
    let chosen = "";
    try { chosen = localStorage.getItem("distill-theme") || ""; } catch { /* a file may have no storage */ }
    const apply = () => {
      if (chosen) document.documentElement.dataset.theme = chosen;
      else delete document.documentElement.dataset.theme;
      button.textContent = `Theme: ${names[chosen]}`;
    };
    if (!(chosen in names)) chosen = "";
    button.addEventListener("click", () => {
      chosen = { "": "light", light: "dark", dark: "" }[chosen];
      try { localStorage.setItem("distill-theme", chosen); } catch { /* then it lasts as long as the page */ }
      apply();
    });
    apply();
    button.hidden = false;
  }

  function copying(block) {
    if (!navigator.clipboard) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(block.querySelector("code").textContent);
        button.textContent = "Copied";
      } catch { button.textContent = "Not allowed here"; }
    });
    block.append(button);
  }

  function samples(list) {
    const rest = at("sample-rest");
    if (rest) { list.append(...all("article", rest)); rest.remove(); }
    const articles = all("article", list);
    const texts = new Map(articles.map((each) => [each, each.textContent.toLowerCase()]));
    const size = Number(list.dataset.page);
    const [search, sort, filter] = ["search", "sort", "filter"].map((name) => at(`sample-${name}`));
    const kept = {
      all: () => true,
      cut: (each) => "cut" in each.dataset,
      same: (each) => "same" in each.dataset,
      differ: (each) => !("same" in each.dataset),
    };
    let page = 0;
    const show = () => {
      const wanted = search.value.trim().toLowerCase();
      const found = articles.filter((each) => kept[filter.value](each) && texts.get(each).includes(wanted));
      const gain = (each) => Number(each.dataset.gain || 0);
      if (sort.value === "up") found.sort((a, b) => gain(b) - gain(a));
      if (sort.value === "down") found.sort((a, b) => gain(a) - gain(b));
      const last = Math.max(0, Math.ceil(found.length / size) - 1);
      page = Math.min(Math.max(page, 0), last);
      list.replaceChildren(...found.slice(page * size, (page + 1) * size));
      const from = found.length ? page * size + 1 : 0;
      at("sample-status").textContent = `${from}–${Math.min(found.length, (page + 1) * size)} of ${found.length}`;
      at("sample-previous").disabled = page === 0;
      at("sample-next").disabled = page === last;
    };
    const turn = (by) => { page += by; show(); };
    for (const each of [search, sort, filter]) each.addEventListener("input", () => { page = 0; show(); });
    at("sample-previous").addEventListener("click", () => turn(-1));
    at("sample-next").addEventListener("click", () => turn(1));
    list.tabIndex = 0;
    list.setAttribute("role", "region");
    list.setAttribute("aria-label", "Samples; left and right arrow turn the pages");
    list.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by && !event.altKey && !event.ctrlKey && !event.metaKey) { event.preventDefault(); turn(by); }
    });
    at("sample-controls").hidden = false;
    show();
  }

  function rollouts(list) {
    const names = ["q_value", "value", "reward", "gain", "log_prob"];
    const quantity = at("rollout-quantity");
    const step = at("rollout-step");
    const details = at("token-details");
    const articles = all("article", list);
    const tokens = articles.map((each) => all(".tokens > .t", each));
    const numbers = new Map();
    for (const token of tokens.flat()) {
      const values = token.dataset.v.split(",").map(Number);
      const found = Object.fromEntries(names.map((name, i) => [name, values[i]]));
      found.below = found.q_value - found.value;
      numbers.set(token, found);
    }
    const text = (value, digits = 1) => value.toFixed(digits).replace(/^-(?=[0.]+$)/, "").replace("-", "−");

    const colour = () => {
      const { centre, reach, meaning } = quantity.selectedOptions[0].dataset;
      const [middle, far] = [Number(centre), Number(reach)];
      for (const [token, found] of numbers) {
        const value = found[quantity.value];
        const shade = Math.max(-4, Math.min(4, Math.round(((value - middle) / far) * 4)));
        token.className = token.className.replace(/\bb-?\d\b/, `b${shade}`);
        token.lastElementChild.textContent = text(value);
      }
      at("scale-low").textContent = `≤ ${text(middle - far)}`;
      at("scale-high").textContent = `≥ ${text(middle + far)}`;
      at("scale-meaning").textContent = `${quantity.selectedOptions[0].text}: ${meaning}. The middle is ${text(middle)}.`;
    };
    const choose = () => {
      for (const each of articles) each.hidden = step.value !== "" && each.dataset.step !== step.value;
    };

    const tell = (token, row, i) => {
      const found = numbers.get(token);
      const next = row[i + 1];
      const after = next ? numbers.get(next).value : null;
      const word = token.firstElementChild.textContent;
      const told = found.q_value - found.reward;
      const leads = after === null ? `what was counted after it ${text(told, 2)}` : `the next state's value ${text(told, 2)}`;
      const below = Math.abs(found.below) < 0.005 ? "the teacher's own first choice" : `${text(-found.below, 2)} below the best`;
      const line = document.createElement("p");
      const name = document.createElement("bdi");
      name.textContent = word;
      const strong = document.createElement("strong");
      strong.append(name);
      line.append(
        strong,
        ` (${i + 1} of ${row.length}): q-value ${text(found.q_value, 2)}, ${below} (value ${text(found.value, 2)}). `,
        `Reward = q-value ${text(found.q_value, 2)} − ${leads} = ${text(found.reward, 2)}. `,
        `Gain ${text(found.gain, 2)}, log-probability ${text(found.log_prob, 2)}.`,
      );
      details.replaceChildren(line);
      details.hidden = false;
      for (const other of all(".t.chosen", list)) other.classList.remove("chosen");
      token.classList.add("chosen");
    };

    tokens.forEach((row) => row.forEach((token, i) => {
      token.tabIndex = i ? -1 : 0;
      token.setAttribute("role", "button");
      token.setAttribute("aria-describedby", "token-details");
      const speak = () => tell(token, row, i);
      token.addEventListener("focus", speak);
      token.addEventListener("pointerenter", speak);
      token.addEventListener("click", () => token.focus());
      token.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { details.hidden = true; return; }
        const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: row.length - 1 }[event.key];
        if (to === undefined || !row[to]) return;
        event.preventDefault();
        token.tabIndex = -1;
        row[to].tabIndex = 0;
        row[to].focus();
      });
    }));
    quantity.addEventListener("input", colour);
    step.addEventListener("input", choose);
    at("rollout-controls").hidden = false;
    colour();
  }
})();
