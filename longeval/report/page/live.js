// A run under way: how far it is, asked of the server that the page comes from; new cells load the page anew.
"use strict";
{
  const EVERY_MS = 2000;
  // Not while somebody reads what the last cell brought.
  const LEAST_BETWEEN_MS = 8000;

  longeval.startLive = () => {
    const line = document.getElementById("progress");
    const opened = Date.now();
    const shown = Number(document.body.dataset.stored);
    const look = async () => {
      try {
        const { stored, text, is_running: isRunning } = await (await fetch("progress", { cache: "no-store" })).json();
        line.textContent = text;
        const isTyping = document.activeElement?.matches("input") && document.activeElement.value;
        if (stored !== shown && !isTyping && (Date.now() - opened > LEAST_BETWEEN_MS || !isRunning)) {
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
