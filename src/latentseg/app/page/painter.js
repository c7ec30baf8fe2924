// The painter: what is open, what the tools do, and how all that is shown.

import { $, ask, drawThumb, element, emptyThumb, icon, images as countImages, percent, showShortcuts, toast } from "./panels.js";
import { Refused, Server } from "./server.js";
import { IGNORE, line, polygon, region, toRuns } from "./shapes.js";
import { Stage } from "./stage.js";

const SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128];
const SAVE_MS = 500; // a stroke that is still going on is saved this often
const POLL_MS = 800;
const ALIVE_MS = 2000; // how soon it is noticed that the painter was ended
const CLOSE_PX = 12; // a click this near to the first corner closes a polygon
const PREVIEWS = 12;
const TOOLS = { brush: "Brush", eraser: "Eraser", polygon: "Polygon", lasso: "Lasso", fill: "Fill" };

const server = new Server(showSaved);
const stage = new Stage($("stage"), { press, drag, release, cancel, hover, zoomed: showZoom });
const pictures = new Map(); // by path
const masks = new Map(); // of chosen images by name, one byte per pixel
const previewMasks = new Map(); // by seed: { version, mask }
let project = null, classTurn = Promise.resolve(), stroke = null, lastEnd = null, isLost = false, isWatching = false;
let current = sessionStorage.image || null, tool = "brush", id = 1, keep = false, size = null, heldSpace = false;

// --- the project ---

const image = () => project.images.find(each => each.name === current);
const label = value => (value === 0 ? "Background" : value === IGNORE ? "Not painted" : project.classes[value - 1].name);
const colour = value => (value === 0 ? "#000000" : value === IGNORE ? "#ffffff" : project.classes[value - 1].colour);
const url = (name, rest = "") => `api/images/${name}${rest}`;

async function begin() {
  setTheme(localStorage.theme || "auto");
  project = await server.get("api/project");
  document.title = `${project.folder} · latentseg paint`;
  $("title").textContent = `${project.folder} · ${project.generator}`;
  const side = Math.max(...project.size);
  const longest = SIZES.filter(each => each <= Math.max(8, side / 2));
  $("size").max = longest.length - 1;
  size = SIZES.findIndex(each => each >= side / 22);
  if (sessionStorage.tools) ({ tool, size, keep, id } = JSON.parse(sessionStorage.tools));
  Object.assign(stage.options, JSON.parse(sessionStorage.options || "{}"));
  if (id !== IGNORE) id = Math.min(id, project.classes.length);
  await Promise.all(project.images.map(each => loadMask(each)));
  buildTools();
  showTool();
  showAll();
  await open(image() ? current : project.images[0]?.name);
  watch();
  checkAlive();
}

async function checkAlive() {
  for (;;) {
    await new Promise(resolve => setTimeout(resolve, ALIVE_MS));
    if (!document.hidden) await server.get("api/previews").catch(problem);
  }
}

async function loadMask(each) {
  const content = await server.bytes(url(each.name, "/mask"));
  each.revision = Number(new DataView(content.buffer).getBigUint64(0, true));
  masks.set(each.name, content.slice(8));
}

async function picture(path) {
  if (!pictures.has(path)) pictures.set(path, path.startsWith("api/gallery/") ? server.drawing(path) : server.picture(path));
  try {
    return await pictures.get(path);
  } catch (error) {
    pictures.delete(path);
    throw error;
  }
}

async function open(name) {
  abandonSketch();
  current = name || null;
  $("empty").hidden = Boolean(current);
  showAll();
  if (!current) { stage.picture = null; stage.draw(); return; }
  sessionStorage.image = current;
  const loaded = await picture(url(current));
  if (name !== current) return;
  stage.show(loaded, masks.get(current), project.classes);
  showTool();
}

function step(by) {
  const names = project.images.map(each => each.name);
  if (names.length) open(names[(names.indexOf(current) + by + names.length) % names.length]);
}

async function problem(error, each) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 404 && !error.answer.error) return showLost("The painter was started anew. Open the address that it printed.");
  toast(error.message);
  if (each) await reload(each);
}

async function reload(each) {
  await loadMask(each);
  const fresh = (await server.get("api/project")).images.find(other => other.name === each.name);
  if (fresh) Object.assign(each, fresh);
  if (each.name === current) { stage.mask = masks.get(current); stage.refresh(); }
  showAll();
}

// --- painting ---

