// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the page "Try it": what geometry.py, the two contracts and migrate/equal.py say, for numbers that are
// integers already. tests/test_site.py holds it against them, message by message. A plain script and no module, so that
// the page also works from a file.
"use strict";

globalThis.tconv3d = (() => {
  const AXES = [0, 1, 2];

  // As Python writes them: 3, 'same', (1, 2, 2).
  const text = (value) =>
    Array.isArray(value) ? `(${value.map(text).join(", ")})` : typeof value === "string" ? `'${value}'` : String(value);
  const describe = (what, value, rule, wayOut) => `${what} is ${text(value)}, but ${rule}; ${wayOut}`;
  const refuse = (type, ...words) => ({ error: { type, message: describe(...words) } });
  const gcd = (a, b) => (b ? gcd(b, a % b) : a);
  const modulo = (a, b) => ((a % b) + b) % b;

  // The two numbers that a contract chooses per axis: samples cut in front, and the output size.
  const windows = {
    pad: (a, front, back, extra) => [front, (a.size - 1) * a.stride + a.effective - front - back + extra],
    same: (a) => [Math.floor(Math.max(0, a.effective - a.stride) / 2), a.size * a.stride],
    valid: (a) => [0, a.size * a.stride + Math.max(0, a.effective - a.stride)],
  };

  // `call` has contract ("pytorch" or "mindspore"), size, kernel, stride, dilation and outputPadding of three entries, and
  // padding: of three for PyTorch; of six, and padMode, for MindSpore. Returns { axes } or { error }.
  function resolve(call) {
    const torch = call.contract === "pytorch";
    const mode = torch ? "pad" : call.padMode;
    const extra = call.outputPadding;
    if (!torch && mode !== "pad" && call.padding.some(Boolean)) {
      return refuse("ValueError", "padding", call.padding, `it must be 0 with pad_mode='${mode}'`, "use pad_mode='pad'");
    }
    if (!torch && mode !== "pad" && extra.some(Boolean)) {
      return refuse("ValueError", "output_padding", extra, `it must be 0 with pad_mode='${mode}'`, "use pad_mode='pad'");
    }
    if (AXES.some((i) => extra[i] >= Math.max(call.stride[i], call.dilation[i]))) {
      const rule = `every entry must be below the stride ${text(call.stride)} or the dilation ${text(call.dilation)}`;
      return torch
        ? refuse("RuntimeError", "output_padding", extra, `${rule} of its axis`, "it picks one of several sizes; use a larger stride")
        : refuse("ValueError", "output_padding", extra, rule, "it picks one of several sizes; lower it");
    }
    const axes = AXES.map((i) => {
      const a = { size: call.size[i], kernel: call.kernel[i], stride: call.stride[i], dilation: call.dilation[i] };
      a.effective = a.dilation * (a.kernel - 1) + 1;
      a.full = (a.size - 1) * a.stride + a.effective;
      const [front, back] = torch ? [call.padding[i], call.padding[i]] : call.padding.slice(2 * i, 2 * i + 2);
      [a.front, a.out] = windows[mode](a, front, back, extra[i]);
      return a;
    });
    const sizes = axes.map((a) => a.out);
    if (torch && Math.min(...sizes) < 1) {
      const rule = "every axis needs at least one sample";
      return refuse("RuntimeError", "the output size", sizes, rule, "use less padding or a larger kernel");
    }
    if (Math.min(...sizes) < 0) {
      return refuse("RuntimeError", "the output size", sizes, "no axis may be negative", "use less padding");
    }
    return { axes };
  }

  // Every [input sample, tap] whose product reaches an output of an axis.
  function sources(axis, output) {
    const found = [];
    for (let tap = 0; tap < axis.kernel; tap += 1) {
      const position = output + axis.front - tap * axis.dilation;
      if (modulo(position, axis.stride) === 0 && position >= 0 && position / axis.stride < axis.size) {
        found.push([position / axis.stride, tap]);
      }
    }
    return found;
  }

  // Why the overlap of an axis is even, uneven or has holes, in the words of `tconv3d explain --overlap`.
  function cause({ kernel, stride, dilation }) {
    const shared = gcd(stride, dilation);
    if (shared === 1 && kernel >= stride) {
      const fewest = Math.floor(kernel / stride);
      const remainder = `kernel % stride = ${kernel} % ${stride} = ${kernel % stride}`;
      return kernel % stride ? `uneven: ${fewest} or ${fewest + 1}; ${remainder}` : `even: ${fewest} for each output; ${remainder}`;
    }
    const period = stride / shared;
    const empty = stride - Math.min(kernel, period);
    const gets = `${empty} of ${stride} outputs ${empty === 1 ? "gets" : "get"} no input`;
    return kernel < period
      ? `holes: kernel ${kernel} is smaller than stride ${stride}, so ${gets}`
      : `holes: stride ${stride} and dilation ${dilation} share the factor ${shared}, so ${gets}`;
  }

  // Names and values that differ from the other constructor's defaults; three equal sizes are written as one.
  const shortest = (value) => (Array.isArray(value) && value.every((entry) => entry === value[0]) ? value[0] : value);
  const written = (...pairs) =>
    pairs.map(([name, value, plain]) => [name, shortest(value), plain]).filter(([, value, plain]) => value !== plain).map(([name, value]) => [name, value]);
  const common = (axes) =>
    written(["kernel_size", axes.map((a) => a.kernel), null], ["stride", axes.map((a) => a.stride), 1], ["dilation", axes.map((a) => a.dilation), 1]);

  // Samples that PyTorch's symmetric padding = front leaves too few at the back; negative: too many.
  const missing = (a) => a.out - (a.size - 1) * a.stride - a.effective + 2 * a.front;

  // The equal call of each contract: its arguments, and what to write after its output.
  function toPytorch(axes) {
    const parts = axes.map((a) => {
      const padding = Math.min(a.front, a.front + Math.max(a.stride, a.dilation) - 1 - missing(a));
      const dropFront = a.front - padding;
      const needed = missing(a) - dropFront;
      const extra = Math.max(0, needed);
      return { padding, extra, dropFront, dropBack: extra - needed };
    });
    const drops = parts.some((p) => p.dropFront || p.dropBack);
    const slice = parts.map((p) => `${p.dropFront || ""}:${p.dropBack ? -p.dropBack : ""}`).join(", ");
    const own = written(["padding", parts.map((p) => p.padding), 0], ["output_padding", parts.map((p) => p.extra), 0]);
    return { arguments: [...common(axes), ...own], slice: drops ? `[..., ${slice}]` : "" };
  }

  function toMindspore(axes) {
    const sides = axes.flatMap((a) => [a.front, a.front]);
    const own = written(["padding", sides, 0], ["output_padding", axes.map(missing), 0]);
    return { arguments: [...common(axes), ["pad_mode", "pad"], ...own], slice: "" };
  }

  // The pad_mode strings, of 'same' and 'valid', that mean exactly these axes.
  const padModes = (axes) =>
    ["same", "valid"].filter((mode) => axes.every((a) => text(windows[mode](a)) === text([a.front, a.out])));

  // What the real MindSpore layer refuses although its contract describes it; this library computes it.
  function limits(axes, outputPadding) {
    const volume = axes.reduce((product, a) => product * a.kernel, 1);
    return [
      volume > 343 && `kernels of more than 343 taps, here ${volume} (ValueError)`,
      axes[0].dilation !== 1 && `a depth dilation other than 1, here ${axes[0].dilation} (ValueError)`,
      axes[0].stride > 256 && `a depth stride above 256, here ${axes[0].stride} (ValueError)`,
      axes.some((a, i) => outputPadding[i] >= a.stride) && "an output_padding of the stride or more on CPU (RuntimeError)",
    ].filter(Boolean);
  }

  return { resolve, sources, cause, toPytorch, toMindspore, padModes, limits, missing, text, written, common };
})();
