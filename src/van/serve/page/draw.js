// What an answer looks like over its picture: boxes and outlines on a canvas, in the colours that van.results.drawing
// gives the classes. Boxes are x1, y1, x2, y2 in pixels of the picture; masks are COCO's compressed run lengths, which
// run down the columns.

const BASE = [[230, 159, 0], [51, 34, 136], [86, 180, 233], [17, 119, 51], [136, 34, 85], [221, 204, 119],
  [170, 68, 153], [238, 102, 119]];
const LEAST_PX = 480, MOST_PX = 1280;

function luminance(colour) {
  const linear = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

function isBright(colour) {
  return luminance(colour) + 0.05 >= Math.sqrt(1.05 * 0.05);
}

// 0, then numbers between -1 and 1 that keep away from those before.
function spread(number) {
  let value = 0, step = 0.5;
  for (number += 1; number; number >>= 1, step /= 2) value += step * (number & 1);
  return 2 * value - 1;
}

export function classColour(index) {
  const base = BASE[index % BASE.length];
  const level = spread(Math.floor(index / BASE.length)) * (isBright(base) ? 1 : -1);
  const [toward, share] = level > 0 ? [255, 0.65 * level] : [0, -0.6 * level];
  return base.map((value) => Math.round(value + (toward - value) * share));
}

export function cssColour(colour, alpha = 1) {
  return `rgb(${colour.join(" ")} / ${alpha})`;
}

// Lengths of the runs, not set and set in turn, down the columns.
export function runsOf(counts) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const part = counts.charCodeAt(at++) - 48;
      value |= (part & 31) << shift;
      shift += 5;
      more = (part & 32) !== 0;
      if (!more && part & 16) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

function maskPicture(mask, colour) {
  const [rows, columns] = mask.size;
  const set = new Uint8Array(rows * columns);
  let place = 0;
  runsOf(mask.counts).forEach((length, number) => {
    if (number % 2) set.fill(1, place, place + length);
    place += length;
  });
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  for (let x = 0; x < columns; x++) {
    for (let y = 0; y < rows; y++) {
      const here = x * rows + y;
      if (!set[here]) continue;
      const edge = x === 0 || y === 0 || x === columns - 1 || y === rows - 1 ||
        !set[here - 1] || !set[here + 1] || !set[here - rows] || !set[here + rows];
      pixels.data.set([...colour, edge ? 255 : 115], 4 * (y * columns + x));
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The picture at a size that can be drawn on; returns pixels of the canvas for each of the picture.
function prepare(canvas, bitmap) {
  const longest = Math.max(bitmap.width, bitmap.height);
  const scale = longest < LEAST_PX ? Math.ceil(LEAST_PX / longest) : Math.min(1, MOST_PX / longest);
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return scale;
}

// The first place at a box that no better thing's label has taken, or null: above it, in it, below it, to its right.
function placeFor(box, size, room, taken) {
  const [x1, y1, x2, y2] = box, [width, height] = size;
  const within = (value, most) => Math.max(0, Math.min(value, most));
  const places = [[x1, y1 - height], [x1, y1], [x1, y2], [x2 - width, y1 - height], [x2 - width, y2 - height], [x2, y1]];
  for (const [x, y] of places) {
    const left = within(x, room.width - width), top = within(y, room.height - height);
    if (!taken.some(([l, t, r, b]) => left < r && l < left + width && top < b && t < top + height)) return [left, top];
  }
  return null;
}

function drawLabels(context, things, scale, font) {
  context.font = `600 ${font}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const taken = [];
  for (const thing of things) {
    const text = `${thing.label} ${Math.round(100 * thing.score)} %`;
    const size = [Math.min(context.canvas.width, context.measureText(text).width + 0.7 * font), Math.round(1.45 * font)];
    const place = placeFor(thing.box.map((side) => side * scale), size, context.canvas, taken);
    if (!place) continue;
    taken.push([...place, place[0] + size[0], place[1] + size[1]]);
    context.fillStyle = cssColour(classColour(thing.index));
    context.fillRect(...place, ...size);
    context.fillStyle = isBright(classColour(thing.index)) ? "#000" : "#fff";
    context.fillText(text, place[0] + 0.35 * font, place[1] + size[1] / 2, size[0] - 0.7 * font);
  }
}

// The picture with its things, the best on top; one of them alone where it is chosen.
export function drawThings(canvas, bitmap, things, chosen = null) {
  const scale = prepare(canvas, bitmap);
  const context = canvas.getContext("2d");
  const font = Math.max(13, Math.round(0.033 * Math.max(canvas.width, canvas.height)));
  const line = Math.max(2, Math.round(font / 5));
  const shown = (chosen === null ? things : [chosen]).slice().reverse();
  context.imageSmoothingEnabled = false;
  for (const thing of shown) {
    const colour = classColour(thing.index);
    if (thing.mask) context.drawImage(maskPicture(thing.mask, colour), 0, 0, canvas.width, canvas.height);
  }
  for (const thing of shown) {
    const [x1, y1, x2, y2] = thing.box.map((side) => side * scale);
    const box = [x1, y1, Math.max(line, x2 - x1), Math.max(line, y2 - y1)];
    context.lineWidth = line + 2;
    context.strokeStyle = isBright(classColour(thing.index)) ? "#000" : "#fff";
    context.strokeRect(...box);
    context.lineWidth = line;
    context.strokeStyle = cssColour(classColour(thing.index));
    context.strokeRect(...box);
  }
  drawLabels(context, shown.reverse(), scale, font);
}