function draw(each, runs) {
  const mask = masks.get(each.name), indices = [];
  for (const [start, length, value] of runs) {
    mask.fill(value, start, start + length);
    for (let i = start; i < start + length; i++) indices.push(i);
  }
  if (each.name === current) stage.refresh(indices);
}

function send(each, name, indices, value, joins = false) {
  if (!indices.length) return;
  const runs = toRuns(indices, value);
  server.change(url(each.name, "/strokes"), () => ({ revision: each.revision, tool: name, joins, runs }), answer => took(each, answer))
    .catch(error => problem(error, each));
}

function took(each, { runs, ...answer }) {
  Object.assign(each, answer);
  if (runs) draw(each, runs);
  showImages();
  showClasses();
  showFooter();
}

// Paints at once on the screen; gives the pixels that changed.
function colourPixels(indices, value, only = () => true) {
  const mask = masks.get(current), changed = [];
  for (const i of indices) {
    if (mask[i] === value || (keep && mask[i] !== IGNORE && value !== IGNORE) || !only(mask[i])) continue;
    if (stroke) stroke.before.set(i, mask[i]);
    mask[i] = value;
    changed.push(i);
  }
  stage.refresh(changed);
  return changed;
}

function press(point, event) {
  if (isLost || !image() || stroke) return;
  const erases = event.button === 2 || (event.buttons & 32) || tool === "eraser";
  const value = erases ? IGNORE : id;
  if (event.altKey) return pick(point);
  if (tool === "polygon" && !erases) return corner(point);
  if (tool === "lasso" && !erases) { stage.isPolygon = false; stage.sketch = [point]; return; }
  if (tool === "fill" && !erases) {
    const [x, y] = [Math.floor(point.x), Math.floor(point.y)];
    if (!isInside(x, y)) return;
    send(image(), "fill", colourPixels(region(masks.get(current), stage.width, stage.height, x, y), value), value);
    return;
  }
  stroke = { image: image(), tool: erases ? "eraser" : "brush", value, last: point, before: new Map(), fresh: [], isSent: false };
  stroke.timer = setInterval(saveStroke, SAVE_MS);
  brushTo(event.shiftKey && lastEnd ? lastEnd : point, point);
}

function brushTo(from, to) {
  stroke.fresh.push(...colourPixels(new Set(line(from, to, SIZES[size], stage.width, stage.height)), stroke.value));
  stroke.last = lastEnd = to;
}

function drag(points) {
  if (stroke) points.forEach(point => brushTo(stroke.last, point));
  else if (tool === "lasso" && stage.sketch.length) stage.sketch.push(...points);
}

function saveStroke() {
  if (!stroke.fresh.length) return;
  send(stroke.image, stroke.tool, stroke.fresh, stroke.value, stroke.isSent);
  stroke.fresh = [];
  stroke.isSent = true;
}

function release() {
  if (stroke) {
    clearInterval(stroke.timer);
    saveStroke();
    stroke = null;
  } else if (tool === "lasso" && stage.sketch.length) closeSketch();
}

// A second finger came: what the first one painted was the beginning of a pinch.
function cancel() {
  if (tool === "lasso") abandonSketch();
  if (!stroke) return;
  const { before, isSent, timer, image: each, fresh } = stroke;
  clearInterval(timer);
  stroke = null;
  const mask = masks.get(each.name), unsaved = isSent ? new Set(fresh) : null;
  for (const [i, value] of before) if (!unsaved || unsaved.has(i)) mask[i] = value;
  stage.refresh([...before.keys()]);
  if (isSent) history("undo");
}

function corner(point) {
  const [first] = stage.sketch;
  stage.isPolygon = true;
  if (first && stage.sketch.length > 2 && Math.hypot(point.x - first.x, point.y - first.y) * stage.view.scale < CLOSE_PX) closeSketch();
  else stage.sketch.push(point);
}

function closeSketch() {
  const corners = stage.sketch;
  stage.sketch = [];
  stage.draw();
  if (corners.length > 2 && image()) send(image(), tool, colourPixels(polygon(corners, stage.width, stage.height), id), id);
}

function abandonSketch() {
  stage.sketch = [];
  stage.draw();
}

function pick(point) {
  const [x, y] = [Math.floor(point.x), Math.floor(point.y)];
  if (isInside(x, y)) choose(masks.get(current)[y * stage.width + x]);
}

const isInside = (x, y) => x >= 0 && y >= 0 && x < stage.width && y < stage.height;

