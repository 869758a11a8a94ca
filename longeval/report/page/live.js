// A run under way: how far it is, asked of the server that the page comes from. New cells load the page anew; where the
// reader has opened or typed something, they are offered.
"use strict";
{
  const EVERY_MS = 2000;
  // Not while somebody reads what the last cell brought.
  const LEAST_BETWEEN_MS = 8000;

  longeval.startLive = () => {
    const line = document.getElementById("progress");
    const opened = Date.now();
    const shown = document.body.dataset.version;
    const offer = longeval.element("button", { type: "button", hidden: "", onclick: () => location.reload() }, "Show new cells");
    line.after(offer);
    const isInUse = () =>
      document.querySelector("main details[open]") !== null ||
      [...document.querySelectorAll("main input")].some((input) => input.value && input.type !== "number");
    const look = async () => {
      try {
        const { version, text, is_running: isRunning } = await (await fetch("progress", { cache: "no-store" })).json();
        line.textContent = text;
        if (version !== shown && isInUse()) {
          offer.hidden = false;
        } else if (version !== shown && (Date.now() - opened > LEAST_BETWEEN_MS || !isRunning)) {
          location.reload();
          return;
        }
      } catch {
        line.textContent = "longeval view has ended; this page stays as it is.";
        return;
      }
      setTimeout(look, EVERY_MS);
    };
    look();
  };
}
