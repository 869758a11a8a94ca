// Starts what the other scripts declare.
"use strict";

if (matchMedia("(max-width: 40rem)").matches) {
  document.querySelector("nav details").open = false;
}
longeval.startTables();
longeval.startCharts();

// A view is filled when it is first seen: its container may be in a closed <details>.
longeval.whenVisible(document.querySelectorAll(".view"), (element) => {
  longeval.views[element.dataset.kind]?.(element, longeval.data(element.dataset.source));
});

if ("version" in document.body.dataset) {
  longeval.startLive();
}
