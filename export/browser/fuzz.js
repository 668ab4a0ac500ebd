// Reads damaged files: node fuzz.js metadata.onnx
// Prints how many of them `readFacts` took for a file and how many it refused. It must end on any bytes, and throw nothing
// but an Error with one line.

import { readFile } from 'node:fs/promises';
import { readFacts } from './model.js';

const whole = new Uint8Array(await readFile(process.argv[2]));
let state = 1; // xorshift: the same bytes in every run
const random = (below) => {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) % below;
};

function* inputs() {
  for (let length = 0; length <= whole.length; length++) yield whole.subarray(0, length);
  for (let i = 0; i < 20_000; i++) {
    const changed = whole.slice(0, random(2) ? whole.length : random(whole.length));
    for (let n = random(8); n >= 0 && changed.length; n--) changed[random(changed.length)] = random(2) ? random(256) : 255;
    yield changed;
  }
  for (let i = 0; i < 5_000; i++) yield Uint8Array.from({ length: random(200) }, () => random(256));
}

const found = { read: 0, refused: 0 };
for (const bytes of inputs()) {
  try {
    readFacts(bytes);
    found.read++;
  } catch (error) {
    if (!(error instanceof Error) || error.constructor !== Error || !error.message || /[\n\r]/.test(error.message)) throw error;
    found.refused++;
  }
}
console.log(JSON.stringify(found));
