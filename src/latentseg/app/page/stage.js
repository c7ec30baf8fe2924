// The stage: the picture with its mask, zoom and pan, and the pointer as strokes in pixels of the picture.

import { IGNORE, line, outlines, palette } from "./shapes.js";

const MARGIN_PX = 28;
const BIG = 300_000; // pixels; outlines of larger pictures are drawn anew only between strokes

export class Stage {
  // `listener`: press(point, event), drag(points, event), release(), cancel(), hover(point) and, for
  // polygons, click and double click, which arrive as press with event.detail.
  constructor(canvas, listener) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.listener = listener;
    this.view = { scale: 1, x: 0, y: 0 };
    this.options = { opacity: 0.55, smooth: true, lines: true, missing: false, hidden: false };
    this.brush = { diameter: 1, colour: "#000000", shown: true };
    this.sketch = []; // corners of the polygon or lasso in the making
    this.pointers = new Map();
    this.picture = null;
    this.mode = "paint";
    this.isFitted = true;
    new ResizeObserver(() => { if (this.isFitted) this.fit(); this.draw(); }).observe(canvas);
    canvas.addEventListener("pointerdown", event => this.down(event));
    canvas.addEventListener("pointermove", event => this.move(event));
    canvas.addEventListener("pointerup", event => this.up(event));
    canvas.addEventListener("pointercancel", event => this.up(event, true));
    canvas.addEventListener("pointerleave", () => { this.hovered = null; this.listener.hover(null); this.draw(); });
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("wheel", event => this.wheel(event), { passive: false });
  }

  show(picture, mask, classes) {
    const isOther = !this.picture || picture.width !== this.picture.width || picture.height !== this.picture.height;
    this.picture = picture;
    this.width = picture.width;
    this.height = picture.height;
    this.mask = mask;
    this.layer = new OffscreenCanvas(this.width, this.height);
    this.pixels = new ImageData(this.width, this.height);
    this.setClasses(classes);
    if (isOther || this.isFitted) this.fit();
  }

  setClasses(classes) {
    this.table = palette(classes);
    if (this.mask) this.refresh();
  }

  // Takes over changed pixels of the mask: all of them, or those of `indices`.
  refresh(indices = null) {
    if (!this.mask) return;
    const { missing } = this.options, data = this.pixels.data, width = this.width;
    let top = this.height, bottom = -1;
    const set = i => {
      const id = this.mask[i], y = Math.floor(i / width);
      if (id === IGNORE && missing) data.set([255, 60, 172, (i % width + y) % 2 ? 255 : 90], 4 * i);
      else data.set(this.table.subarray(4 * id, 4 * id + 4), 4 * i);
      if (y < top) top = y;
      if (y > bottom) bottom = y;
    };
    if (indices) indices.forEach(set);
    else for (let i = 0; i < this.mask.length; i++) set(i);
    if (bottom >= top) this.layer.getContext("2d").putImageData(this.pixels, 0, 0, 0, top, width, bottom - top + 1);
    if (!this.stroke || this.mask.length <= BIG) this.path = null;
    this.draw();
  }

  // --- zoom and pan ---

  fit() {
    if (!this.picture) return;
    const { clientWidth, clientHeight } = this.canvas;
    const scale = Math.min((clientWidth - 2 * MARGIN_PX) / this.width, (clientHeight - 2 * MARGIN_PX) / this.height);
    // Whole screen pixels per pixel keep small pictures crisp and even.
    const dpr = devicePixelRatio, whole = Math.floor(scale * dpr) / dpr;
    this.view.scale = scale * dpr >= 4 ? whole : Math.max(scale, 0.05);
    this.view.x = Math.round((clientWidth - this.width * this.view.scale) / 2);
    this.view.y = Math.round((clientHeight - this.height * this.view.scale) / 2);
    this.isFitted = true;
    this.listener.zoomed();
    this.draw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    if (!this.picture) return;
    const scale = Math.min(120, Math.max(0.05, this.view.scale * factor)), ratio = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * ratio, y: y - (y - this.view.y) * ratio };
    this.isFitted = false;
    this.listener.zoomed();
    this.draw();
  }

  pan(dx, dy) {
    this.view.x += dx;
    this.view.y += dy;
    this.isFitted = false;
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    if (event.shiftKey) this.pan(-event.deltaY - event.deltaX, 0);
    else this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), event.clientX - box.left, event.clientY - box.top);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return {
      x: (event.clientX - box.left - this.view.x) / this.view.scale,
      y: (event.clientY - box.top - this.view.y) / this.view.scale,
    };
  }

  // --- the pointer ---

  down(event) {
    if (!this.picture) return;
    this.canvas.focus({ preventScroll: true });
    try { this.canvas.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone already */ }
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, type: event.pointerType });
    const fingers = [...this.pointers.values()].filter(pointer => pointer.type === "touch");
    if (fingers.length > 1) {
      if (this.stroke) { this.stroke = null; this.listener.cancel(); }
      this.pinch = true;
      return;
    }
    if (event.button === 1 || this.mode === "pan") {
      this.panning = true;
      this.canvas.classList.add("panning");
      return;
    }
    this.stroke = event.pointerId;
    this.listener.press(this.point(event), event);
    this.draw();
  }

  move(event) {
    if (!this.picture) return;
    const before = this.pointers.get(event.pointerId), now = { x: event.clientX, y: event.clientY };
    this.hovered = this.point(event);
    this.listener.hover(this.hovered);
    if (before && this.pinch) this.spread(event.pointerId, before, now);
    else if (before && this.panning) this.pan(now.x - before.x, now.y - before.y);
    else if (this.stroke === event.pointerId) {
      const all = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      this.listener.drag((all.length ? all : [event]).map(each => this.point(each)), event);
    }
    if (before) Object.assign(before, now);
    this.draw();
  }

  up(event, isCancelled = false) {
    this.pointers.delete(event.pointerId);
    if (this.pinch && !this.pointers.size) this.pinch = false;
    this.panning = false;
    this.canvas.classList.remove("panning");
    if (this.stroke === event.pointerId) {
      this.stroke = null;
      if (isCancelled) this.listener.cancel();
      else this.listener.release();
      if (this.mask.length > BIG) this.path = null;
    }
    this.draw();
  }

  spread(id, before, now) {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const box = this.canvas.getBoundingClientRect();
    const distance = p => Math.hypot(p.x - other.x, p.y - other.y) || 1;
    this.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    this.zoom(distance(now) / distance(before), (now.x + other.x) / 2 - box.left, (now.y + other.y) / 2 - box.top);
  }

  // --- drawing ---

  draw() {
    if (this.isAsked) return;
    this.isAsked = true;
    requestAnimationFrame(() => { this.isAsked = false; this.paint(); });
  }

  paint() {
    const { canvas, context, view, options } = this, dpr = devicePixelRatio;
    const width = Math.round(canvas.clientWidth * dpr), height = Math.round(canvas.clientHeight * dpr);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.picture) return;
    context.setTransform(dpr * view.scale, 0, 0, dpr * view.scale, dpr * view.x, dpr * view.y);
    context.imageSmoothingEnabled = options.smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.picture, 0, 0);
    context.imageSmoothingEnabled = view.scale * dpr < 1;
    if (!options.hidden) {
      context.globalAlpha = options.opacity;
      context.drawImage(this.layer, 0, 0);
      context.globalAlpha = 1;
      if (options.lines) this.drawOutlines();
    }
    this.drawSketch();
    if (this.hovered && this.brush.shown && !this.panning && !this.pinch) this.drawBrush();
  }

  drawOutlines() {
    const { context, view } = this;
    if (view.scale < 1.5) return;
    this.path ||= outlines(this.mask, this.width, this.height);
    for (const [colour, thick] of [["rgb(0 0 0 / 45%)", 2.4], ["rgb(255 255 255 / 90%)", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick / view.scale;
      context.lineCap = "square";
      context.stroke(this.path);
    }
  }

  drawBrush() {
    const { context, hovered, brush, view } = this;
    const covered = line(hovered, hovered, brush.diameter, this.width, this.height);
    if (view.scale >= 3 && covered.length < 4000) {
      context.globalAlpha = 0.55;
      context.fillStyle = brush.colour;
      for (const i of new Set(covered)) context.fillRect(i % this.width, Math.floor(i / this.width), 1, 1);
      context.globalAlpha = 1;
    }
    for (const [colour, thick] of [["rgb(0 0 0 / 60%)", 3], ["#ffffff", 1.4]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick / view.scale;
      context.beginPath();
      context.arc(hovered.x, hovered.y, Math.max(brush.diameter / 2, 1.5 / view.scale), 0, 2 * Math.PI);
      context.stroke();
    }
  }

  drawSketch() {
    const { context, sketch, view } = this;
    if (!sketch.length) return;
    const corners = this.hovered && this.isPolygon ? [...sketch, this.hovered] : sketch;
    context.beginPath();
    corners.forEach((p, i) => (i ? context.lineTo(p.x, p.y) : context.moveTo(p.x, p.y)));
    context.globalAlpha = 0.35;
    context.fillStyle = this.brush.colour;
    context.fill();
    context.globalAlpha = 1;
    context.lineJoin = "round";
    for (const [colour, thick] of [["rgb(0 0 0 / 60%)", 3.4], ["#ffffff", 1.6]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick / view.scale;
      context.stroke();
    }
    if (!this.isPolygon) return;
    for (const [i, p] of sketch.entries()) {
      context.beginPath();
      context.arc(p.x, p.y, (i ? 4 : 6) / view.scale, 0, 2 * Math.PI);
      context.fillStyle = i ? "#ffffff" : this.brush.colour;
      context.fill();
      context.strokeStyle = i ? "rgb(0 0 0 / 60%)" : "#ffffff";
      context.lineWidth = 1.6 / view.scale;
      context.stroke();
    }
  }
}
