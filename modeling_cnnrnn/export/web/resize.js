// Pillow's resizing in its fixed-point arithmetic, so that the CNN sees in the browser what it sees in Python.

const PRECISION = 2 ** 22;
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const cubic = (x) =>
  x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
// support and weight of each of Pillow's filters, by its number; 0, the nearest pixel, is done by the box
const FILTERS = {
  0: [0.5, (x) => (x <= 0.5 ? 1 : 0)],
  1: [3, (x) => (x < 3 ? sinc(x) * sinc(x / 3) : 0)],
  2: [1, (x) => Math.max(0, 1 - x)],
  3: [2, cubic],
  4: [0.5, (x) => (x <= 0.5 ? 1 : 0)],
  5: [1, (x) => (x < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
};

// for each output place: the first input place, and the weights from there on
function weightsOf(inputs, outputs, filter) {
  const [support, weigh] = FILTERS[filter];
  const scale = inputs / outputs, stretch = Math.max(1, scale), reach = support * stretch;
  return Array.from({ length: outputs }, (_, place) => {
    const center = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(inputs, Math.trunc(center + reach + 0.5));
    const weights = Array.from({ length: end - start }, (_, i) => weigh(Math.abs((start + i - center + 0.5) / stretch)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return { start, weights: weights.map((weight) => Math.round((weight / total) * PRECISION)) };
  });
}

// one line of `inputs` pixels after the other, `step` bytes apart, to lines of `outputs` pixels
function resizeLines(source, target, inputs, outputs, filter, lines, step, lineStep, targetStep, targetLineStep) {
  weightsOf(inputs, outputs, filter).forEach(({ start, weights }, place) => {
    for (let line = 0; line < lines; line++) {
      let at = line * lineStep + start * step;
      let red = PRECISION / 2, green = red, blue = red;
      for (const weight of weights) {
        red += source[at] * weight;
        green += source[at + 1] * weight;
        blue += source[at + 2] * weight;
        at += step;
      }
      const to = line * targetLineStep + place * targetStep;
      target[to] = Math.floor(red / PRECISION);
      target[to + 1] = Math.floor(green / PRECISION);
      target[to + 2] = Math.floor(blue / PRECISION);
    }
  });
}

/** Resize `data`, red, green and blue in steps of `channels`, to red, green and blue alone. */
export function resize(data, channels, width, height, newWidth, newHeight, filter) {
  const wide = new Uint8ClampedArray(newWidth * height * 3);
  resizeLines(data, wide, width, newWidth, filter, height, channels, width * channels, 3, newWidth * 3);
  const resized = new Uint8ClampedArray(newWidth * newHeight * 3);
  resizeLines(wide, resized, height, newHeight, filter, newWidth, newWidth * 3, 3, newWidth * 3, 3);
  return resized;
}
