// Everything but the runtime: it reads the metadata of an exported file, prepares an image as the network's input, and finds
// the most probable classes.

// Pillow's bilinear and bicubic filters: the reach of each, and its value at a distance within the reach.
const FILTERS = {
  bilinear: [1, (x) => 1 - x],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : (((x - 5) * x + 8) * x - 4) * -0.5)],
};
const BITS = 22; // Pillow multiplies 8-bit pixels by weights in fixed point
const RATIO = 64; // of an image with a longer side only the middle counts, so that resizing doesn't make it huge
const LARGEST = 16384; // pixels of a side of the network's input
const KEYS = ['input_size', 'mean', 'std', 'crop_pct', 'class_names', 'num_classes'];

/**
 * The metadata of an ONNX file's bytes: how to prepare an image and what the classes are called.
 * Throws an Error with a one-line message for bytes that are no such file.
 */
export function readFacts(bytes) {
  const text = new TextDecoder();
  const strings = new Map();
  for (const [field, entry] of messages(bytes)) {
    if (field !== 14) continue; // ModelProto.metadata_props; a pair's key is its field 1, its value field 2
    const pair = new Map(messages(entry));
    strings.set(text.decode(pair.get(1)), text.decode(pair.get(2)));
  }
  const read = (key) => {
    try {
      return JSON.parse(strings.get(key) ?? 'null');
    } catch {
      throw new Error(`its metadata are damaged (${key})`);
    }
  };
  const [inputSize, mean, std, cropPct, classNames, numClasses] = KEYS.map(read);
  const [interpolation, cropMode, tag] = ['interpolation', 'crop_mode', 'tag'].map((key) => strings.get(key));
  const numbers = (list, length, good) => Array.isArray(list) && list.length === length && list.every(good);
  const isSide = (value) => Number.isInteger(value) && value > 0 && value <= LARGEST;
  if (!numbers(inputSize, 3, isSide)) throw new Error('it has no metadata of an image size; `nf-zoo export` writes such a file');
  if (![mean, std].every((list) => numbers(list, inputSize[0], Number.isFinite)) || std.includes(0)) {
    throw new Error('its metadata are damaged (mean, std)');
  }
  if (![1, 3].includes(inputSize[0])) throw new Error(`it takes ${inputSize[0]} channels; image files give 3 or 1`);
  if (!(cropPct > 0.01 && cropPct <= 1)) throw new Error('its metadata are damaged (crop_pct)');
  if (classNames !== null && !numbers(classNames, classNames.length, (name) => typeof name === 'string')) {
    throw new Error('its metadata are damaged (class_names)');
  }
  if (!Object.hasOwn(FILTERS, interpolation)) {
    throw new Error(`interpolation ${printable(interpolation)} is not one of ${Object.keys(FILTERS).join(', ')}`);
  }
  if (cropMode !== 'center') throw new Error(`crop_mode ${printable(cropMode)} is not supported, only center`);
  const name = strings.get('model') ?? 'a network';
  const model = printable(tag ? `${name}.${tag}` : name); // whose weights they are, not the architecture alone
  return { model, interpolation, inputSize, mean, std, cropPct, classNames: classNames?.map(printable) ?? null, numClasses };
}

/** Text from a file without control characters, which could move a terminal's cursor. */
const printable = (text) => String(text).replace(/\p{C}/gu, '?');

/** The fields of a protobuf message that are messages or strings, as [number, bytes]. Throws at damaged bytes. */
function* messages(bytes) {
  let at = 0;
  const damaged = () => new Error('it is no ONNX file, or a damaged one');
  const varint = () => {
    for (let value = 0, unit = 1, i = 0; i < 10; i++, unit *= 128) {
      if (at >= bytes.length) throw damaged();
      const byte = bytes[at++];
      value += (byte & 127) * unit;
      if (byte < 128) return value;
    }
    throw damaged();
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    let length = 0;
    if (kind === 0) varint();
    else if (kind === 1 || kind === 5) length = kind === 1 ? 8 : 4;
    else if (kind === 2) length = varint();
    else throw damaged();
    if (length > bytes.length - at) throw damaged();
    if (kind === 2) yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
    at += length;
  }
}

/**
 * The network's input, [channels, height, width], from an image's RGBA bytes: over white, resized and cropped, to the
 * last bit as Pillow, torchvision and timm do it.
 */
