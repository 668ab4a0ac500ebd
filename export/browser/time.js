// Measures the page's speed in headless Chromium: node time.js URL image.png ...
// Prints the seconds from opening the page to the first prediction, and to the last one.

import { basename } from 'node:path';
import { launch } from './chromium.js';

const [url, ...images] = process.argv.slice(2);
const browser = await launch();
const page = await browser.newPage();
const start = performance.now();
const seconds = [];
await page.goto(url);
for (const image of images) {
  await page.getByLabel('Drop an image here').setInputFiles(image);
  await page.getByText(`${basename(image)}: `).waitFor({ timeout: 300_000 });
  seconds.push((performance.now() - start) / 1000);
}
const status = await page.locator('#status').textContent();
await browser.close();
if (!status.endsWith(' ms, folded')) throw new Error(status);
console.log(JSON.stringify([seconds[0], seconds.at(-1)]));
