// The view of tokens: a document's text, coloured by how much better each token is predicted under A than under B.
//
// `longeval.views.tokens(element, data)` fills an element. The form of `data` is said in longeval/studies/ppl/tokens.py.
// Text enters the page as text only (textContent), colours are classes (tokens.css). Only the chunks of text near what
// is visible have an element for each token; the others are plain text of the same size.
//
// A piece is what is coloured: a token, or several that are parts of one character. Values of a piece are sums.
"use strict";
{
  const SHADES = 8; // on each side of the scale
  const CHUNK = 256; // pieces
  const MAX_NLL = 8; // nats, end of the scale of a single NLL
  const SCALES = [0.25, 0.5, 1, 2, 4, 8]; // nats, ends of the scale of differences

  const { labelled, lengthName, make, option, select, whole } = longeval;

  const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const numbersOf = (text) => {
    const view = new DataView(bytesOf(text).buffer);
    return Uint16Array.from({ length: view.byteLength / 2 }, (_, place) => view.getUint16(2 * place, true));
  };
  const signed = (value, digits = 3) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
  // Line ends, tabs, and characters that nobody can see are written out.
  const visible = (text) => {
    const names = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
    const code = (letter) => `[U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`;
    return text.replace(/[\p{Cc}\p{Cf}]/gu, (letter) => names[letter] ?? code(letter));
  };

  // One document: its pieces, and the values of each series by token.
  class TokenDocument {
    constructor(plain, data) {
      this.plain = plain;
      this.step = data.step;
      this.text = plain.text;
      this.tokens = plain.tokens;
      const widths = numbersOf(plain.ends);
      const first = [];
      const offsets = [];
      let offset = 0;
      for (let token = 0; token < widths.length; token += 1) {
        if (token === 0 || (widths[token] > 0 && offset > 0)) {
          first.push(token);
          offsets.push(offset);
        }
        offset += widths[token];
      }
      this.firstToken = Int32Array.from([...first, widths.length]);
      this.offsets = Int32Array.from([...offsets, offset]);
      this.pieces = first.length;
      const bits = plain.keys === null ? null : bytesOf(plain.keys);
      this.isKeyToken = (token) => bits !== null && ((bits[token >> 3] >> (token & 7)) & 1) === 1;
      this.read = new Map();
      this.keyPieces = [...first.keys()].filter((piece) => this.isKey(piece));
    }

    // Whether a piece is a key token, or one of its tokens is.
    isKey(piece) {
      for (let token = this.firstToken[piece]; token < this.firstToken[piece + 1]; token += 1) {
        if (this.isKeyToken(token)) return true;
      }
      return false;
    }

    textOf(piece) {
      return this.text.slice(this.offsets[piece], this.offsets[piece + 1]);
    }

    pieceAt(token) {
      let low = 0;
      let high = this.pieces - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (this.firstToken[middle] <= token) low = middle;
        else high = middle - 1;
      }
      return low;
    }

    // NLL in nats and context in tokens of every token under a series; NaN and −1 where it isn't scored.
    values(place) {
      if (!this.read.has(place)) {
        const series = this.plain.series[place];
        const stored = numbersOf((series.same === undefined ? series : this.plain.series[series.same]).nll);
        const nll = new Float64Array(this.tokens).fill(NaN);
        const context = new Int32Array(this.tokens).fill(-1);
        let next = 0;
        for (const [start, count, at] of series.windows) {
          for (let token = start; token < start + count; token += 1, next += 1) {
            nll[token] = stored[next] * this.step;
            context[token] = at + token - start;
          }
        }
        this.read.set(place, { nll, context });
      }
      return this.read.get(place);
    }

    // The sum over the tokens of each piece of values by token.
    byPiece(values) {
      const sums = new Float64Array(this.pieces);
      for (let piece = 0; piece < this.pieces; piece += 1) {
        for (let token = this.firstToken[piece]; token < this.firstToken[piece + 1]; token += 1) {
          sums[piece] += values[token];
        }
      }
      return sums;
    }
  }

  class TokenView {
    constructor(element, data) {
      this.data = data;
      this.documents = new Map();
      this.waiting = new Set();
      this.root = make("div", "tv");
      element.append(this.root);
      if (data.documents.length) this.build();
      for (const note of data.notes) this.root.append(make("p", "view-note", note));
      if (data.documents.length) this.open(0);
    }

    build() {
      this.buildControls();
      this.totals = make("p", "tv-totals");
      this.legend = make("div", "tv-legend");
      this.strip = make("canvas", "tv-strip");
      this.strip.tabIndex = 0;
      this.strip.setAttribute("role", "slider");
      this.strip.setAttribute("aria-label", "Difference along the document; arrow keys move in it");
      this.strip.setAttribute("aria-valuemin", "1");
      this.window = make("div", "tv-window");
      const strip = make("div", "tv-strip-box");
      strip.append(this.strip, this.window);
      this.stripNote = make("p", "view-note");
      this.readout = make("div", "tv-readout");
      this.readout.setAttribute("role", "status");
      this.box = make("div", "tv-text");
      this.box.tabIndex = 0;
      this.box.dir = "auto";
      this.box.setAttribute("role", "group");
      this.box.setAttribute("aria-label", "Text of the document; left and right arrow keys move from token to token");
      if (this.data.keys !== null) this.box.setAttribute("aria-keyshortcuts", "K Shift+K");
      this.root.append(
        this.controls, this.totals, this.legend, strip, this.stripNote, this.buildJumps(), this.readout, this.box,
      );
      this.listen();
    }

    buildControls() {
      const documents = this.data.documents.map((one, place) => option(place, one.name));
      this.document = select("document", documents, () => this.open(Number(this.document.value)));
      const methods = () => this.data.methods.map((name, place) => option(place, name));
      const lengths = [...new Set(this.data.documents.flatMap((one) => one.series.map((each) => each.length)))];
      lengths.sort((one, other) => other - one);
      this.sides = ["A", "B"].map((side) => {
        const changed = () => this.choose();
        const method = select(`method-${side}`, methods(), changed);
        const names = lengths.map((length) => option(length, lengthName(length)));
        const length = select(`length-${side}`, names, changed);
        method.setAttribute("aria-label", `Method of ${side}`);
        length.setAttribute("aria-label", `Length of ${side}, tokens`);
        const field = make("span", `view-field tv-side tv-side-${side.toLowerCase()}`);
        field.append(make("b", "", side), method, " at ", length);
        return { method, length, field };
      });
      this.colour = select(
        "colour", [option("difference", "A − B"), option("nll", "NLL of A")], () => this.repaint(),
      );
      this.scale = select(
        "scale", SCALES.map((nats) => option(nats, `±${nats} nats`)), () => this.repaint(),
      );
      this.controls = make("div", "view-controls");
      this.controls.append(
        labelled("Document ", this.document), ...this.sides.map((side) => side.field),
        labelled("Colour ", this.colour), labelled("Scale ", this.scale),
      );
    }

    buildJumps() {
      this.least = make("input");
      this.least.type = "number";
      this.least.min = "0";
      this.least.step = "0.1";
      this.least.value = "1";
      this.least.addEventListener("input", () => this.countPlaces());
      const jumps = make("div", "view-controls");
      const field = labelled("Places where one wins by more than ", this.least);
      field.append(" nats");
      jumps.append(field);
      const to = this.data.keys === null ? ["A", "B"] : ["A", "B", "key"];
      this.jumps = to.flatMap((kind) => [-1, 1].map((step) => {
        const button = make("button", `tv-jump tv-side-${kind.toLowerCase()}`);
        button.type = "button";
        if (kind === "key") button.title = step > 0 ? "Key K" : "Keys Shift and K";
        button.addEventListener("click", () => this.jump(kind, step));
        jumps.append(button);
        return { kind, step, button };
      }));
      return jumps;
    }

    listen() {
      const pieceOf = (event) => {
        const found = event.target.closest?.("[data-piece]");
        return found ? Number(found.dataset.piece) : null;
      };
      this.box.addEventListener("pointerover", (event) => {
        const piece = pieceOf(event);
        if (piece !== null) this.tell(piece);
      });
      this.box.addEventListener("pointerleave", () => this.tell(this.current));
      this.box.addEventListener("click", (event) => {
        const piece = pieceOf(event);
        if (piece !== null) this.mark(piece);
      });
      this.box.addEventListener("keydown", (event) => {
        const steps = { ArrowRight: 1, ArrowLeft: -1 };
        if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        this.goTo(this.current + steps[event.key], "nearest");
      });
      this.root.addEventListener("keydown", (event) => {
        const isTyping = event.target.matches("input, select") || event.altKey || event.ctrlKey || event.metaKey;
        if (event.key.toLowerCase() === "k" && !isTyping) this.jump("key", event.shiftKey ? -1 : 1);
      });
      this.box.addEventListener("scroll", () => this.later("showWindow"), { passive: true });
      this.strip.addEventListener("click", (event) => {
        const at = event.offsetX / this.strip.clientWidth;
        this.goTo(this.shown.pieceAt(Math.floor(at * this.shown.tokens)));
      });
      this.strip.addEventListener("keydown", (event) => {
        const part = Math.max(1, Math.round(this.shown.pieces / 50));
        const to = {
          ArrowRight: this.current + part, ArrowUp: this.current + part, ArrowLeft: this.current - part,
          ArrowDown: this.current - part, Home: 0, End: this.shown.pieces - 1,
        }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        this.goTo(to);
      });
      new ResizeObserver(() => this.later("drawStrip")).observe(this.strip);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawStrip());
      const margin = { root: this.box, rootMargin: "300px 0px" };
      this.observer = new IntersectionObserver((entries) => {
        for (const entry of entries) this.fill(entry.target, entry.isIntersecting);
      }, margin);
    }

    // Calls a method once in the next frame, however often that is asked for.
    later(name) {
      if (this.waiting.has(name)) return;
      this.waiting.add(name);
      requestAnimationFrame(() => {
        this.waiting.delete(name);
        this[name]();
      });
    }

    open(place) {
      if (!this.documents.has(place)) {
        this.documents.set(place, new TokenDocument(this.data.documents[place], this.data));
      }
      const isFirst = this.shown === undefined;
      this.shown = this.documents.get(place);
      this.current = 0;
      this.strip.setAttribute("aria-valuemax", String(this.shown.tokens));
      if (isFirst) this.chooseFirst();
      this.observer.disconnect();
      this.chunks = [];
      for (let first = 0; first < this.shown.pieces; first += CHUNK) {
        const chunk = make("span", "tv-chunk");
        chunk.firstPiece = first;
        chunk.lastPiece = Math.min(first + CHUNK, this.shown.pieces);
        chunk.textContent = this.textOf(chunk);
        this.chunks.push(chunk);
      }
      this.box.replaceChildren(...this.chunks);
      this.box.scrollTop = 0;
      this.choose();
      this.current = Math.max(0, this.nllA.findIndex((value) => !Number.isNaN(value)));
      this.tell(this.current);
      for (const chunk of this.chunks) this.observer.observe(chunk);
    }

    // At first: the second method against the first one, at the longest length; else the longest length against another.
    chooseFirst() {
      const { series } = this.shown.plain;
      const a = series.find((one) => one.length === series[0].length && one !== series[0]) ?? series[0];
      const b = a === series[0] ? series.find((one) => one !== a) ?? a : series[0];
      [a, b].forEach((one, side) => {
        this.sides[side].method.value = one.method;
        this.sides[side].length.value = one.length;
      });
      if (a === b) this.colour.value = "nll";
    }

    // The series that a side asks for; where this document has none at that length, the method's longest one.
    seriesOf({ method, length }) {
      const { series } = this.shown.plain;
      const own = series.map((one, place) => ({ ...one, place })).filter((one) => one.method === Number(method.value));
      for (const each of length.options) each.disabled = !own.some((one) => one.length === Number(each.value));
      const found = own.find((one) => one.length === Number(length.value)) ?? own[0] ?? { ...series[0], place: 0 };
      method.value = found.method;
      length.value = found.length;
      return found;
    }

    nameOf(series) {
      return `${this.data.methods[series.method]} at ${lengthName(series.length)}`;
    }

    choose() {
      this.series = this.sides.map((side) => this.seriesOf(side));
      const [a, b] = this.series.map((series) => this.shown.values(series.place));
      this.byToken = { a: a.nll, b: b.nll, fromA: a.context, fromB: b.context };
      this.nllA = this.shown.byPiece(a.nll);
      this.nllB = this.shown.byPiece(b.nll);
      this.difference = this.nllA.map((value, piece) => value - this.nllB[piece]);
      const sizes = this.difference.filter((value) => !Number.isNaN(value)).map(Math.abs).sort();
      const usual = sizes.length ? sizes[Math.floor(0.98 * (sizes.length - 1))] : 1;
      this.scale.value = SCALES.find((nats) => nats >= usual) ?? SCALES.at(-1);
      this.sumUp();
      this.repaint();
    }

    sumUp() {
      const { a, b } = this.byToken;
      const sum = (isWanted) => {
        const found = { tokens: 0, a: 0, b: 0, better: 0, worse: 0 };
        for (let token = 0; token < this.shown.tokens; token += 1) {
          if (Number.isNaN(a[token]) || Number.isNaN(b[token]) || !isWanted(token)) continue;
          found.tokens += 1;
          found.a += a[token];
          found.b += b[token];
          if (a[token] < b[token]) found.better += 1;
          if (a[token] > b[token]) found.worse += 1;
        }
        return found;
      };
      const percent = (part, of) => `${((100 * part) / of).toFixed(1)}%`;
      const said = (found, what) => {
        if (!found.tokens) return `No ${what} is scored under both. `;
        const mean = (found.a - found.b) / found.tokens;
        return `${whole(found.tokens)} ${what}s scored under both: A − B ${signed(mean, 4)} nats a token ` +
          `(perplexity ${Math.exp(found.a / found.tokens).toPrecision(4)} and ` +
          `${Math.exp(found.b / found.tokens).toPrecision(4)}); A is better at ${percent(found.better, found.tokens)}, ` +
          `B at ${percent(found.worse, found.tokens)}. `;
      };
      this.totals.textContent = said(sum(() => true), "token");
      if (this.shown.plain.keys !== null) {
        this.totals.append(said(sum((token) => this.shown.isKeyToken(token)), "key token"));
        const { keys } = this.data;
        this.totals.append(`Underlined: key tokens of LongPPL by ${keys.model} (α ${keys.alpha}, β ${keys.beta} nats).`);
      }
    }

    // What is shown of a piece, and the end of its scale.
    get isDifference() {
      return this.colour.value === "difference";
    }

    get end() {
      return this.isDifference ? Number(this.scale.value) : MAX_NLL;
    }

    classOf(piece) {
      const value = this.isDifference ? this.difference[piece] : this.nllA[piece];
      let name = "tv-t";
      if (Number.isNaN(value)) name += " tv-none";
      else {
        const shade = Math.min(SHADES, Math.round((Math.abs(value) / this.end) * SHADES));
        const side = !this.isDifference ? "n" : value < 0 ? "a" : "b";
        if (shade) name += ` tv-${side}${shade}`;
      }
      if (this.shown.isKey(piece)) name += " tv-key";
      if (piece === this.current) name += " tv-current";
      return name;
    }

    textOf(chunk) {
      return this.shown.text.slice(this.shown.offsets[chunk.firstPiece], this.shown.offsets[chunk.lastPiece]);
    }

    // Gives a chunk an element for each piece, or makes it plain text again.
    fill(chunk, isNear) {
      chunk.isNear = isNear;
      if (!isNear) {
        if (chunk.childElementCount) chunk.textContent = this.textOf(chunk);
        return;
      }
      const spans = [];
      for (let piece = chunk.firstPiece; piece < chunk.lastPiece; piece += 1) {
        const text = this.shown.textOf(piece);
        const span = make("span", this.classOf(piece) + (text.includes("\n") ? " tv-break" : ""), text);
        span.dataset.piece = piece;
        spans.push(span);
      }
      chunk.replaceChildren(...spans);
    }

    repaint() {
      this.scale.disabled = !this.isDifference;
      for (const chunk of this.chunks) if (chunk.isNear) this.fill(chunk, true);
      this.drawLegend();
      this.drawStrip();
      this.countPlaces();
      this.tell(this.current);
    }

    drawLegend() {
      const cells = [];
      const from = this.isDifference ? -SHADES : 0;
      for (let shade = from; shade <= SHADES; shade += 1) {
        const side = !this.isDifference ? "n" : shade < 0 ? "a" : "b";
        cells.push(make("span", `tv-swatch${shade ? ` tv-${side}${Math.abs(shade)}` : ""}`));
      }
      const [a, b] = this.series.map((series) => this.nameOf(series));
      const [left, right] = this.isDifference
        ? [`A better (${a}) −${this.end}`, `+${this.end} nats, B better (${b})`]
        : [`NLL of A (${a}) 0`, `${this.end} nats or more`];
      const scale = make("span", "tv-scale");
      scale.append(...cells);
      this.legend.replaceChildren(make("span", "", left), scale, make("span", "", right));
    }

    drawStrip() {
      const width = this.strip.clientWidth;
      const height = this.strip.clientHeight;
      if (!width || !this.shown) return;
      const ratio = window.devicePixelRatio || 1;
      this.strip.width = Math.round(width * ratio);
      this.strip.height = Math.round(height * ratio);
      const style = getComputedStyle(this.root);
      const colours = ["--tv-a", "--tv-b", "--tv-n", "--rule"].map((name) => style.getPropertyValue(name));
      const means = this.columns(Math.floor(width / 2));
      const most = Math.max(1e-9, ...means.filter(Number.isFinite).map(Math.abs));
      const context = this.strip.getContext("2d");
      context.scale(ratio, ratio);
      const base = this.isDifference ? height / 2 : height;
      context.fillStyle = colours[3];
      context.fillRect(0, base - 0.5, width, 1);
      means.forEach((mean, column) => {
        if (!Number.isFinite(mean)) return;
        const bar = (Math.abs(mean) / most) * (this.isDifference ? height / 2 : height);
        context.fillStyle = this.isDifference ? colours[mean < 0 ? 0 : 1] : colours[2];
        const isUp = !this.isDifference || mean < 0;
        context.fillRect((column * width) / means.length, isUp ? base - bar : base, width / means.length, bar);
      });
      const each = Math.max(1, Math.round(this.shown.tokens / means.length));
      const what = this.isDifference ? "Up: A better, down: B better" : "NLL of A";
      this.stripNote.textContent = this.isDifference && !means.some((mean) => mean) ? "A and B give every token the same value." :
        `${what}; a bar is the mean of about ${whole(each)} token${each > 1 ? "s" : ""}, the highest ` +
        `${most.toPrecision(3)} nats. Click to go there.`;
      this.showWindow();
    }

    // The mean value a token, in equal parts of the document.
    columns(count) {
      const { a, b } = this.byToken;
      const sums = new Float64Array(count);
      const tokens = new Int32Array(count);
      for (let token = 0; token < this.shown.tokens; token += 1) {
        const value = this.isDifference ? a[token] - b[token] : a[token];
        if (Number.isNaN(value)) continue;
        const column = Math.floor((token / this.shown.tokens) * count);
        sums[column] += value;
        tokens[column] += 1;
      }
      return Array.from(sums, (sum, column) => sum / tokens[column]);
    }

    // Shows in the strip which part of the document is visible.
    showWindow() {
      const box = this.box.getBoundingClientRect();
      const at = (y) => {
        let low = 0;
        let high = this.chunks.length - 1;
        while (low < high) {
          const middle = (low + high) >> 1;
          if (this.chunks[middle].getBoundingClientRect().bottom >= y) high = middle;
          else low = middle + 1;
        }
        const chunk = this.chunks[low];
        const place = chunk.getBoundingClientRect();
        const part = Math.min(1, Math.max(0, (y - place.top) / (place.height || 1)));
        return this.shown.firstToken[Math.round(chunk.firstPiece + part * (chunk.lastPiece - chunk.firstPiece))];
      };
      const [from, to] = [at(box.top), at(box.bottom)].map((token) => (100 * token) / this.shown.tokens);
      this.window.style.left = `${from}%`;
      this.window.style.width = `${Math.max(0.3, to - from)}%`;
    }

    // The pieces where a side wins, or the key tokens.
    places(kind) {
      if (kind === "key") return this.shown.keyPieces;
      const least = Math.max(0, Number(this.least.value) || 0);
      const wins = kind === "A" ? (value) => value < -least : (value) => value > least;
      const found = [];
      this.difference.forEach((value, piece) => {
        if (wins(value)) found.push(piece);
      });
      return found;
    }

    countPlaces() {
      for (const { kind, step, button } of this.jumps) {
        const count = this.places(kind).length;
        const [next, what] = kind === "key" ? ["key tokens", "key tokens"] : [`${kind} wins`, `places where ${kind} wins`];
        button.textContent = step < 0 ? `◀ ${kind}` : `${next} (${whole(count)}) ▶`;
        button.setAttribute("aria-label", `${step < 0 ? "Previous" : "Next"} of ${count} ${what}`);
        button.disabled = !count;
      }
    }

    jump(kind, step) {
      const places = this.places(kind);
      const next = step > 0
        ? places.find((piece) => piece > this.current) ?? places[0]
        : places.findLast((piece) => piece < this.current) ?? places.at(-1);
      if (next !== undefined) this.goTo(next);
    }

    goTo(piece, block = "center") {
      const to = Math.min(this.shown.pieces - 1, Math.max(0, piece));
      const chunk = this.chunks[Math.floor(to / CHUNK)];
      if (!chunk.childElementCount) this.fill(chunk, true);
      const [span, box] = [chunk.children[to - chunk.firstPiece].getBoundingClientRect(), this.box.getBoundingClientRect()];
      if (block === "center" || span.top < box.top || span.bottom > box.bottom) {
        this.box.scrollTop += span.top - box.top - box.height / 2;
      }
      this.mark(to);
    }

    mark(piece) {
      this.box.querySelector(".tv-current")?.classList.remove("tv-current");
      this.current = piece;
      this.box.querySelector(`[data-piece="${piece}"]`)?.classList.add("tv-current");
      this.strip.setAttribute("aria-valuenow", String(this.shown.firstToken[piece] + 1));
      this.tell(piece);
    }

    // Says what is known of a piece.
    tell(piece) {
      const first = this.shown.firstToken[piece];
      const count = this.shown.firstToken[piece + 1] - first;
      const facts = [["Token", `“${visible(this.shown.textOf(piece))}”`]];
      const parts = count > 1 ? `, ${count} tokens that are parts of one character, their sums` : "";
      facts.push(["In the document", `${whole(first + 1)} of ${whole(this.shown.plain.of)}${parts}`]);
      const { fromA, fromB } = this.byToken;
      const position = (values) => (values[first] < 0 ? "not scored" : whole(values[first]));
      const same = fromA[first] === fromB[first];
      // It counts from 0, as RoPE does, so it is also the number of tokens in its context.
      facts.push(["RoPE position (tokens before it)", same ? position(fromA) : `A ${position(fromA)}, B ${position(fromB)}`]);
      const nats = (value) => (Number.isNaN(value) ? "–" : value.toFixed(3));
      facts.push(["NLL of A", nats(this.nllA[piece])], ["NLL of B", nats(this.nllB[piece])]);
      const difference = this.difference[piece];
      const better = difference < 0 ? " (A better)" : difference > 0 ? " (B better)" : "";
      facts.push(["A − B", Number.isNaN(difference) ? "–" : `${signed(difference)}${better}`]);
      if (this.shown.isKey(piece)) facts.push(["LongPPL", "key token"]);
      this.readout.replaceChildren(
        ...facts.map(([name, value], place) => {
          const fact = make("span", place ? "tv-fact" : "tv-fact tv-token");
          fact.append(make("span", "tv-name", name), make(place ? "span" : "bdi", "tv-value", value));
          return fact;
        }),
      );
    }
  }

  longeval.views.tokens = (element, data) => new TokenView(element, data);
}
