// The one global object of the page, and the few things that all its scripts use.
"use strict";

const longeval = {
  // Kind of a view → function (element, data) that fills its container.
  views: {},
  // In light or dark; the page follows the system, and paper is always light.
  darkScheme: matchMedia("(prefers-color-scheme: dark)"),
};

// The data that the page carries under an id.
longeval.data = (id) => JSON.parse(document.getElementById(id).textContent);

// A new element. Children are elements or strings; strings are never read as HTML.
longeval.element = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) {
      element.addEventListener(key.slice(2), value);
    } else if (value !== null) {
      element.setAttribute(key, value);
    }
  }
  element.append(...children);
  return element;
};

// The same with a class and a text alone.
longeval.make = (name, className = "", text = null) =>
  longeval.element(name, { class: className || null }, ...(text === null ? [] : [text]));

longeval.option = (value, text) => longeval.element("option", { value }, text);

// A whole number as it is read: 12,345.
longeval.whole = (value) => value.toLocaleString("en-US");

// A length in tokens as it is read: 4k, 1000.
longeval.lengthName = (length) => (length % 1024 ? String(length) : `${length / 1024}k`);

// The controls of views: a choice, and a control with its name before it.
longeval.select = (name, options, onChange) =>
  longeval.element("select", { name, onchange: onChange }, ...options);

longeval.labelled = (text, control) => longeval.element("label", { class: "view-field" }, text, control);

// Calls action(element) once, when the element is on the screen or near it.
longeval.whenVisible = (elements, action) => {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((one) => one.isIntersecting)) {
        observer.unobserve(entry.target);
        action(entry.target);
      }
    },
    { rootMargin: "300px" },
  );
  elements.forEach((element) => observer.observe(element));
};

// Copies a text, and says so on the button that was pressed.
longeval.copy = async (text, button) => {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => {
    button.textContent = label;
  }, 1500);
};

longeval.download = (text, name, type) => {
  const address = URL.createObjectURL(new Blob([text], { type }));
  longeval.element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
};
