// What surrounds the stage: the strip of chosen images, the classes, the previews, the gallery, dialogs.

import { palette, paintOver } from "./shapes.js";

export const $ = id => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const { dataset, style, aria, ...plain } = properties, made = document.createElement(tag);
  Object.assign(made, plain);
  Object.assign(made.dataset, dataset);
  Object.assign(made.style, style);
  for (const [name, value] of Object.entries(aria || {})) made.setAttribute(name === "role" ? name : `aria-${name}`, value);
  made.append(...children);
  return made;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const percent = share => (share > 0 && share < 0.01 ? "<1 %" : share < 1 && share > 0.99 ? ">99 %" : `${Math.round(100 * share)} %`);
export const images = n => (n === 1 ? "1 image" : `${n} images`);

// A picture with a mask over it, about 150 screen pixels wide.
export function drawThumb(canvas, picture, mask, classes) {
  const scale = Math.max(1, Math.ceil(150 * devicePixelRatio / picture.width));
  canvas.width = picture.width * scale;
  canvas.height = picture.height * scale;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (mask) paintOver(context, mask, palette(classes), picture.width, picture.height, 0.5);
}

// An empty canvas of the right shape, until the picture comes.
export function emptyThumb([height, width]) {
  return element("canvas", { width, height });
}

export function ask(title, text, yes) {
  const dialog = $("question");
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector("p").textContent = text;
  dialog.querySelector("[value=yes]").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise(resolve => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

let fading = 0;
export function toast(text) {
  const box = $("toast");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { box.hidden = true; }, 2500 + 40 * text.length);
}

export function showShortcuts(groups) {
  $("shortcut-list").replaceChildren(...groups.map(([text, ...keys]) => {
    const shown = keys.flatMap((key, i) => [i ? " " : "", element("kbd", { textContent: key })]);
    return element("div", {}, element("span", { textContent: text }), element("span", {}, ...shown));
  }));
  $("shortcuts").showModal();
}
