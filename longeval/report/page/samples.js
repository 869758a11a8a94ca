// The view of samples: the answers of all methods to each sample of a task, with filters and a search.
//
// `longeval.views.samples(element, data)` fills an element. The form of `data` is said in
// longeval/studies/tasks/report/samples.py. Text enters the page as text only (textContent).
"use strict";
{
  const PAGE = 25; // samples that are added at a time

  const { labelled, lengthName, make, option, select, whole } = longeval;
  const scoreName = (score) => (Number.isInteger(score) ? String(score) : score.toFixed(3));

  // What a model answered, as text: the generated text, or which choice it found most likely.
  const answerText = (sample, answer) => {
    if (typeof answer.output === "string") return answer.output;
    if (!Array.isArray(answer.output) || !answer.output.length) return JSON.stringify(answer.output);
    const likelihoods = answer.output.map((one) => (Array.isArray(one) ? one[0] ?? -Infinity : NaN));
    if (!likelihoods.every((one) => typeof one === "number" && !Number.isNaN(one))) return JSON.stringify(answer.output);
    if (likelihoods.length === 1) return `log-likelihood ${likelihoods[0].toFixed(3)}`;
    const best = likelihoods.indexOf(Math.max(...likelihoods));
    const words = choicesOf(sample)[best];
    const named = words === undefined ? "" : ` “${words}”`;
    return `choice ${best + 1} of ${likelihoods.length}${named}, log-likelihood ${likelihoods[best].toFixed(3)}`;
  };

  // The choices of a sample whose prompt is kept as [context, [choice, …]] for each context.
  const isChoices = (prompt) => Array.isArray(prompt) && prompt.every((one) => Array.isArray(one) && Array.isArray(one[1]));
  const choicesOf = (sample) => (isChoices(sample.prompt) ? sample.prompt.flatMap(([, choices]) => choices) : []);

  const promptText = (prompt) => {
    if (typeof prompt === "string") return prompt;
    if (!isChoices(prompt)) return JSON.stringify(prompt);
    return prompt
      .map(([context, choices]) => `${context}\n${choices.map((choice, place) => `(${place + 1}) ${choice}`).join("\n")}`)
      .join("\n\n");
  };

  // A text in which what was searched for is marked.
  const marked = (text, wanted) => {
    const lower = text.toLowerCase();
    const parts = [];
    let from = 0;
    // Lower case may have another length in a few languages; then nothing is marked.
    let at = wanted && lower.length === text.length ? lower.indexOf(wanted) : -1;
    for (; at >= 0; at = lower.indexOf(wanted, from)) {
      parts.push(text.slice(from, at), make("mark", "sv-mark", text.slice(at, at + wanted.length)));
      from = at + wanted.length;
    }
    return [...parts, text.slice(from)];
  };

  class SampleView {
    constructor(element, data) {
      this.data = data;
      this.root = make("div", "sv");
      element.append(this.root);
      if (data.tasks.length) this.build();
      for (const note of data.notes) this.root.append(make("p", "view-note", note));
      if (data.tasks.length) this.open();
    }

    build() {
      const controls = make("div", "view-controls");
      this.task = this.select(controls, "Task", () => this.open());
      this.task.append(...this.data.tasks.map((task, place) => option(place, task.name)));
      this.metric = this.select(controls, "Score", () => this.show());
      this.length = this.select(controls, "Length", () => this.show());
      this.filter = this.select(controls, "Show", () => this.show());
      const sides = make("div", "view-controls");
      this.sides = ["A", "B"].map((side) => {
        const method = this.select(sides, side, () => this.show());
        const length = this.select(sides, "at", () => this.show());
        method.setAttribute("aria-label", `Method of ${side}`);
        length.setAttribute("aria-label", `Length of ${side}, tokens`);
        return { method, length };
      });
      this.search = make("input", "sv-search");
      this.search.type = "search";
      this.search.placeholder = "in prompts, answers, documents";
      this.search.addEventListener("input", () => {
        clearTimeout(this.searching);
        this.searching = setTimeout(() => this.show(), 150);
      });
      sides.append(labelled("Search ", this.search));
      this.count = make("p", "sv-count");
      this.count.setAttribute("role", "status");
      this.list = make("ol", "sv-list");
      this.more = make("button", "sv-more");
      this.more.type = "button";
      this.more.addEventListener("click", () => this.add());
      this.root.append(controls, sides, this.count, this.list, this.more);
    }

    select(parent, name, onChange) {
      const made = select(name, [], onChange);
      parent.append(labelled(`${name} `, made));
      return made;
    }

    // Begins with a task: its metrics, lengths and methods can be chosen.
    open() {
      this.shown = this.data.tasks[Number(this.task.value)];
      const { metrics, lengths, methods, samples } = this.shown;
      this.metric.replaceChildren(...metrics.map((metric) => option(metric.name, metric.name.replaceAll("_", " "))));
      const named = lengths.map((length) => option(length, lengthName(length)));
      this.length.replaceChildren(option("", "every length"), ...named);
      this.sides.forEach(({ method, length }, side) => {
        method.replaceChildren(...methods.map((name, place) => option(place, name)));
        method.value = methods.length > 1 ? 1 - side : 0;
        length.replaceChildren(
          option("", "the sample's length"), ...lengths.map((each) => option(each, lengthName(each))),
        );
      });
      this.places = new Map(samples.map((sample) => [`${sample.index} ${sample.length}`, sample]));
      this.lowerCase = new Map();
      this.show();
    }

    get chosenMetric() {
      return this.shown.metrics.find((metric) => metric.name === this.metric.value) ?? this.shown.metrics[0];
    }

    score(answer) {
      return answer?.scores[this.chosenMetric?.name] ?? null;
    }

    // The answer of a side to a sample, which may be asked for at another length.
    answerOf(side, sample) {
      const { method, length } = this.sides[side];
      const at = length.value === "" ? sample : this.places.get(`${sample.index} ${length.value}`);
      return at?.answers[Number(method.value)] ?? null;
    }

    // The words of the filters follow from the metric: right and wrong where every score is 0 or 1.
    offerFilters() {
      const binary = this.chosenMetric?.binary;
      const words = binary
        ? { all: "all samples", a: "A right, B wrong", b: "A wrong, B right", none: "both wrong", both: "both right" }
        : { all: "all samples", a: "A scores better than B", b: "B scores better than A", none: "A and B score alike" };
      const before = this.filter.value;
      this.filter.replaceChildren(
        ...Object.entries({ ...words, cut: "document cut" }).map(([value, text]) => option(value, text)),
      );
      this.filter.value = before in words || before === "cut" ? before : "all";
    }

    passes(sample) {
      const wanted = this.filter.value;
      if (this.length.value !== "" && sample.length !== Number(this.length.value)) return false;
      if (wanted === "all") return true;
      if (wanted === "cut") return sample.cut > 0;
      const sign = this.chosenMetric.lower ? -1 : 1;
      const [a, b] = [0, 1].map((side) => this.score(this.answerOf(side, sample)));
      if (a === null || b === null) return false;
      const right = this.chosenMetric.lower ? 0 : 1;
      if (wanted === "both") return a === right && b === right;
      if (wanted === "none") return this.chosenMetric.binary ? a !== right && b !== right : a === b;
      return wanted === "a" ? sign * a > sign * b : sign * b > sign * a;
    }

    contains(sample, wanted) {
      if (!this.lowerCase.has(sample)) {
        const answers = sample.answers.filter(Boolean).map((answer) => answerText(sample, answer));
        const prompt = sample.prompt === undefined ? "" : promptText(sample.prompt);
        const texts = [sample.target, sample.cluster ?? "", ...answers, prompt];
        this.lowerCase.set(sample, texts.join("\n").toLowerCase());
      }
      return this.lowerCase.get(sample).includes(wanted);
    }

    show() {
      this.offerFilters();
      this.wanted = this.search.value.trim().toLowerCase();
      this.found = this.shown.samples.filter(
        (sample) => this.passes(sample) && (!this.wanted || this.contains(sample, this.wanted)),
      );
      const total = this.shown.samples.length;
      const missing = this.shown.total - total;
      const rest = missing > 0 ? `; ${whole(missing)} more are not in this page` : "";
      this.count.textContent = `${whole(this.found.length)} of ${whole(total)} samples${rest}`;
      this.list.replaceChildren();
      this.add();
    }

    add() {
      const from = this.list.childElementCount;
      const next = this.found.slice(from, from + PAGE);
      this.list.append(...next.map((sample) => this.card(sample)));
      const left = this.found.length - from - next.length;
      this.more.hidden = left <= 0;
      this.more.textContent = `Show ${Math.min(PAGE, left)} more of ${whole(left)}`;
      if (from > 0) this.list.children[from]?.focus();
    }

    card(sample) {
      const card = make("li", "sv-card");
      card.tabIndex = -1;
      const facts = [`${whole(sample.tokens)} tokens`];
      if (sample.cut) facts.push(`${whole(sample.cut)} tokens cut`);
      if (sample.depth !== null) facts.push(`depth ${Math.round(100 * sample.depth)}%`);
      const head = make("p", "sv-head");
      head.append(
        make("b", "", `Sample ${sample.index}`), make("span", "sv-fact", lengthName(sample.length)),
        ...facts.map((fact) => make("span", "sv-fact", fact)),
      );
      if (sample.cluster !== null) {
        const name = make("bdi", "sv-fact");
        name.append(...marked(sample.cluster, this.wanted));
        head.append(name);
      }
      const expected = make("p", "sv-expected", "Expected: ");
      const target = make("bdi", "sv-text");
      target.append(...marked(sample.target, this.wanted));
      expected.append(target);
      card.append(head, expected, this.answers(sample));
      if (sample.prompt !== undefined) card.append(this.prompt(sample));
      return card;
    }

    answers(sample) {
      const list = make("dl", "sv-answers");
      sample.answers.forEach((answer, place) => {
        const name = make("dt", "sv-method");
        const sides = ["A", "B"].filter((_, side) => {
          const { method, length } = this.sides[side];
          return Number(method.value) === place && ["", String(sample.length)].includes(length.value);
        });
        name.append(this.shown.methods[place], ...sides.map((side) => make("span", `sv-side sv-side-${side}`, side)));
        const value = make("dd", "sv-answer");
        if (answer === null) value.append(make("span", "sv-soft", "no answer is stored"));
        else {
          value.append(this.badge(answer));
          const text = make("bdi", "sv-text");
          text.append(...marked(answerText(sample, answer), this.wanted));
          value.append(text);
          if (answer.finish === "length") value.append(make("span", "sv-soft", "cut off at the most tokens of an answer"));
        }
        list.append(name, value);
      });
      return list;
    }

    badge(answer) {
      const score = this.score(answer);
      if (score === null) return make("span", "sv-score", "–");
      if (!this.chosenMetric.binary) return make("span", "sv-score", scoreName(score));
      const isRight = score === (this.chosenMetric.lower ? 0 : 1);
      return make("span", `sv-score sv-${isRight ? "right" : "wrong"}`, isRight ? "✓ right" : "✗ wrong");
    }

    prompt(sample) {
      const details = make("details", "sv-prompt");
      details.append(make("summary", "", "Prompt"));
      details.addEventListener(
        "toggle",
        () => {
          const text = make("pre", "sv-prompt-text");
          text.tabIndex = 0;
          text.dir = "auto";
          text.append(...marked(promptText(sample.prompt), this.wanted));
          details.append(text);
        },
        { once: true },
      );
      return details;
    }
  }

  longeval.views.samples = (element, data) => new SampleView(element, data);
}
