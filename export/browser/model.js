// All but the runtime: what an exported file says of itself, an image as the network's input, its most probable classes.

// What Pillow calls bilinear and bicubic: how far the filter reaches, and its value at a distance within.
const FILTERS = {
  bilinear: [1, (x) => 1 - x],
  bicubic: [2, (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : (((x - 5) * x + 8) * x - 4) * -0.5)],
};
const BITS = 22; // Pillow weighs 8-bit pixels in fixed point

/** The metadata of an ONNX file's bytes. */
export function readFacts(bytes) {
  const text = new TextDecoder();
  const strings = {};
  for (const [field, entry] of messages(bytes)) {
    if (field !== 14) continue; // ModelProto.metadata_props; a pair's key is its field 1, its value field 2
    const pair = Object.fromEntries(messages(entry));
    strings[text.decode(pair[1])] = text.decode(pair[2]);
  }
  const { interpolation, crop_mode } = strings;
  if (!FILTERS[interpolation]) throw new Error(`interpolation ${interpolation} is not one of ${Object.keys(FILTERS)}`);
  if (crop_mode !== 'center') throw new Error(`crop_mode ${crop_mode} is not supported, only center`);
  const [inputSize, mean, std, cropPct, classNames] = ['input_size', 'mean', 'std', 'crop_pct', 'class_names'].map(
    (key) => JSON.parse(strings[key] ?? 'null'),
  );
  return { model: strings.model, interpolation, inputSize, mean, std, cropPct, classNames };
}

/** The fields of a protobuf message that are messages or strings, as [number, bytes]. */
function* messages(bytes) {
  let at = 0;
  const varint = () => {
    for (let value = 0, unit = 1; ; unit *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * unit;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag & 7;
    if (kind === 2) {
      const length = varint();
      yield [tag >>> 3, bytes.subarray(at, (at += length))];
    } else if (kind === 0) varint();
    else at += kind === 1 ? 8 : 4;
  }
}

/**
 * The network's input, [channels, height, width], from an image's RGBA bytes: over white, resized and cropped, to the
 * last bit as Pillow, torchvision and timm do it.
 */
export function prepare({ data, width, height }, { inputSize, mean, std, cropPct, interpolation }) {
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
  // Pillow 13 begins with the height where that shrinks by far more pixels; each step rounds, so it matters.
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

/** For each new pixel, the first old one that counts, and how much it and those after it do. */
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
