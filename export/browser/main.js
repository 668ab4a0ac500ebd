import { InferenceSession, Tensor, env } from 'onnxruntime-web';
import { best, prepare, readFacts } from './model.js';

env.wasm.numThreads = 1; // several threads need headers (COOP, COEP) that a plain file server doesn't send

// For an early first prediction. With these and the early compilation below, that of eunnet50 takes 0.84 of the time.
const OPTIONS = { graphOptimizationLevel: 'basic', enableCpuMemArena: false, enableMemPattern: false };

// The runtime has no call that loads it alone. An empty network is refused, but only once the runtime is compiled, and the
// real network is fetched meanwhile.
InferenceSession.create(new Uint8Array()).catch(() => {});

const $ = (id) => document.getElementById(id);
const networks = {}; // by name: a promise of what load() returns
let image; // the image that was chosen or drawn last: { name, data, width, height }
let turn = 0; // the result for an older image or network is dropped

/** What the network knows, and a promise of the function that runs it, which takes longer to come. */
async function load(name) {
  const response = await fetch(`${name}.onnx`);
  if (!response.ok) throw new Error(`${name}.onnx isn't beside this page (${response.status}); the README says how to write it.`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  const wrong = (error) => Promise.reject(new Error(`${name}.onnx: ${error.message.split('\n')[0]}`));
  const facts = await Promise.resolve(bytes).then(readFacts).catch(wrong);
  return { facts, ready: begin(bytes, facts).catch(wrong) };
}

/** Once the page shows what it has. A page that isn't visible draws no frame. */
const shown = () =>
  new Promise((resolve) => {
    requestAnimationFrame(() => setTimeout(resolve));
    setTimeout(resolve, 50);
  });

async function begin(bytes, { inputSize }) {
  await shown(); // what follows keeps the page busy
  const session = await InferenceSession.create(bytes, OPTIONS);
  const run = async (input) => {
    const results = await session.run({ [session.inputNames[0]]: new Tensor('float32', input, [1, ...inputSize]) });
    return results[session.outputNames[0]].data;
  };
  // The first run is slower, since it allocates. While an image waits, it is that image's.
  if (!image) await run(new Float32Array(inputSize.reduce((a, b) => a * b)));
  return run;
}

async function classify() {
  const mine = ++turn;
  const name = document.querySelector('[name=network]:checked').value;
  try {
    const { facts, ready } = await (networks[name] ??= load(name));
    const [channels, height, width] = facts.inputSize;
    const digits = knowsDigits(facts);
    $('drawing').hidden = !digits;
    $('camera').hidden = digits || !navigator.mediaDevices?.getUserMedia;
    $('choose').textContent = digits ? 'Choose an image' : 'Choose a photograph';
    $('about').textContent = `${facts.model}, ${width} × ${height} pixels, ${channels === 1 ? 'grey' : 'colour'}`;
    $('knows').textContent = known(facts);
    $('knows').hidden = false;
    const run = await ready;
    if (!image || mine !== turn) return;
    const input = prepare(image, facts);
    const start = performance.now();
    const logits = await run(input);
    const milliseconds = performance.now() - start;
    if (mine === turn) show(best(logits, facts.classNames), `${image.name}: ${milliseconds.toFixed(1)} ms, ${name}`);
  } catch (error) {
    delete networks[name];
    show([], error.message);
  }
}

/** Whether a drawn digit means anything to the network: ten classes whose names, if it has any, end in a digit. */
const knowsDigits = ({ classNames, numClasses }) =>
  classNames ? classNames.length === 10 && classNames.every((name) => /^\D*\d$/.test(name)) : numClasses === 10;

/** What the network can answer, in a sentence. */
function known({ classNames, numClasses }) {
  const some = classNames?.slice(0, 12).join(', ');
  const more = classNames?.length > 12 ? `, and ${classNames.length - 12} more` : '';
  const names = some ? `: ${some}${more}` : ', whose names are not in its file';
  return `It knows ${classNames?.length ?? numClasses} classes${names}. Whatever an image shows, it answers with one of them.`;
}

function show(answer, status) {
  $('status').textContent = status;
  $('top').replaceChildren(
    ...answer.map(([name, probability]) => {
      const item = document.createElement('li');
      const bar = Object.assign(document.createElement('meter'), { value: probability, ariaLabel: name });
      item.append(name, ` ${(100 * probability).toFixed(1)} %`, bar);
      item.firstChild.replaceWith(Object.assign(document.createElement('span'), { textContent: name }));
      return item;
    }),
  );
}

// An image file

async function open(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none' });
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext('2d');
    context.fillStyle = 'white'; // under what is transparent
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    image = { name: file.name, data: context.getImageData(0, 0, width, height).data, width, height };
  } catch {
    turn++;
    return show([], `${file.name} is no image that this browser can read.`);
  }
  URL.revokeObjectURL($('preview').src);
  Object.assign($('preview'), { src: URL.createObjectURL(file), alt: file.name, hidden: false });
  await classify();
}

