// Classify images with an exported model: node classify.js model.onnx image.png ...

import { readFile, stat } from 'node:fs/promises';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import sharp from 'sharp';
import { best, prepare, readFacts } from '../browser/model.js';

const LARGEST = 150_000_000; // pixels of an image

/** Adds the file's name to what went wrong with it, in one line. */
async function about(path, work) {
  try {
    // Reading a pipe would wait for ever.
    if (!(await stat(path)).isFile()) throw new Error('it is not a file');
    return await work();
  } catch (error) {
    const reason = error.code === 'ENOENT' ? 'no such file' : error.message.split('\n')[0];
    throw new Error(`${path}: ${reason}`);
  }
}

async function readPixels(path) {
  // Upright, with the numbers in the file: ICC profiles play no part in training either.
  const options = { ignoreIcc: true, limitInputPixels: LARGEST };
  const picture = sharp(path, options).rotate().toColourspace('srgb').ensureAlpha();
  const { data, info } = await picture.raw().toBuffer({ resolveWithObject: true });
  return { data, ...info };
}

async function load(path) {
  const bytes = await readFile(path);
  const facts = readFacts(bytes);
  return { facts, session: await InferenceSession.create(bytes) };
}

async function main(model, ...images) {
  if (!images.length) throw new Error('usage: node classify.js model.onnx image.png ...');
  const { facts, session } = await about(model, () => load(model));
  for (const path of images) {
    const pixels = await about(path, () => readPixels(path));
    const input = new Tensor('float32', prepare(pixels, facts), [1, ...facts.inputSize]);
    const results = await about(model, () => session.run({ [session.inputNames[0]]: input }));
    console.log(path);
    for (const [name, probability] of best(results[session.outputNames[0]].data, facts.classNames)) {
      console.log(`  ${probability.toFixed(6)}  ${name}`);
    }
  }
}

await main(...process.argv.slice(2)).catch((error) => {
  console.error(error.message.split('\n')[0]);
  process.exitCode = 2;
});
