// Drawing of detections over their image on a canvas, in the class colors of van.visualization.drawing.
// Boxes are x1, y1, x2, y2 in pixels of the image; masks are COCO's compressed run lengths, in column-major order.

const BASE_COLORS = [[230, 159, 0], [51, 34, 136], [86, 180, 233], [17, 119, 51], [136, 34, 85], [221, 204, 119],
  [170, 68, 153], [238, 102, 119]];
const CARD_SIZE = { minSide: 640, maxSide: 1600 };
export const LARGE_SIZE = { minSide: 1600, maxSide: 3200 };

function luminance(color) {
  const linear = color.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

// Whether black has more contrast to the color than white.
function isBright(color) {
  return luminance(color) + 0.05 >= Math.sqrt(1.05 * 0.05);
}

export function textColor(color) {
  return isBright(color) ? "#000" : "#fff";
}

// Van der Corput sequence from -1 to 1: 0, then numbers far from the previous ones.
function lowDiscrepancy(number) {
  let value = 0, step = 0.5;
  for (number += 1; number; number >>= 1, step /= 2) value += step * (number & 1);
  return 2 * value - 1;
}

export function classColor(index) {
  const base = BASE_COLORS[index % BASE_COLORS.length];
  const level = lowDiscrepancy(Math.floor(index / BASE_COLORS.length)) * (isBright(base) ? 1 : -1);
  const [toward, amount] = level > 0 ? [255, 0.65 * level] : [0, -0.6 * level];
  return base.map((value) => Math.round(value + (toward - value) * amount));
}

export function cssColor(color, alpha = 1) {
  return `rgb(${color.join(" ")} / ${alpha})`;
}

// Lengths of the runs, of background and mask in turn, in column-major order.
export function decodeRunLengths(counts) {
  const runs = [];
  for (let at = 0; at < counts.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
      more = (bits & 32) !== 0;
      if (!more && bits & 16) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

function maskCanvas(mask, color) {
  const [rows, columns] = mask.size;
  const isSet = new Uint8Array(rows * columns);
  let start = 0;
  decodeRunLengths(mask.counts).forEach((length, number) => {
    if (number % 2) isSet.fill(1, start, start + length);
    start += length;
  });
  const canvas = new OffscreenCanvas(columns, rows);
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  for (let x = 0; x < columns; x++) {
    for (let y = 0; y < rows; y++) {
      const here = x * rows + y;
      if (!isSet[here]) continue;
      const isEdge = x === 0 || y === 0 || x === columns - 1 || y === rows - 1 ||
        !isSet[here - 1] || !isSet[here + 1] || !isSet[here - rows] || !isSet[here + rows];
      pixels.data.set([...color, isEdge ? 255 : 115], 4 * (y * columns + x));
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Draw the image at a size with readable labels; returns canvas pixels per image pixel.
function drawImage(canvas, bitmap, { minSide, maxSide }) {
  const longest = Math.max(bitmap.width, bitmap.height);
  const scale = longest < minSide ? Math.ceil(minSide / longest) : Math.min(1, maxSide / longest);
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = scale < 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return scale;
}

const overlaps = ([left, top, right, bottom], [x1, y1, x2, y2]) => left < x2 && x1 < right && top < y2 && y1 < bottom;

// The first free place for a label at a box: above it, in it, below it, to its right. A required label, to whose number
// the table refers, is also searched for in growing squares around the box.
function placeLabel([x1, y1, x2, y2], [width, height], canvas, taken, isRequired) {
  const clamp = (value, most) => Math.max(0, Math.min(value, most));
  const corners = [[x1, y1 - height], [x1, y1], [x1, y2], [x2 - width, y1 - height], [x2 - width, y2 - height], [x2, y1],
    [x1, y2 - height], [x2 - width, y1], [x1 - width, y1]];
  const inside = ([x, y]) => [clamp(x, canvas.width - width), clamp(y, canvas.height - height)];
  const isFree = ([x, y]) => !taken.some((other) => overlaps([x, y, x + width, y + height], other));
  const free = corners.map(inside).find(isFree);
  if (free || !isRequired) return free ?? null;
  for (let ring = 1; ring <= 12; ring++) {
    for (let row = -ring; row <= ring; row++) {
      for (let column = -ring; column <= ring; column++) {
        const place = inside([x1 + 0.5 * column * width, y1 + 0.5 * row * height]);
        if (Math.max(Math.abs(row), Math.abs(column)) === ring && isFree(place)) return place;
      }
    }
  }
  return inside(corners[0]);
}

function drawLabels(context, detections, selected, scale, font, withText) {
  context.textBaseline = "middle";
  context.textAlign = "center";
  const taken = [];
  for (const detection of detections) {
    const score = `${Math.round(100 * detection.score)} %`;
    const text = withText ? `${detection.number}  ${detection.label} ${score}` : String(detection.number);
    context.font = `700 ${font}px system-ui, sans-serif`;
    const height = Math.round(1.45 * font);
    const size = [Math.min(context.canvas.width, Math.max(height, context.measureText(text).width + 0.7 * font)), height];
    const box = detection.box.map((side) => side * scale);
    const place = placeLabel(box, size, context.canvas, taken, !withText || detection === selected);
    if (!place) continue;
    taken.push([...place, place[0] + size[0], place[1] + size[1]]);
    const color = classColor(detection.index);
    context.globalAlpha = selected && detection !== selected ? 0.35 : 1;
    context.fillStyle = cssColor(color);
    context.beginPath();
    context.roundRect(...place, ...size, 0.3 * font);
    context.fill();
    context.lineWidth = Math.max(1, font / 14);
    context.strokeStyle = textColor(color);
    context.stroke();
    context.fillStyle = textColor(color);
    context.fillText(text, place[0] + size[0] / 2, place[1] + size[1] / 2 + 0.05 * font, size[0] - 0.5 * font);
  }
  context.globalAlpha = 1;
}

function drawBox(context, detection, scale, line) {
  const color = classColor(detection.index);
  const [x1, y1, x2, y2] = detection.box.map((side) => side * scale);
  const box = [x1, y1, Math.max(line, x2 - x1), Math.max(line, y2 - y1)];
  context.lineWidth = line + 2;
  context.strokeStyle = textColor(color);
  context.strokeRect(...box);
  context.lineWidth = line;
  context.strokeStyle = cssColor(color);
  context.strokeRect(...box);
}

// Draw the image with numbered detections, the best on top. A selected detection is emphasized and the others fade;
// `withText` adds class names and scores to the numbers.
export function drawDetections(canvas, bitmap, detections, { selected = null, withText = false, size = CARD_SIZE } = {}) {
  const scale = drawImage(canvas, bitmap, size);
  const context = canvas.getContext("2d");
  const longest = Math.max(canvas.width, canvas.height);
  const font = Math.max(14, Math.round((withText ? 0.022 : 0.036) * longest));
  const line = Math.max(2, Math.round(longest / 240));
  const bottomUp = detections.filter((detection) => detection !== selected).reverse();
  if (selected) bottomUp.push(selected);
  context.imageSmoothingEnabled = false;
  for (const detection of bottomUp) {
    if (!detection.mask) continue;
    context.globalAlpha = selected && detection !== selected ? 0.2 : 1;
    context.drawImage(maskCanvas(detection.mask, classColor(detection.index)), 0, 0, canvas.width, canvas.height);
  }
  for (const detection of bottomUp) {
    context.globalAlpha = selected && detection !== selected ? 0.3 : 1;
    drawBox(context, detection, scale, detection === selected ? 2 * line : line);
  }
  drawLabels(context, bottomUp.reverse(), selected, scale, font, withText);
}