$('file').addEventListener('change', (event) => open(event.target.files[0]));
for (const type of ['dragover', 'dragleave', 'drop']) {
  $('drop').addEventListener(type, (event) => {
    event.preventDefault();
    $('drop').classList.toggle('over', type === 'dragover');
    if (type !== 'drop') return;
    $('file').value = ''; // it would go on showing an earlier file's name
    open(event.dataTransfer.files[0]);
  });
}

// The camera: the first press shows what it sees, the second one takes the picture

let stream = null;

async function shoot() {
  if (!stream) {
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    } catch (error) {
      return show([], `The camera can't be used: ${error.message}`);
    }
    Object.assign($('video'), { srcObject: stream, hidden: false });
    await $('video').play();
    $('shoot').textContent = 'Take the picture';
    return;
  }
  const { videoWidth, videoHeight } = $('video');
  const frame = new OffscreenCanvas(videoWidth, videoHeight);
  frame.getContext('2d').drawImage($('video'), 0, 0);
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  Object.assign($('video'), { srcObject: null, hidden: true });
  $('shoot').textContent = 'Use the camera';
  $('file').value = '';
  await open(new File([await frame.convertToBlob()], 'camera', { type: 'image/png' }));
}

$('shoot').addEventListener('click', shoot);

// A drawing: white on black, as scans of digits are

const canvas = $('canvas');
const ink = canvas.getContext('2d', { willReadFrequently: true });
const pen = { x: 0, y: 0, down: false };

function move(x, y) {
  if (pen.down) {
    ink.beginPath();
    ink.moveTo(pen.x, pen.y);
    ink.lineTo(x, y);
    ink.stroke();
  }
  Object.assign(pen, { x, y });
  Object.assign($('pen').style, { left: `${(100 * x) / canvas.width}%`, top: `${(100 * y) / canvas.height}%` });
}

function lower(down) {
  const drawn = pen.down && !down;
  pen.down = down;
  $('pen').classList.toggle('down', down);
  if (down) move(pen.x, pen.y);
  if (!drawn) return;
  image = { name: 'drawing', ...scan() };
  $('preview').hidden = true;
  $('file').value = '';
  classify();
}

/** The drawing as coarse as scikit-learn's scans of digits: networks that learned from those expect no sharper strokes. */
function scan(size = 8) {
  const block = canvas.width / size;
  const data = new Uint8ClampedArray(4 * size * size).fill(255);
  for (let i = 0; i < size * size; i++) {
    const { data: rgba } = ink.getImageData((i % size) * block, Math.floor(i / size) * block, block, block);
    const mean = rgba.reduce((sum, value, k) => (k % 4 ? sum : sum + value), 0) / block ** 2;
    data.fill(mean, 4 * i, 4 * i + 3);
  }
  return { data, width: size, height: size };
}

function clear() {
  Object.assign(ink, { fillStyle: 'black', strokeStyle: 'white', lineWidth: 36, lineCap: 'round' });
  ink.fillRect(0, 0, canvas.width, canvas.height);
  pen.down = false;
  $('pen').classList.remove('down');
  move(canvas.width / 2, canvas.height / 2);
}

canvas.addEventListener('pointerdown', (event) => {
  canvas.setPointerCapture(event.pointerId);
  lower(false);
  move(...at(event));
  lower(true);
});
canvas.addEventListener('pointermove', (event) => event.buttons && move(...at(event)));
for (const type of ['pointerup', 'pointercancel']) canvas.addEventListener(type, () => lower(false));
const at = ({ offsetX, offsetY }) => [(offsetX * canvas.width) / canvas.clientWidth, (offsetY * canvas.height) / canvas.clientHeight];

const STEPS = { ArrowLeft: [-14, 0], ArrowRight: [14, 0], ArrowUp: [0, -14], ArrowDown: [0, 14] };
canvas.addEventListener('keydown', (event) => {
  const step = STEPS[event.key];
  if (!step && event.key !== ' ') return;
  event.preventDefault();
  if (step) move(...[pen.x + step[0], pen.y + step[1]].map((value) => Math.min(canvas.width, Math.max(0, value))));
  else if (!event.repeat) {
    lower(!pen.down);
    if (pen.down) $('status').textContent = 'The pen is down.';
  }
});
$('clear').addEventListener('click', clear);

for (const button of document.getElementsByName('network')) button.addEventListener('change', classify);
clear();
classify();