export function prepare(image, { inputSize, mean, std, cropPct, interpolation }) {
  const { data, width, height } = middle(image);
  const [channels, ...size] = inputSize;
  const goal = size.map((side) => Math.floor(side / cropPct));
  const sides = [height, width];
  const ratio = Math.min(...sides.map((side, i) => side / goal[i]));
  const whole = sides.map((side) =>
    goal[0] === goal[1] ? Math.floor((goal[0] * side) / Math.min(...sides)) : roundHalfEven(side / ratio),
  );
  const [rows, columns] = sides.map((side, i) => {
    const start = roundHalfEven((whole[i] - size[i]) / 2);
    return weights(side, whole[i], FILTERS[interpolation]).slice(start, start + size[i]);
  });
  const across = (pixels) => resample(pixels, width, channels, columns);
  const down = (pixels) => resample(pixels, height, pixels.length / height, rows);
  // Pillow 13 resizes the height first if it shrinks by far more pixels. Each step rounds, so the order matters.
  const tall = height - whole[0] > Math.max(0, 2 * (width - whole[1]));
  let pixels = opaque(data, channels);
  pixels = tall ? across(down(pixels)) : down(across(pixels));
  const input = new Float32Array(pixels.length);
  const area = size[0] * size[1];
  for (let i = 0; i < pixels.length; i++) {
    const channel = i % channels;
    input[channel * area + (i - channel) / channels] = (pixels[i] / 255 - mean[channel]) / std[channel];
  }
  return input;
}

/** The middle of a very long image: all that the crop can need of it. */
function middle({ data, width, height }) {
  const side = RATIO * Math.min(width, height);
  const [left, top] = [width, height].map((length) => Math.floor(Math.max(0, length - side) / 2));
  if (!left && !top) return { data, width, height };
  const [columns, rows] = [width - 2 * left, height - 2 * top];
  const cut = new Uint8ClampedArray(4 * columns * rows);
  for (let row = 0; row < rows; row++) {
    const start = 4 * ((top + row) * width + left);
    cut.set(data.subarray(start, start + 4 * columns), 4 * row * columns);
  }
  return { data: cut, width: columns, height: rows };
}

function opaque(rgba, channels) {
  const out = new Uint8Array((rgba.length / 4) * channels);
  for (let i = 0, o = 0; i < rgba.length; i += 4) {
    const alpha = rgba[i + 3];
    const [r, g, b] = [0, 1, 2].map((c) => Math.round((rgba[i + c] * alpha + 255 * (255 - alpha)) / 255));
    if (channels === 1) out[o++] = (r * 19595 + g * 38470 + b * 7471 + 32768) >> 16;
    else [out[o++], out[o++], out[o++]] = [r, g, b];
  }
  return out;
}

/** For each new pixel, the first old pixel that it depends on, and the weights of that pixel and the next ones. */
function weights(from, to, [reach, filter]) {
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach * stretch + 0.5));
    const end = Math.min(from, Math.trunc(center + reach * stretch + 0.5));
    const values = Array.from({ length: end - start }, (_, j) => {
      const distance = Math.abs(start + j - center + 0.5) / stretch;
      return distance < reach ? filter(distance) : 0;
    });
    const sum = values.reduce((a, b) => a + b);
    return [start, values.map((v) => Math.trunc((v / sum) * 2 ** BITS + Math.sign(v) / 2))];
  });
}

/** Resamples the middle one of three dimensions. */
function resample(pixels, length, inner, weighted) {
  const outer = pixels.length / (length * inner);
  const out = new Uint8ClampedArray(outer * weighted.length * inner);
  let o = 0;
  for (let line = 0; line < outer; line++) {
    for (const [start, row] of weighted) {
      const from = (line * length + start) * inner;
      for (let i = from; i < from + inner; i++) {
        let sum = 2 ** (BITS - 1);
        for (let k = 0; k < row.length; k++) sum += pixels[i + k * inner] * row[k];
        out[o++] = sum >> BITS;
      }
    }
  }
  return out;
}

const roundHalfEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** The most probable classes of one image's logits, as [name, probability]. */
export function best(logits, classNames, top = 5) {
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const odds = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = odds.reduce((a, b) => a + b);
  return odds
    .map((value, i) => [classNames?.[i] ?? String(i), value / sum])
    .sort((a, b) => b[1] - a[1])
    .slice(0, top);
}