function history(which) {
  const each = image();
  if (!each || stroke) return;
  server.change(url(each.name, `/${which}`), () => ({ revision: each.revision }), answer => took(each, answer)).catch(error => problem(error, each));
}

function fillRest() {
  const indices = image() ? colourPixels(masks.get(current).keys(), 0, value => value === IGNORE) : [];
  if (indices.length) send(image(), "rest", indices, 0);
  else if (image()) toast("Everything is painted already.");
}

function clearMask() {
  if (image()) send(image(), "clear", colourPixels(masks.get(current).keys(), IGNORE), IGNORE);
}

function markDone() {
  const each = image();
  if (!each) return;
  const isDone = !each.is_done;
  if (isDone && !each.painted) { toast("Paint something on it first."); return; }
  server.change(url(each.name, "/done"), () => ({ is_done: isDone }), answer => { took(each, answer); watch(); }).catch(error => problem(error, each));
  if (!isDone) return;
  const next = project.images.find(other => !other.is_done && other !== each);
  if (each.painted < 1) toast(`Done; ${percent(1 - each.painted)} of it stays not painted, and is left out of learning.`);
  if (next) open(next.name);
}

function importMask(file) {
  const each = image();
  if (!each) return;
  server.change(url(each.name, "/mask.png"), () => file, async answer => { await loadMask(each); took(each, answer); stage.mask = masks.get(current); stage.refresh(); })
    .catch(error => problem(error, each));
}

// --- tools and options ---

function buildTools() {
  const buttons = Object.entries(TOOLS).map(([name, text]) => toolButton(name, text));
  $("tools").append(...buttons, element("hr"), toolButton("rest", "Fill the rest with background"), element("hr"), toolButton("hand", "Move the picture"));
  for (const button of document.querySelectorAll("[data-do]")) {
    const action = ACTIONS[button.dataset.do];
    button.title ||= `${action.text} (${action.keys[0]})`;
    button.addEventListener("click", event => { action.run(); if (event.detail) button.blur(); });
  }
}

function toolButton(name, text) {
  return element("button", { className: "quiet", aria: { label: text }, dataset: { do: name } }, icon(name));
}

function setTool(name) {
  abandonSketch();
  tool = name;
  showTool();
}

function showTool() {
  for (const button of $("tools").querySelectorAll("button")) button.setAttribute("aria-pressed", button.dataset.do === tool);
  const shown = tool === "brush" || tool === "eraser", pans = tool === "hand" || heldSpace;
  stage.mode = pans ? "pan" : "paint";
  stage.brush = { diameter: SIZES[size], colour: colour(tool === "eraser" ? IGNORE : id), shown: shown && !pans };
  $("stage").className = pans ? "pans" : shown ? "brush" : "";
  $("size").value = size;
  $("size-shown").textContent = `${SIZES[size]} px`;
  $("size-of").style.opacity = shown ? 1 : 0.4;
  $("opacity").value = Math.round(100 * stage.options.opacity);
  $("opacity-shown").textContent = `${Math.round(100 * stage.options.opacity)} %`;
  for (const name of ["smooth", "lines", "missing"]) pressed(name, stage.options[name]);
  pressed("keep", keep);
  sessionStorage.tools = JSON.stringify({ tool, size, keep, id });
  sessionStorage.options = JSON.stringify({ ...stage.options, hidden: false });
  stage.draw();
}

function pressed(name, value) {
  document.querySelector(`[data-do="${name}"]`).setAttribute("aria-pressed", value);
}

function toggle(name) {
  stage.options[name] = !stage.options[name];
  stage.refresh();
  showTool();
}

function setSize(value) {
  size = Math.min(Number($("size").max), Math.max(0, value));
  showTool();
}

function setOpacity(value) {
  stage.options.opacity = Math.min(1, Math.max(0, value));
  showTool();
}

function choose(value) {
  if (value !== IGNORE && value > project.classes.length) return;
  id = value;
  if (tool === "eraser" || tool === "hand") tool = "brush";
  showClasses();
  showTool();
}

function chooseNext(by) {
  const ids = [0, ...project.classes.keys()].map((_, i) => i).concat(IGNORE);
  choose(ids[(ids.indexOf(id) + by + ids.length) % ids.length]);
}

