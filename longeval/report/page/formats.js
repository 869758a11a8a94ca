// A table as text: Markdown, CSV, LaTeX. `content` is what tables.js reads from the screen.
"use strict";
{
  // As longeval/report/formats/markdown.py escapes.
  const markdownText = (text) => text.replace(/\s+/g, " ").replace(/[\\`*_|[\]#~$]|<(?=[A-Za-z/!?])|&(?=[A-Za-z#])/g, "\\$&");

  const markdown = ({ columns, rows, left }) => {
    const cellText = ({ text, interval, note, mark, isStrong }, isHeading) => {
      const escaped = markdownText(text);
      const styled = escaped && isHeading ? `*${escaped}*` : isStrong ? `**${escaped}**` : escaped;
      return [styled, interval, note, mark].filter(Boolean).join(" ");
    };
    const line = (cells) => `| ${cells.join(" | ")} |`;
    const rule = columns.map((_, place) => (place < left ? ":--" : "--:"));
    const lines = rows.map(({ cells, isHeading }) => cells.map((cell, place) => cellText(cell, isHeading && place === 0)));
    return `${[columns.map(markdownText), rule, ...lines].map(line).join("\n")}\n`;
  };

  // A column with intervals becomes three. Headings of groups become a column of their own.
  const csv = ({ columns, rows }) => {
    // No value is an empty field.
    const field = (text) => (text === "–" ? "" : /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const isGrouped = rows.some((row) => row.isHeading);
    const hasInterval = columns.map((_, place) => rows.some((row) => row.cells[place]?.interval));
    const header = columns.flatMap((name, place) => (hasInterval[place] ? [name, `${name} low`, `${name} high`] : [name]));
    const lines = [[...(isGrouped ? ["group"] : []), ...header]];
    let group = "";
    for (const { cells, isHeading } of rows) {
      if (isHeading) {
        group = cells[0].text;
        continue;
      }
      const fields = cells.flatMap(({ text, interval }, place) => {
        const ends = interval.replace(/^\[|\]$/g, "").split(", ");
        return hasInterval[place] ? [text, ends[0], ends[1] ?? ""] : [text];
      });
      lines.push([...(isGrouped ? [group] : []), ...fields]);
    }
    return lines.map((fields) => `${fields.map((text) => field(text.replaceAll("−", "-"))).join(",")}\n`).join("");
  };

  const latex = ({ columns, rows, left }) => {
    const special = longeval.data("latex-characters");
    const escaped = (text) => [...text.replace(/\s+/g, " ")].map((character) => special[character] ?? character).join("");
    const cellText = ({ text, interval, note, mark, isStrong }) => {
      const value = isStrong ? `\\textbf{${escaped(text)}}` : escaped(text);
      const ends = interval ? `\\,{\\scriptsize ${escaped(interval)}}` : "";
      return value + ends + (note ? ` ${escaped(note)}` : "") + escaped(mark);
    };
    const line = ({ cells, isHeading }) =>
      isHeading ? `\\multicolumn{${columns.length}}{l}{\\textit{${escaped(cells[0].text)}}} \\\\` : `${cells.map(cellText).join(" & ")} \\\\`;
    return [
      `\\begin{tabular}{${"l".repeat(left)}${"r".repeat(columns.length - left)}}`,
      "\\toprule",
      `${columns.map(escaped).join(" & ")} \\\\`,
      "\\midrule",
      ...rows.map(line),
      "\\bottomrule",
      "\\end{tabular}",
      "",
    ].join("\n");
  };

  longeval.tableFormats = { Markdown: markdown, CSV: csv, LaTeX: latex };
}
