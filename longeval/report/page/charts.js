// Charts: drawn by Plotly when they come into view, with a legend and buttons that the keyboard reaches.
"use strict";
{
  const PALETTES = {
    light: { paper: "#ffffff", text: "#1d2329", grid: "#e3e6ea", line: "#8a929b", label: "#ffffff" },
    dark: { paper: "#14181d", text: "#e4e8ec", grid: "#2c343d", line: "#77818c", label: "#232a32" },
  };
  const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';
  const LEAST_CONTRAST = 3.2;
  // Pale lines would be lost on dark paper.
  const LEAST_OPACITY = 0.7;
  const LEAST_PANEL_WIDTH = 300;
  // Pixels between the margins of A4 and Letter.
  const PAPER_WIDTH = 660;
  const CONFIG = { displayModeBar: false, displaylogo: false, responsive: false, scrollZoom: false };
  // Signs of Plotly's markers in the legend: filled, hollow.
  const SIGNS = {
    "circle": "●○", "square": "■□", "triangle-up": "▲△", "triangle-down": "▼▽", "triangle-left": "◀◁",
    "triangle-right": "▶▷", "diamond": "◆◇", "diamond-tall": "◆◇", "cross": "✚✛", "x": "✖✕", "star": "★☆",
    "hexagon": "⬢⬡", "pentagon": "⬟⬠", "octagon": "⯃⯄",
  };
  const ESCAPES = { "&lt;": "<", "&gt;": ">", "&amp;": "&", "&#36;": "$" };

  // All charts that were drawn, to draw them anew in other colours.
  const drawn = [];

  // A text as it was before it was escaped for Plotly.
  const plain = (text) => text.replace(/<[^>]*>/g, "").replace(/&(lt|gt|amp|#36);/g, (found) => ESCAPES[found]);

  const channels = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));

  // Relative luminance (WCAG 2.2).
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour).map((channel) => {
      const share = channel / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };

  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };

  // A colour that can be seen on dark paper: itself, or a paler one; black becomes nearly white.
  const onDark = (colour) => {
    if (colour === PALETTES.light.paper) {
      return PALETTES.dark.paper;
    }
    if (contrast(colour, PALETTES.dark.paper) >= LEAST_CONTRAST) {
      return colour;
    }
    if (new Set(channels(colour)).size === 1) {
      return PALETTES.dark.text;
    }
    for (let share = 0.1; share < 1; share += 0.1) {
      const mixed = channels(colour).map((channel) => Math.round(channel + share * (255 - channel)));
      const found = `#${mixed.map((channel) => channel.toString(16).padStart(2, "0")).join("")}`;
      if (contrast(found, PALETTES.dark.paper) >= LEAST_CONTRAST) {
        return found;
      }
    }
    return PALETTES.dark.text;
  };

  // The same traces with every colour changed.
  const recoloured = (value, change) => {
    if (Array.isArray(value)) {
      return value;
    }
    const found = {};
    for (const [key, inner] of Object.entries(value)) {
      if (typeof inner === "string" && (key === "color" || key === "fillcolor")) {
        found[key] = /^#[0-9a-f]{6}$/i.test(inner) ? change(inner) : inner;
      } else {
        found[key] = inner !== null && typeof inner === "object" ? recoloured(inner, change) : inner;
      }
    }
    return found;
  };

  const axesOf = (layout, letter) => Object.keys(layout).filter((key) => key.startsWith(`${letter}axis`));

  // Places the panels in rows of so many, with room for labels between them; sizes in pixels.
  const arrange = (layout, columns, width, panelHeight, right) => {
    const count = axesOf(layout, "x").length;
    const rows = Math.ceil(count / columns);
    const margin = { l: 62, r: right, t: layout.annotations.length > 0 ? 40 : 12, b: 48 };
    const gap = { x: 66, y: 84 };
    const height = margin.t + margin.b + rows * panelHeight + (rows - 1) * gap.y;
    const inner = { x: width - margin.l - margin.r, y: height - margin.t - margin.b };
    const panelWidth = (inner.x - (columns - 1) * gap.x) / columns;
    for (let place = 0; place < count; place += 1) {
      const suffix = place === 0 ? "" : place + 1;
      const left = (place % columns) * (panelWidth + gap.x);
      const top = Math.floor(place / columns) * (panelHeight + gap.y);
      layout[`xaxis${suffix}`].domain = [left / inner.x, Math.min(1, (left + panelWidth) / inner.x)];
      layout[`yaxis${suffix}`].domain = [Math.max(0, 1 - (top + panelHeight) / inner.y), 1 - top / inner.y];
    }
    Object.assign(layout, { margin, width, height });
  };

  // What does not depend on the chart: fonts, colours of axes, of the grid and of what the pointer shows.
  const dress = (layout, palette, isLog) => {
    for (const key of [...axesOf(layout, "x"), ...axesOf(layout, "y")]) {
      const axis = layout[key];
      const isMap = axis.type === "linear" && layout.coloraxis !== undefined;
      Object.assign(axis, {
        gridcolor: palette.grid, linecolor: palette.line, tickcolor: palette.line, showline: !isMap, zeroline: false,
        showgrid: !isMap, ticks: isMap ? "" : "outside", ticklen: 4,
      });
      axis.title.standoff = 8;
      axis.exponentformat = "power";
      if (key.startsWith("y") && isLog !== (axis.type === "log")) {
        axis.type = isLog ? "log" : "linear";
        ["range", "tickvals", "ticktext"].forEach((name) => delete axis[name]);
      }
      if (axis.type === "log" && axis.tickvals === undefined) {
        axis.minor = { ticks: "outside", ticklen: 2, tickcolor: palette.line };
      }
    }
    layout.shapes.forEach((shape) => {
      shape.line.color = palette.line;
    });
    for (const key of Object.keys(layout).filter((name) => name.startsWith("coloraxis"))) {
      layout[key].colorbar.tickcolor = palette.line;
    }
    Object.assign(layout, {
      font: { family: FONT, size: 12, color: palette.text },
      paper_bgcolor: palette.paper,
      plot_bgcolor: palette.paper,
      hovermode: "closest",
      hoverlabel: { bgcolor: palette.label, bordercolor: palette.line, font: { family: FONT, size: 13, color: palette.text }, align: "left" },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      uirevision: "kept",
    });
  };

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.plot = figure.querySelector(".plot");
      this.source = longeval.data(figure.dataset.source);
      this.hidden = new Set();
      this.showsIntervals = false;
      const yAxes = axesOf(this.source.layout, "y").map((key) => this.source.layout[key]);
      this.isLog = yAxes.some((axis) => axis.type === "log");
      this.hasMap = this.source.data.some((trace) => trace.type === "heatmap");
      const values = this.source.data.flatMap((trace) => (trace.type === "scatter" ? trace.y : []));
      this.canBeLog = !this.hasMap && values.some((y) => y !== null) && values.every((y) => y === null || y > 0);
      this.addTools();
      this.addLegend();
      this.addValues();
      this.draw();
      new ResizeObserver(() => {
        if (Math.abs(this.plot.clientWidth - this.width) > 1) {
          requestAnimationFrame(() => this.draw());
        }
      }).observe(this.plot);
    }

    // Traces and layout for Plotly, which changes what it is given.
    built(width, palette, columns) {
      const { data, layout } = structuredClone(this.source);
      const count = axesOf(layout, "x").length;
      const perRow = Math.max(1, Math.min(count, columns));
      let panelHeight = Math.max(220, Math.min(400, (0.62 * width) / perRow));
      if (this.hasMap) {
        const rows = Math.max(...data.map((trace) => (trace.type === "heatmap" ? trace.z.length : 0)));
        panelHeight = Math.max(120, Math.min(520, 44 * rows));
      }
      arrange(layout, perRow, width, panelHeight, this.hasMap ? 80 : 16);
      dress(layout, palette, this.isLog);
      const traces = palette === PALETTES.dark ? data.map((trace) => recoloured(trace, onDark)) : data;
      for (const trace of traces) {
        trace.visible = !this.hidden.has(trace.legendgroup);
        if (trace.error_y && this.showsIntervals) {
          trace.error_y.visible = true;
        }
        if (palette === PALETTES.dark && trace.fill === undefined) {
          trace.opacity = Math.max(trace.opacity ?? 1, LEAST_OPACITY);
        }
      }
      return { data: traces, layout };
    }

    // On the screen as wide as there is room, on paper always light and as wide as a page.
    draw(isPrinted = false) {
      this.width = isPrinted ? PAPER_WIDTH : this.plot.clientWidth;
      if (this.width === 0) {
        return;
      }
      const isDark = longeval.darkScheme.matches && !isPrinted;
      const roomy = Math.max(1, Math.floor(this.width / LEAST_PANEL_WIDTH));
      const columns = Math.min(roomy, this.source.columns);
      const { data, layout } = this.built(this.width, isDark ? PALETTES.dark : PALETTES.light, columns);
      delete layout.title;
      layout.showlegend = false;
      Plotly.react(this.plot, data, layout, CONFIG);
      this.entries.forEach((trace, place) => this.buttons[place].querySelector("svg").replaceWith(swatch(trace, isDark)));
    }

    addTools() {
      const button = (label, action, attributes = {}) => longeval.element("button", { type: "button", onclick: action, ...attributes }, label);
      const tools = longeval.element("div", { class: "tools" });
      if (this.canBeLog) {
        const log = button("Log axis", () => {
          this.isLog = !this.isLog;
          log.setAttribute("aria-pressed", this.isLog);
          this.draw();
        }, { "aria-pressed": this.isLog });
        tools.append(log);
      }
      // Where they would hide the lines, intervals are shown on demand; under the pointer they are in any case.
      if (this.source.data.some((trace) => trace.error_y?.visible === false)) {
        const intervals = button("Intervals", () => {
          this.showsIntervals = !this.showsIntervals;
          intervals.setAttribute("aria-pressed", this.showsIntervals);
          this.draw();
        }, { "aria-pressed": false });
        tools.append(intervals);
      }
      tools.append(button("Reset zoom", () => {
        Plotly.purge(this.plot);
        this.draw();
      }));
      for (const format of ["png", "svg"]) {
        tools.append(button(format.toUpperCase(), () => this.save(format), { "aria-label": `Save the chart as ${format.toUpperCase()}` }));
      }
      this.figure.querySelector("figcaption").after(tools);
    }

    // A file with title and legend, on white paper.
    save(format) {
      const { data, layout } = this.built(960, PALETTES.light, this.source.columns);
      Object.assign(layout.title, { x: 0, xref: "paper", font: { size: 15 } });
      layout.margin.t += 24;
      layout.height += 24;
      layout.showlegend = this.entries.length > 0;
      layout.legend = { orientation: "h", y: 0, yref: "container", yanchor: "bottom" };
      if (layout.showlegend) {
        const room = 24 * Math.ceil(this.entries.length / 4) + 16;
        layout.height += room;
        layout.margin.b += room;
      }
      Plotly.downloadImage({ data, layout, config: CONFIG }, { format, width: 960, height: layout.height, scale: format === "png" ? 2 : 1, filename: this.figure.dataset.name });
    }

    // A button for each line: a click hides or shows it, a double click shows it alone.
    addLegend() {
      this.entries = this.source.data.filter((trace) => trace.showlegend);
      if (this.entries.length === 0) {
        return;
      }
      const legend = longeval.element("div", { class: "legend", role: "group", "aria-label": "Lines of the chart" });
      this.buttons = this.entries.map((trace) => {
        const group = trace.legendgroup;
        const button = longeval.element("button", { type: "button", "aria-pressed": true, title: "Click: hide or show. Double click: show alone." }, swatch(trace, false), plain(trace.name));
        button.addEventListener("click", () => {
          this.hidden.has(group) ? this.hidden.delete(group) : this.hidden.add(group);
          this.showHidden();
        });
        button.addEventListener("dblclick", () => {
          const others = this.entries.map((entry) => entry.legendgroup).filter((other) => other !== group);
          const isAlone = others.every((other) => this.hidden.has(other));
          this.hidden = new Set(isAlone ? [] : others);
          this.showHidden();
        });
        return button;
      });
      legend.append(...this.buttons);
      this.plot.before(legend);
    }

    showHidden() {
      this.entries.forEach((trace, place) => this.buttons[place].setAttribute("aria-pressed", !this.hidden.has(trace.legendgroup)));
      this.draw();
    }

    // The numbers of the chart as a table, made when it is opened.
    addValues() {
      const details = longeval.element("details", { class: "values" }, longeval.element("summary", {}, "Values"));
      details.addEventListener("toggle", () => {
        if (details.open && details.children.length === 1) {
          const cells = (texts, name) => texts.map((text) => longeval.element(name, {}, text));
          const points = this.source.data.flatMap((trace) => (trace.hovertext ?? []).flat());
          const rows = points.map((text) => longeval.element("tr", {}, ...cells(text.split("<br>").map(plain), "td")));
          details.append(longeval.element("div", { class: "scroll long", tabindex: 0, role: "region", "aria-label": "Values of the chart" }, longeval.element("table", {}, longeval.element("tbody", {}, ...rows))));
        }
      });
      this.figure.append(details);
    }
  }

  // A piece of a line with its marker.
  const swatch = (trace, isDark) => {
    const make = (name, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
      return element;
    };
    const colour = isDark ? onDark(trace.line.color) : trace.line.color;
    const image = make("svg", { width: 34, height: 14, "aria-hidden": true });
    const dashes = { solid: "", dash: "6 3", dot: "2 3" }[trace.line.dash];
    image.append(make("line", { x1: 0, x2: 34, y1: 7, y2: 7, "stroke": colour, "stroke-width": Math.min(6, trace.line.width), "stroke-dasharray": dashes, opacity: isDark ? Math.max(trace.opacity, LEAST_OPACITY) : trace.opacity }));
    if (trace.marker) {
      const isHollow = trace.marker.color !== trace.line.color;
      const sign = make("text", { x: 17, y: 11.5, "text-anchor": "middle", "font-size": 13, fill: colour });
      sign.textContent = SIGNS[trace.marker.symbol][isHollow ? 1 : 0];
      image.append(sign);
    }
    return image;
  };

  longeval.startCharts = () => {
    const figures = document.querySelectorAll("figure.chart");
    const started = new Set();
    const start = (figure) => {
      if (!started.has(figure)) {
        started.add(figure);
        drawn.push(new Chart(figure));
      }
    };
    longeval.whenVisible(figures, start);
    longeval.darkScheme.addEventListener("change", () => drawn.forEach((chart) => chart.draw()));
    addEventListener("beforeprint", () => {
      figures.forEach(start);
      drawn.forEach((chart) => chart.draw(true));
    });
    addEventListener("afterprint", () => drawn.forEach((chart) => chart.draw()));
  };
}
