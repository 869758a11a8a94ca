// Starts what the other scripts declare.
"use strict";

if (matchMedia("(max-width: 40rem)").matches) {
  document.querySelector("nav details").open = false;
}
longeval.startTables();

// The first chart stands beside the tables of the opening where they leave room for it, else below the first one.
const lead = document.querySelector(".lead");
if (lead && [...lead.querySelectorAll(".scroll")].some((table) => table.scrollWidth > table.clientWidth)) {
  lead.classList.remove("lead");
}
longeval.startCharts();

// A view is filled when it is first seen: its container may be in a closed <details>.
longeval.whenVisible(document.querySelectorAll(".view"), (element) => {
  longeval.views[element.dataset.kind]?.(element, longeval.data(element.dataset.source));
});

if ("version" in document.body.dataset) {
  longeval.startLive();
}
