// The captioner of `cnnrnn export` in the browser: the search of captioner.py. Nothing is asked of another server.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { resize } from "./resize.js";

const NEVER = -1e9;
// a function of one SIMD instruction
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);

async function download(name, onBytes) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} is not there (${response.status})`);
  const parts = [];
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onBytes(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

export class Captioner {
  /** Download the captioner and run it once, which makes the first photograph as fast as the next. */
  static async load(onProgress = () => {}) {
    if (typeof WebAssembly === "undefined" || !WebAssembly.validate(SIMD))
      throw new Error("this browser has no WebAssembly with SIMD: take a newer one");
    ort.env.wasm.wasmPaths = { wasm: new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href };
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = "error";
    const captioner = new Captioner();
    captioner.settings = JSON.parse(new TextDecoder().decode(await download("captioner.json", () => {})));
    const { dtype, bytes, image_size: [height, width] } = captioner.settings;
    let loaded = 0;
    const files = ["encoder.onnx", "decoder.onnx"].map((name) => download(name, (n) => onProgress((loaded += n) / bytes)));
    const qdq = dtype === "int8-weights" ? "1" : "0"; // floats once, and not at each step
    const options = { executionProviders: ["wasm"], extra: { session: { disable_quant_qdq: qdq } } };
    const [encoder, decoder] = await Promise.all(files);
    captioner.encoder = await ort.InferenceSession.create(encoder, options);
    captioner.decoder = await ort.InferenceSession.create(decoder, options);
    await captioner.generate(new Uint8Array(height * width * 3), { num_beams: 3, max_length: 3 });
    return captioner;
  }

  /** What the CNN sees of a picture of the page, and where it is in it: left, top, width, height in parts. */
  look(source, width, height) {
    const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white"; // below what is transparent
    context.fillRect(0, 0, width, height);
    context.drawImage(source, 0, 0, width, height);
    const { size, crop_size: crop, resample } = this.settings, shortest = Math.min(width, height);
    const edge = (length) => Math.max(size, Math.trunc((size * length) / shortest));
    const [newHeight, newWidth] = Array.isArray(size) ? size : [edge(height), edge(width)];
    const whole = resize(context.getImageData(0, 0, width, height).data, 4, width, height, newWidth, newHeight, resample);
    if (!crop) return { pixels: whole, view: [0, 0, 1, 1] };
    const [rows, columns] = crop, top = Math.floor((newHeight - rows) / 2), left = Math.floor((newWidth - columns) / 2);
    const pixels = new Uint8Array(rows * columns * 3);
    for (let row = 0; row < rows; row++) {
      const start = ((top + row) * newWidth + left) * 3;
      pixels.set(whole.subarray(start, start + columns * 3), row * columns * 3);
    }
    return { pixels, view: [left / newWidth, top / newHeight, columns / newWidth, rows / newHeight] };
  }

  /** Search as `generate` of captioner.py: a sentence for each beam, best first, with `token_ids`, `log_probs`, `maps`. */
  async generate(pixels, options = {}) {
    const config = { ...this.settings.generation, ...options }, { num_beams: K, max_length, length_penalty } = config;
    const stopsWhenFull = config.early_stopping === true || K === 1, [height, width] = this.settings.image_size;
    const memory = await this.encoder.run({ pixels: new ort.Tensor("uint8", Uint8Array.from(pixels), [1, height, width, 3]) });
    const states = ["h", "c"].filter((name) => name in memory);
    for (const name of states) memory[name] = gather(memory[name], Array(K).fill(0));
    let running = Array(K).fill({ token_ids: [], log_probs: [], maps: [] }), finished = [];
    let scores = running.map((_, beam) => (beam ? NEVER : 0));
    for (let length = 1; length < max_length; length++) {
      const words = running.map((beam) => [config.decoder_start_token_id, ...beam.token_ids]);
      memory.tokens = new ort.Tensor("int64", BigInt64Array.from(words, (tokens) => BigInt(tokens.at(-1))), [K]);
      memory.position = new ort.Tensor("int64", BigInt64Array.of(BigInt(length - 1)), []);
      const step = await this.decoder.run(Object.fromEntries(this.decoder.inputNames.map((name) => [name, memory[name]])));
      const logProbs = step.log_probs.data, size = step.log_probs.dims[1], regions = step.attention?.dims[1];
      words.forEach((tokens, row) => {
        for (const token of repeating(tokens, config.no_repeat_ngram_size)) logProbs[row * size + token] = -Infinity;
      });
      const best = largest(logProbs, size, scores, Math.max(2, 1 + config.eos_token_id.length) * K).map(({ index, total }) => {
        const row = Math.floor(index / size), token = index % size, { token_ids, log_probs, maps } = running[row];
        const map = regions ? [step.attention.data.slice(row * regions, (row + 1) * regions)] : [];
        return {
          row, total, isEnd: config.eos_token_id.includes(token) || length === max_length - 1,
          token_ids: [...token_ids, token], log_probs: [...log_probs, logProbs[index]], maps: [...maps, ...map],
        };
      });
      const share = (beam, tokens) => Math.fround(beam.total / Math.fround(tokens ** length_penalty));
      finished.push(...best.slice(0, K).filter((beam) => beam.isEnd).map((beam) => ({ ...beam, score: share(beam, length) })));
      finished = finished.sort((a, b) => b.score - a.score).slice(0, K);
      const alive = best.filter((beam) => !beam.isEnd).slice(0, K);
      const longest = config.early_stopping === "never" && length_penalty > 0 ? max_length - 1 : length;
      if (alive.length < K) break;
      if (finished.length === K && (stopsWhenFull || share(alive[0], longest) <= finished.at(-1).score)) break;
      running = alive;
      scores = alive.map((beam) => (K > 1 ? beam.total : 0));
      for (const name of states) memory[name] = gather(step[`next_${name}`], alive.map((beam) => beam.row));
    }
    return finished;
  }

  /** The texts that tokens add to a sentence, one for each. */
  texts(tokenIds) {
    const { pieces, unspaced } = this.settings;
    let previous = null;
    return tokenIds.map((token) => {
      const joins = unspaced.includes(previous) && unspaced.includes(token);
      if (pieces[token]) previous = token;
      return joins ? pieces[token].trimStart() : pieces[token];
    });
  }
}

// rows of the second dimension of a state (layers, beams, units)
function gather(state, rows) {
  const [layers, beams, units] = state.dims, values = new Float32Array(layers * rows.length * units);
  for (let layer = 0; layer < layers; layer++)
    rows.forEach((row, i) => {
      const start = (layer * beams + row) * units;
      values.set(state.data.subarray(start, start + units), (layer * rows.length + i) * units);
    });
  return new ort.Tensor("float32", values, [layers, rows.length, units]);
}

// the tokens that would end an n-gram of this size a second time; none where the size is 0
function repeating(tokens, size) {
  const start = tokens.length - size + 1, end = tokens.slice(start);
  return size ? tokens.filter((_, i) => i >= size - 1 && end.every((token, k) => tokens[i - size + 1 + k] === token)) : [];
}

// the `count` largest of the values plus the score of their row, best first, the earlier one where two are equal
function largest(values, size, scores, count) {
  const best = [];
  scores.forEach((score, row) => {
    for (let index = row * size; index < (row + 1) * size; index++) {
      const total = Math.fround(values[index] + score);
      if (best.length === count && total <= best[count - 1].total) continue;
      let place = best.length;
      while (place > 0 && best[place - 1].total < total) place--;
      best.splice(place, 0, { index, total });
      if (best.length > count) best.pop();
    }
  });
  return best;
}
