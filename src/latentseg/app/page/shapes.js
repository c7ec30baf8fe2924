// Which pixels a shape covers. Pixel (x, y) has its centre at (x + 0.5, y + 0.5); a pixel's index
// is y * width + x. Everything here is a pure function.

export const IGNORE = 255;

// Pixels whose centre is within `diameter` / 2 of the line from `a` to `b`, and those under the ends.
export function line(a, b, diameter, width, height) {
  const radius = diameter / 2, found = [];
  const left = Math.max(0, Math.floor(Math.min(a.x, b.x) - radius - 1));
  const right = Math.min(width - 1, Math.ceil(Math.max(a.x, b.x) + radius));
  const top = Math.max(0, Math.floor(Math.min(a.y, b.y) - radius - 1));
  const bottom = Math.min(height - 1, Math.ceil(Math.max(a.y, b.y) + radius));
  const dx = b.x - a.x, dy = b.y - a.y, length2 = dx * dx + dy * dy;
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const px = x + 0.5 - a.x, py = y + 0.5 - a.y;
      const t = length2 ? Math.min(1, Math.max(0, (px * dx + py * dy) / length2)) : 0;
      const ex = px - t * dx, ey = py - t * dy;
      if (ex * ex + ey * ey <= radius * radius) found.push(y * width + x);
    }
  }
  for (const end of [a, b]) {
    const x = Math.floor(end.x), y = Math.floor(end.y);
    if (x >= 0 && y >= 0 && x < width && y < height) found.push(y * width + x);
  }
  return found;
}

// Pixels whose centre is inside the polygon, by the even-odd rule.
export function polygon(points, width, height) {
  const found = [];
  const ys = points.map(p => p.y);
  const top = Math.max(0, Math.floor(Math.min(...ys))), bottom = Math.min(height - 1, Math.ceil(Math.max(...ys)));
  for (let y = top; y <= bottom; y++) {
    const crossings = [], centre = y + 0.5;
    points.forEach((a, i) => {
      const b = points[(i + 1) % points.length];
      if ((a.y <= centre) !== (b.y <= centre)) crossings.push(a.x + (centre - a.y) / (b.y - a.y) * (b.x - a.x));
    });
    crossings.sort((one, other) => one - other);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const from = Math.max(0, Math.ceil(crossings[i] - 0.5)), to = Math.min(width - 1, Math.ceil(crossings[i + 1] - 0.5) - 1);
      for (let x = from; x <= to; x++) found.push(y * width + x);
    }
  }
  return found;
}

// The connected pixels (by their sides) that have the same id as pixel (x, y).
export function region(mask, width, height, x, y) {
  const start = y * width + x, id = mask[start], seen = new Uint8Array(mask.length), found = [start];
  seen[start] = 1;
  for (let i = 0; i < found.length; i++) {
    const at = found[i], column = at % width;
    for (const next of [column > 0 ? at - 1 : -1, column < width - 1 ? at + 1 : -1, at - width, at + width]) {
      if (next >= 0 && next < mask.length && !seen[next] && mask[next] === id) {
        seen[next] = 1;
        found.push(next);
      }
    }
  }
  return found;
}

// Indices as runs [start, length, id].
export function toRuns(indices, id) {
  const sorted = Uint32Array.from(indices).sort(), runs = [];
  for (const index of sorted) {
    const last = runs[runs.length - 1];
    if (last && last[0] + last[1] === index) last[1]++;
    else runs.push([index, 1, id]);
  }
  return runs;
}

// The sides between pixels of different ids, as one path of long lines in pixels of the picture.
export function outlines(mask, width, height) {
  const path = new Path2D();
  for (let y = 1; y < height; y++) {
    for (let x = 0, from = -1; x <= width; x++) {
      const differs = x < width && mask[y * width + x] !== mask[(y - 1) * width + x];
      if (differs && from < 0) from = x;
      if (!differs && from >= 0) { path.moveTo(from, y); path.lineTo(x, y); from = -1; }
    }
  }
  for (let x = 1; x < width; x++) {
    for (let y = 0, from = -1; y <= height; y++) {
      const differs = y < height && mask[y * width + x] !== mask[y * width + x - 1];
      if (differs && from < 0) from = y;
      if (!differs && from >= 0) { path.moveTo(x, from); path.lineTo(x, y); from = -1; }
    }
  }
  return path;
}

export function rgb(colour) {
  return [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
}

// Colours of the ids as RGBA bytes, 256 x 4; what is not painted is transparent.
export function palette(classes) {
  const table = new Uint8ClampedArray(1024);
  classes.forEach((part, i) => table.set([...rgb(part.colour), 255], 4 * (i + 1)));
  table.set([0, 0, 0, 255], 0);
  return table;
}

export function paintOver(context, mask, table, width, height, opacity) {
  const layer = new OffscreenCanvas(width, height), pixels = new ImageData(width, height);
  for (let i = 0; i < mask.length; i++) pixels.data.set(table.subarray(4 * mask[i], 4 * mask[i] + 4), 4 * i);
  layer.getContext("2d").putImageData(pixels, 0, 0);
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = false;
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
  context.globalAlpha = 1;
}
