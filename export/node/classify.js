// Classify images with an exported model: node classify.js model.onnx image.png ...

import { readFile } from 'node:fs/promises';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import sharp from 'sharp';
import { best, prepare, readFacts } from '../browser/model.js';

async function readPixels(path) {
  // Upright, with the numbers in the file: ICC profiles play no part in training either.
  const picture = sharp(path, { ignoreIcc: true }).rotate().toColourspace('srgb').ensureAlpha();
  const { data, info } = await picture.raw().toBuffer({ resolveWithObject: true });
  return { data, ...info };
}

async function main(model, ...images) {
  if (!images.length) throw new Error('usage: node classify.js model.onnx image.png ...');
  const bytes = await readFile(model);
  const facts = readFacts(bytes);
  const session = await InferenceSession.create(bytes);
  for (const path of images) {
    const input = new Tensor('float32', prepare(await readPixels(path), facts), [1, ...facts.inputSize]);
    const results = await session.run({ [session.inputNames[0]]: input });
    console.log(path);
    for (const [name, probability] of best(results[session.outputNames[0]].data, facts.classNames)) {
      console.log(`  ${probability.toFixed(6)}  ${name}`);
    }
  }
}

await main(...process.argv.slice(2)).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
