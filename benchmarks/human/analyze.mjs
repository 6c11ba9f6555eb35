// frames of videos on standard input -> boxes and emotions of each, as JSON on standard output: @vladmandic/human
//
// node analyze.mjs ENVIRONMENT, where its packages are installed. A frame: the video's number, width and height as
// little-endian uint32, then its pixels in RGB. Its defaults, but nothing that is not asked for (mesh, iris, age, body,
// hands), and no answer taken over from the frame before, as ferflow takes none.

import { createRequire } from 'node:module';
import { readFileSync, readSync } from 'node:fs';
import { join } from 'node:path';

const modules = join(process.argv[2], 'node_modules');
const require = createRequire(join(modules, 'of'));
const wasm = `${join(modules, '@tensorflow', 'tfjs-backend-wasm', 'wasm-out')}/`;
require('@tensorflow/tfjs-backend-wasm').setWasmPaths(wasm);
// In Node it fetches its models from the web alone; here they are files.
globalThis.fetch = async (url) => new Response(readFileSync(String(url).replace('file://', '')));
const { Human } = require(join(modules, '@vladmandic', 'human', 'dist', 'human.node-wasm.js'));

const off = { enabled: false };
const human = new Human({
  backend: 'wasm',
  wasmPath: wasm,
  modelBasePath: `file://${join(modules, '@vladmandic', 'human', 'models')}/`,
  debug: false,
  cacheSensitivity: 0,
  filter: off,
  gesture: off,
  body: off,
  hand: off,
  object: off,
  segmentation: off,
  face: { emotion: { enabled: true }, mesh: off, attention: off, iris: off, description: off, antispoof: off, liveness: off },
});
await human.load();

function read(bytes) {
  const buffer = Buffer.allocUnsafe(bytes);
  for (let at = 0; at < bytes; ) {
    const got = readSync(0, buffer, at, bytes - at, null);
    if (got === 0) return null;
    at += got;
  }
  return buffer;
}

const answers = [];
for (let header = read(12); header !== null; header = read(12)) {
  const [video, width, height] = [0, 4, 8].map((at) => header.readUInt32LE(at));
  const frame = human.tf.tensor(new Int32Array(read(width * height * 3)), [1, height, width, 3], 'int32');
  const found = await human.detect(frame);
  frame.dispose();
  if (found.error) throw new Error(found.error);
  (answers[video] ??= []).push(found.face.map(({ box, emotion }) => ({ box, emotion })));
}
process.stdout.write(JSON.stringify(answers));
