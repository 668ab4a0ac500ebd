// Uses the page in headless Chromium as people do: node test.js URL FOLDER image.png ...
// Prints the page's predictions as JSON, and leaves the drawings and screenshots in FOLDER. What the page offers depends on the
// network: drawing for digits, the camera for others.

import { readFile, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import axe from 'axe-core';
import { launch } from './chromium.js';

const [url, folder, ...images] = process.argv.slice(2);
const browser = await launch();

const problems = [];

async function open(options) {
  const page = await browser.newPage(options);
  page.setDefaultTimeout(30_000);
  page.on('pageerror', (error) => problems.push(String(error)));
  page.on('console', (message) => message.type() === 'error' && problems.push(message.text()));
  page.on('request', (request) => {
    if (!/^(data|blob):/.test(request.url()) && !request.url().startsWith(url)) problems.push(`fetched ${request.url()}`);
  });
  await page.goto(url);
  return page;
}

/** The five classes and probabilities, once the page says that they are of this image and network. */
async function answer(page, image, network) {
  await page.getByText(new RegExp(`^${image.replaceAll('.', '\\.')}: .* ms, ${network}$`)).waitFor();
  return page.getByRole('listitem').evaluateAll((items) =>
    items.map((item) => [item.querySelector('span').textContent, item.querySelector('meter').value]),
  );
}

/** What is on the drawing area, as a file, and the page's answer to it. */
async function drawing(page, name) {
  const data = await page.getByLabel('Drawing area').evaluate((canvas) => canvas.toDataURL());
  await writeFile(join(folder, `${name}.png`), Buffer.from(data.split(',')[1], 'base64'));
  return [`${name}.png`, await answer(page, 'drawing', 'folded')];
}

async function check(page, name) {
  await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => window.axe.run());
  problems.push(...violations.map(({ id, help, nodes }) => `${name}: ${id}, ${help}: ${nodes[0].html}`));
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  if (over > 0) problems.push(`${name}: ${over} pixels wider than the screen`);
}

const wide = { viewport: { width: 1280, height: 800 } };
const narrow = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2, colorScheme: 'dark' };
const found = { files: { folded: [], unfolded: [] }, drawings: [] };

// Desktop: files by the button and dropped, both networks.
const page = await open(wide);
for (const image of images) {
  await page.getByLabel('Drop an image here').setInputFiles(image);
  for (const [network, label] of [['folded', 'Folded'], ['unfolded', 'Not folded']]) {
    await page.getByLabel(label, { exact: true }).check();
    found.files[network].push(await answer(page, basename(image), network));
  }
  await page.getByLabel('Folded', { exact: true }).check();
  await answer(page, basename(image), 'folded');
}
const bytes = [...(await readFile(images[0]))];
const transfer = await page.evaluateHandle((bytes) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], 'dropped.png', { type: 'image/png' }));
  return transfer;
}, bytes);
await page.locator('#drop').dispatchEvent('drop', { dataTransfer: transfer });
found.dropped = await answer(page, 'dropped.png', 'folded');
await check(page, 'desktop');

await page.getByLabel('Drop an image here').setInputFiles({ name: 'note.txt', mimeType: 'text/plain', buffer: Buffer.from('no') });
await page.getByText('note.txt is no image').waitFor();

/** A digit by mouse, and one by keyboard. */
async function draw() {
  const { x, y, width, height } = await page.getByLabel('Drawing area').boundingBox();
  const seven = [[0.2, 0.15], [0.8, 0.15], [0.4, 0.9]].map(([u, v]) => [x + u * width, y + v * height]);
  await page.mouse.move(...seven[0]);
  await page.mouse.down();
  for (const point of seven.slice(1)) await page.mouse.move(...point, { steps: 10 });
  await page.mouse.up();
  found.drawings.push(await drawing(page, 'mouse'));
  await page.getByRole('button', { name: 'Clear' }).press('Enter');
  await page.getByLabel('Drop an image here').setInputFiles(images[0]);
  await answer(page, basename(images[0]), 'folded');

  await page.getByLabel('Drawing area').focus();
  const keys = { ArrowUp: 7, Space: 1, ArrowDown: 14 }; // up without ink, pen down, a stroke from top to bottom, pen up
  for (const [key, times] of [...Object.entries(keys), ['Space', 1]]) {
    for (let i = 0; i < times; i++) await page.keyboard.press(key);
  }
  found.drawings.push(await drawing(page, 'keyboard'));
}

/** A digit by finger. */
async function finger(phone) {
  await phone.getByLabel('Drawing area').scrollIntoViewIfNeeded();
  const box = await phone.getByLabel('Drawing area').boundingBox();
  const devtools = await phone.context().newCDPSession(phone);
  const touch = (type, ...points) =>
    devtools.send('Input.dispatchTouchEvent', {
      type,
      touchPoints: points.map(([u, v]) => ({ x: box.x + u * box.width, y: box.y + v * box.height })),
    });
  await touch('touchStart', [0.5, 0.15]);
  for (let i = 1; i <= 10; i++) await touch('touchMove', [0.5, 0.15 + 0.07 * i]);
  await touch('touchEnd');
  found.drawings.push(await drawing(phone, 'finger'));
}

/** A picture of the camera: what it sees, then the answer. */
async function photograph(page) {
  await page.getByRole('button', { name: 'Use the camera' }).press('Enter');
  await page.getByRole('button', { name: 'Take the picture' }).waitFor();
  await page.getByLabel('What the camera sees').waitFor();
  await check(page, 'camera');
  await page.getByRole('button', { name: 'Take the picture' }).press('Enter');
  return answer(page, 'camera', 'folded');
}

const digits = await page.getByLabel('Drawing area').isVisible();
found.about = await page.locator('#about').textContent();
found.knows = await page.getByText(/^It knows /).textContent();
await page.getByText('What is folded?').press('Enter');
await page.getByText('has become part of its weights').waitFor();
if (digits) await draw();
else found.camera = await photograph(page);

const phone = await open(narrow);
await phone.getByText(/^It knows /).waitFor();
if (digits) await finger(phone);
else {
  await phone.getByLabel('Drop an image here').setInputFiles(images[0]);
  await answer(phone, basename(images[0]), 'folded');
}
await phone.evaluate(() => window.scrollTo(0, 0));
const { y: top, height: tall } = await phone.locator('#results').boundingBox();
if (top + tall > 844) problems.push(`phone: the answer ends at ${top + tall} of 844 pixels`);
await check(phone, 'phone');

await browser.close();
console.log(JSON.stringify({ ...found, problems }));