function setTheme(name) {
  const isDark = name === "dark" || (name === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  localStorage.theme = name;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(localStorage.theme || "auto"));

// --- classes ---

// One after the other, as each names ids of the one before. `edit` changes the list and gives the id
// that is to be chosen, or null to leave all as it is.
function changeClasses(edit) {
  const turn = classTurn.then(() => applyClasses(edit));
  classTurn = turn.catch(() => {});
  return turn;
}

async function applyClasses(edit) {
  await server.chain;
  const list = classList(), select = edit(list);
  if (select === null) return;
  const known = project.classes.map(part => part.name);
  const classes = list.map(({ name, colour: shade, was = null }) => ({ name, colour: shade, was }));
  const wish = isAccepted => () => ({ classes, known, accept_loss: isAccepted });
  let answer;
  try {
    answer = await server.change("api/classes", wish(false));
  } catch (error) {
    if (!error.answer?.lost) throw error;
    const lost = error.answer.lost.map(([name, pixels, n]) => `${name}: ${pixels} pixels in ${countImages(n)}.`).join(" ");
    if (!await ask("Remove this class with its paint?", `${lost} They become not painted, and this cannot be undone.`, "Remove")) return;
    answer = await server.change("api/classes", wish(true));
  }
  project = answer;
  await Promise.all(project.images.map(loadMask));
  id = select;
  previewMasks.clear();
  if (image()) stage.show(await picture(url(current)), masks.get(current), project.classes);
  showAll();
  showTool();
  watch();
}

const classList = () => project.classes.map((part, i) => ({ ...part, was: i + 1 }));

function moveClass(by, number = null) {
  changeClasses(list => {
    const from = number ?? id, to = from + by;
    if (from < 1 || from > list.length || to < 1 || to > list.length) return null;
    list.splice(to - 1, 0, ...list.splice(from - 1, 1));
    return to;
  }).catch(error => toast(error.message));
}

function editClass(number) {
  if (number !== null && (number < 1 || number > project.classes.length)) return;
  const dialog = $("class-dialog"), form = dialog.querySelector("form"), isNew = number === null;
  const part = isNew ? { name: "", colour: project.next_colour } : project.classes[number - 1];
  form.querySelector("h2").textContent = isNew ? "New class" : "Class";
  $("class-name").value = part.name;
  $("class-colour").value = $("class-hex").textContent = part.colour;
  $("class-more").style.visibility = isNew ? "hidden" : "visible";
  $("class-up").disabled = number === 1;
  $("class-down").disabled = number === project.classes.length;
  $("class-remove").disabled = project.classes.length === 1;
  $("class-problem").hidden = true;
  $("class-colour").oninput = () => { $("class-hex").textContent = $("class-colour").value; };
  $("class-up").onclick = () => { dialog.close(); moveClass(-1, number); };
  $("class-down").onclick = () => { dialog.close(); moveClass(1, number); };
  $("class-remove").onclick = () => { dialog.close(); removeClass(number); };
  form.onsubmit = event => {
    event.preventDefault();
    const changed = { name: $("class-name").value, colour: $("class-colour").value };
    changeClasses(list => {
      if (isNew) return list.push(changed);
      Object.assign(list[number - 1], changed);
      return number;
    }).then(() => dialog.close(), error => {
      $("class-problem").textContent = error.message.replace(/^the classes: /, "");
      $("class-problem").hidden = false;
    });
  };
  dialog.showModal();
  $("class-name").select();
}

function removeClass(number) {
  changeClasses(list => {
    list.splice(number - 1, 1);
    return Math.min(number, list.length);
  }).catch(error => toast(error.message));
}

// --- the gallery ---

async function openGallery() {
  showGallery();
  $("gallery").showModal();
}

function showGallery() {
  const chosen = new Map(project.images.map(each => [each.seed, each.name]));
  $("gallery-count").textContent = `${chosen.size} chosen`;
  const old = new Map([...$("gallery-images").children].map(card => [card.dataset.seed, card]));
  $("gallery-images").replaceChildren(...project.gallery.map(seed => {
    const card = old.get(String(seed)) || galleryCard(seed);
    if (!card.dataset.drawn) drawCard(card, seed);
    card.dataset.chosen = chosen.has(seed);
    card.querySelector(".thumb").setAttribute("aria-pressed", chosen.has(seed));
    card.querySelector(".badge").hidden = !chosen.has(seed);
    card.querySelector(".again").hidden = chosen.has(seed);
    return card;
  }));
  $("redraw").disabled = project.gallery.every(seed => chosen.has(seed));
}

function galleryCard(seed) {
  const canvas = emptyThumb(project.size);
  const thumb = element("button", { className: "thumb", aria: { label: `image ${seed}` } }, canvas, element("span", { className: "badge" }, icon("check")));
  const again = element("button", { className: "again", title: "Another image instead" }, icon("again"));
  thumb.onclick = () => toggleChosen(seed).catch(error => toast(error.message));
  again.onclick = () => changeGallery({ more: 0, again: [seed] });
  return element("div", { className: "card", dataset: { seed } }, thumb, again);
}

function drawCard(card, seed) {
  picture(`api/gallery/${seed}`).then(loaded => {
    drawThumb(card.querySelector("canvas"), loaded, null, []);
    card.dataset.drawn = true;
  }, () => {}); // the gallery was closed meanwhile; it is drawn when it is opened again
}

async function toggleChosen(seed) {
  const chosen = project.images.find(each => each.seed === seed);
  if (!chosen) await add(seed);
  else if (!chosen.painted || await ask("Remove this image with its paint?", `${percent(chosen.painted)} of it is painted. This cannot be undone.`, "Remove")) await remove(chosen);
  showGallery();
}

async function add(seed) {
  const made = await server.change(`api/gallery/${seed}/choose`);
  if (!project.images.some(each => each.name === made.name)) {
    await loadMask(made);
    project.images.push(made);
  }
  if (image()) showAll();
  else await open(made.name);
  return made;
}

async function remove(each) {
  await server.change(url(each.name, "/remove"));
  const at = project.images.indexOf(each);
  project.images.splice(at, 1);
  masks.delete(each.name);
  if (each.name === current) await open(project.images[Math.min(at, project.images.length - 1)]?.name);
  showAll();
}

async function removeCurrent() {
  const each = image();
  if (each && await ask("Remove this image?", each.painted ? `${percent(each.painted)} of it is painted. This cannot be undone.` : "Nothing is painted on it.", "Remove")) await remove(each);
}

async function changeGallery(wish) {
  try {
    project.gallery = (await server.change("api/gallery", () => wish)).gallery;
    showGallery();
    if (wish.more) $("gallery-images").lastElementChild.scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    toast(error.message);
  }
}

// --- previews ---

async function watch() {
  if (isWatching) return;
  isWatching = true;
  let isLast = false;
  while (!isLast) {
    const status = await server.get("api/previews");
    project.previews = status;
    const isComplete = status.shown.every(each => each.version === status.version);
    isLast = status.state !== "learning" && !(status.state === "ready" && !(isComplete && status.shown.length));
    await showPreviews();
    if (!isLast) await new Promise(resolve => setTimeout(resolve, POLL_MS));
    if (status.state === "ready" && !project.images.some(each => !each.is_done) && !project.gallery.length) isLast = true;
  }
  isWatching = false;
}

async function showPreviews() {
  const { state, painted, error, shown } = project.previews, on = $("preview-state");
  on.textContent = {
    off: "Previews are off: the painter was started without a head that learns.",
    idle: "Mark an image as done, and a head learns from it. What it makes of the others is shown here.",
    learning: `Learning from ${countImages(painted.length)} …`,
    ready: `Learnt from ${countImages(painted.length)}. Take a mask as a start, and correct it.`,
    failed: `The head failed: ${error}`,
  }[state];
  on.className = state === "learning" ? "busy" : state;
  $("learn").hidden = state === "off";
  const open = new Map(project.images.map(each => [each.seed, each]));
  const unfinished = shown.filter(({ seed }) => !(open.get(seed)?.painted === 1));
  const cards = unfinished.slice(0, PREVIEWS).map(async ({ seed, version }) => {
    const path = open.has(seed) ? url(open.get(seed).name) : `api/gallery/${seed}`;
    const canvas = emptyThumb(project.size);
    if (previewMasks.get(seed)?.version !== version) previewMasks.set(seed, { version, mask: await server.bytes(`api/previews/${seed}`) });
    drawThumb(canvas, await picture(path), previewMasks.get(seed).mask, project.classes);
    const text = open.has(seed) ? (open.get(seed).painted ? "Fill its gaps" : "Start from this") : "Choose this";
    const card = element("button", { className: "thumb", title: "Take this mask as a start and correct it" }, canvas, element("span", { textContent: text }));
    card.onclick = () => startFrom(seed).catch(problem);
    return card;
  });
  const made = await Promise.allSettled(cards);
  $("preview-images").replaceChildren(...made.filter(each => each.value).map(each => each.value));
}

async function startFrom(seed) {
  const each = project.images.find(other => other.seed === seed) || await add(seed);
  await open(each.name);
  await server.change(url(each.name, "/start"), () => ({ revision: each.revision }), answer => took(each, answer));
  toast("This is what the head makes of it. Correct it, then mark it as done.");
  showPreviews();
}

function startHere() {
  if (image()) startFrom(image().seed).catch(problem);
}

function learn() {
  server.change("api/previews").then(watch, problem);
}

// --- what is shown ---

function showAll() {
  showImages();
  showClasses();
  showFooter();
  if (project.previews) showPreviews();
}

function showImages() {
  const done = project.images.filter(each => each.is_done).length;
  $("progress").textContent = project.images.length ? `${done} of ${countImages(project.images.length)} done` : "";
  const old = new Map([...$("chosen").children].map(thumb => [thumb.dataset.name, thumb]));
  $("chosen").replaceChildren(...project.images.map((each, i) => {
    const thumb = old.get(each.name) || chosenThumb(each);
    thumb.setAttribute("aria-current", each.name === current);
    thumb.title = `${i + 1}: ${percent(each.painted)} painted${each.is_done ? ", done" : ""}`;
    thumb.querySelector("i").style.width = `${100 * each.painted}%`;
    thumb.querySelector(".bar").hidden = each.is_done;
    thumb.querySelector(".badge").hidden = !each.is_done;
    const shown = `${each.revision} ${JSON.stringify(project.classes)}`;
    if (thumb.dataset.shown !== shown) {
      thumb.dataset.shown = shown;
      picture(url(each.name)).then(loaded => drawThumb(thumb.querySelector("canvas"), loaded, masks.get(each.name), project.classes), () => {});
    }
    return thumb;
  }));
}

function chosenThumb(each) {
  const thumb = element("button", { className: "thumb", dataset: { name: each.name } }, emptyThumb(project.size),
    element("span", { className: "bar" }, element("i")), element("span", { className: "badge" }, icon("check")));
  thumb.onclick = () => { open(each.name); thumb.blur(); };
  return thumb;
}

function showClasses() {
  const each = image(), total = project.size[0] * project.size[1];
  const row = (value, key) => {
    const share = !each ? 0 : value === IGNORE ? 1 - each.painted : (each.counts[value] || 0) / total;
    const swatch = element("span", { className: "swatch" });
    if (value === IGNORE) swatch.style.background = "repeating-conic-gradient(rgb(128 128 128 / 45%) 0 25%, transparent 0 50%) 0 0 / 9px 9px";
    else swatch.style.background = colour(value);
    const made = element("li", { aria: { selected: value === id, role: "option" }, dataset: { id: value } }, swatch,
      element("span", { className: "name", textContent: label(value) }), element("span", { className: "share", textContent: share ? percent(share) : "" }));
    if (value > 0 && value !== IGNORE) {
      const edit = element("button", { className: "quiet icon", title: "Rename, recolour, move, remove (F2)", aria: { label: `edit ${label(value)}` } }, icon("edit"));
      edit.onclick = event => { event.stopPropagation(); editClass(value); };
      made.append(edit);
    } else made.append(element("span", { className: "none" }));
    if (key) made.append(element("kbd", { textContent: key }));
    made.onclick = () => choose(value);
    made.ondblclick = () => editClass(value);
    return made;
  };
  const rows = project.classes.map((_, i) => row(i + 1, i < 9 ? String(i + 1) : ""));
  $("classes").replaceChildren(...rows, row(0, "0"), row(IGNORE, "U"));
}

function showFooter() {
  const each = image(), total = project.size[0] * project.size[1];
  document.querySelector("footer").style.visibility = each ? "visible" : "hidden";
  if (!each) return;
  const kind = each.label === null ? "" : `, class ${each.label}`;
  $("now-name").textContent = `Image ${project.images.indexOf(each) + 1} of ${project.images.length}${kind}`;
  $("now-share").textContent = `${percent(each.painted)} painted`;
  const ids = [...project.classes.keys()].map(i => i + 1).concat(0);
  $("composition").replaceChildren(...ids.filter(value => each.counts[value]).map(value =>
    element("i", { title: label(value), style: { width: `${100 * each.counts[value] / total}%`, background: colour(value) } })));
  $("done").replaceChildren(icon("check"), each.is_done ? "Done" : "Mark as done");
  $("done").classList.toggle("is-done", each.is_done);
  document.querySelector('[data-do="undo"]').disabled = !each.undo;
  document.querySelector('[data-do="redo"]').disabled = !each.redo;
}

function showSaved(state) {
  isLost = state === "lost";
  $("saved").dataset.state = state;
  $("saved").textContent = { saved: "Saved", saving: "Saving", lost: "Not connected" }[state];
  if (isLost) showLost("The painter does not answer, so painting waits. All but the stroke in hand is saved. If it was ended, start it again and open the address that it prints.");
  else $("lost").hidden = true;
}

function showLost(text) {
  $("lost").textContent = text;
  $("lost").hidden = false;
  isLost = true;
}

function showZoom() {
  $("zoom-shown").textContent = stage.view.scale >= 1 ? `${Math.round(10 * stage.view.scale) / 10} ×` : `${Math.round(100 * stage.view.scale)} %`;
}

function hover(point) {
  const [x, y] = point ? [Math.floor(point.x), Math.floor(point.y)] : [-1, -1];
  $("pixel").textContent = image() && isInside(x, y) ? `${label(masks.get(current)[y * stage.width + x])} · ${x}, ${y}` : "";
}

// --- the keyboard ---

const ACTIONS = {
  brush: { keys: ["B"], text: "Brush", run: () => setTool("brush") },
  eraser: { keys: ["E"], text: "Eraser: back to not painted", run: () => setTool("eraser") },
  polygon: { keys: ["P"], text: "Polygon: click its corners", run: () => setTool("polygon") },
  lasso: { keys: ["L"], text: "Lasso: draw round it", run: () => setTool("lasso") },
  fill: { keys: ["F"], text: "Fill up to painted borders", run: () => setTool("fill") },
  rest: { keys: ["R"], text: "Fill the rest with background", run: fillRest },
  hand: { keys: ["M"], text: "Move the picture", run: () => setTool("hand") },
  smaller: { keys: ["["], text: "Smaller brush", run: () => setSize(size - 1) },
  larger: { keys: ["]"], text: "Larger brush", run: () => setSize(size + 1) },
  undo: { keys: ["Ctrl+Z", "Z"], text: "Undo", run: () => history("undo") },
  redo: { keys: ["Ctrl+Shift+Z", "Y", "Ctrl+Y"], text: "Redo", run: () => history("redo") },
  clear: { keys: ["Shift+Delete"], text: "Clear the mask", run: clearMask },
  fainter: { keys: [","], text: "Fainter mask", run: () => setOpacity(stage.options.opacity - 0.1) },
  stronger: { keys: ["."], text: "Stronger mask", run: () => setOpacity(stage.options.opacity + 0.1) },
  smooth: { keys: ["S"], text: "Smooth picture, or its pixels", run: () => toggle("smooth") },
  lines: { keys: ["O"], text: "Outlines of classes", run: () => toggle("lines") },
  missing: { keys: ["G"], text: "Show gaps: what is not painted", run: () => toggle("missing") },
  keep: { keys: ["K"], text: "Keep paint: only gaps are painted", run: () => { keep = !keep; showTool(); } },
  "zoom-in": { keys: ["+", "="], text: "Zoom in", run: () => stage.zoom(1.25) },
  "zoom-out": { keys: ["-"], text: "Zoom out", run: () => stage.zoom(0.8) },
  fit: { keys: ["V", "Home"], text: "Whole picture", run: () => stage.fit() },
  "class-before": { keys: ["Q", "ArrowUp"], text: "Class before", run: () => chooseNext(-1) },
  "class-after": { keys: ["W", "ArrowDown"], text: "Class after", run: () => chooseNext(1) },
  "add-class": { keys: ["N"], text: "New class", run: () => editClass(null) },
  "edit-class": { keys: ["F2"], text: "Rename, recolour, remove class", run: () => editClass(id) },
  "class-up": { keys: ["Alt+ArrowUp"], text: "Class up", run: () => moveClass(-1) },
  "class-down": { keys: ["Alt+ArrowDown"], text: "Class down", run: () => moveClass(1) },
  previous: { keys: ["ArrowLeft", "PageUp"], text: "Image before", run: () => step(-1) },
  next: { keys: ["ArrowRight", "PageDown"], text: "Next image", run: () => step(1) },
  done: { keys: ["D"], text: "Mark as done, or not", run: markDone },
  gallery: { keys: ["A"], text: "Choose images", run: openGallery },
  remove: { keys: ["Delete"], text: "Remove this image", run: removeCurrent },
  learn: { keys: ["T"], text: "Preview: learn now", run: learn },
  start: { keys: ["X"], text: "Preview: take as a start", run: startHere },
  theme: { keys: ["Shift+T"], text: "Light, dark, automatic", run: nextTheme },
  help: { keys: ["?"], text: "These shortcuts", run: openShortcuts },
};
const GESTURES = [
  ["Classes", "1 … 9"], ["Background", "0"], ["Not painted", "U"], ["Hide the mask while held", "H"],
  ["Move the picture while held", "Space"], ["Zoom", "wheel", "pinch"], ["Pick the class", "Alt + click"],
  ["Erase", "right button", "pen eraser"], ["Straight line from the last stroke", "Shift + click"],
  ["Close the polygon", "Enter", "double click"], ["Drop the last corner", "Backspace"], ["Leave the polygon", "Esc"],
];
const BY_KEY = new Map(Object.values(ACTIONS).flatMap(action => action.keys.map(key => [key, action])));
const NAMES = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→" };

function openShortcuts() {
  const shown = key => key.replace(/Arrow\w+/, name => NAMES[name]).replaceAll("+", " + ").replace(/^ \+ $/, "+");
  showShortcuts([...Object.values(ACTIONS).map(({ text, keys }) => [text, ...keys.map(shown)]), ...GESTURES]);
}

function nextTheme() {
  const names = ["auto", "light", "dark"], name = names[(names.indexOf(localStorage.theme) + 1) % 3];
  setTheme(name);
  toast({ auto: "Light or dark as the system says", light: "Light", dark: "Dark" }[name]);
}

function keyName(event) {
  const isSign = event.key.length === 1 && !/[a-z]/i.test(event.key);
  const name = event.key.length === 1 ? event.key.toUpperCase() : event.key;
  return `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.altKey ? "Alt+" : ""}${event.shiftKey && !isSign ? "Shift+" : ""}${name}`;
}

addEventListener("keydown", event => {
  const target = event.target, isTyping = target.matches("input:not([type=range]), textarea");
  if (!project || isTyping || document.querySelector("dialog[open]")) return;
  const name = keyName(event);
  if (target.matches("input[type=range]") && name.startsWith("Arrow")) return;
  if (target.matches("button") && (name === "Enter" || name === " ")) return;
  if (stage.sketch.length && sketchKey(name)) { event.preventDefault(); return; }
  if (name === " " || name === "H") {
    if (name === "H") { stage.options.hidden = true; stage.draw(); }
    else { heldSpace = true; showTool(); }
    event.preventDefault();
    return;
  }
  if (/^[0-9]$/.test(name)) choose(Number(name));
  else if (name === "U") choose(IGNORE);
  else if (BY_KEY.has(name)) BY_KEY.get(name).run();
  else return;
  event.preventDefault();
});

addEventListener("keyup", event => {
  if (event.key === " ") { heldSpace = false; if (project) showTool(); }
  if (event.key.toUpperCase() === "H") { stage.options.hidden = false; stage.draw(); }
});

addEventListener("blur", () => { heldSpace = stage.options.hidden = false; if (project) showTool(); });

function sketchKey(name) {
  if (name === "Enter") closeSketch();
  else if (name === "Escape") abandonSketch();
  else if (name === "Backspace") { stage.sketch.pop(); stage.draw(); }
  else return false;
  return true;
}

// --- wiring of the page ---

$("stage").addEventListener("dblclick", () => { if (tool === "polygon") closeSketch(); });
$("place").addEventListener("dragover", event => event.preventDefault());
$("place").addEventListener("drop", event => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file) importMask(file);
});
$("size").addEventListener("input", () => setSize(Number($("size").value)));
$("opacity").addEventListener("input", () => setOpacity(Number($("opacity").value) / 100));
$("choose").addEventListener("click", openGallery);
$("theme").addEventListener("click", nextTheme);
$("help").addEventListener("click", openShortcuts);
$("more").addEventListener("click", () => changeGallery({ more: 24, again: [] }));
$("redraw").addEventListener("click", () => {
  const chosen = new Set(project.images.map(each => each.seed));
  changeGallery({ more: 0, again: project.gallery.filter(seed => !chosen.has(seed)) });
});
$("gallery").addEventListener("close", () => { server.forgetLoads(); showAll(); watch(); });
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
addEventListener("beforeunload", event => { if (server.waiting || stroke) event.preventDefault(); });

begin().catch(error => showLost(error.message));
