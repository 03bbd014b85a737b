// SPDX-License-Identifier: Apache-2.0
// The page "Try it": fields in, pictures and calls out. All arithmetic is in geometry.js.
"use strict";

(() => {
  const { resolve, sources, cause, toPytorch, toMindspore, padModes, limits, missing, text, written, common } = tconv3d;
  const AXES = ["depth", "height", "width"];
  // name, label, smallest, largest of the slider, first value, and the contracts and modes that have it
  const FIELDS = [
    ["size", "input size", 1, 12, 4, "pytorch same valid pad"],
    ["kernel", "kernel_size", 1, 9, 5, "pytorch same valid pad"],
    ["stride", "stride", 1, 6, 3, "pytorch same valid pad"],
    ["dilation", "dilation", 1, 4, 1, "pytorch same valid pad"],
    ["padding", "padding", 0, 8, 2, "pytorch"],
    ["front", "padding, front", 0, 8, 1, "pad"],
    ["back", "padding, back", 0, 8, 1, "pad"],
    ["outputPadding", "output_padding", 0, 5, 2, "pytorch"],
    ["extra", "output_padding", 0, 5, 0, "pad"],
  ];
  const LARGEST = 99;
  const CELL = 30;
  const PHASES = ["#3f6fd8", "#d9822b", "#2b9a66", "#a350c4"];

  const root = document.getElementById("try");
  const values = {};

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.append(...children);
    return made;
  }

  const options = (id, label, ...choices) => {
    const select = element("select", { id }, ...choices.map(([value, words]) => element("option", { value }, words)));
    select.addEventListener("change", show);
    return element("label", { class: "try-choice" }, `${label} `, select);
  };

  function field([name, label, smallest, largest, first, modes]) {
    values[name] = [first, first, first];
    const numbers = AXES.map((axis, i) => {
      const input = element("input", { type: "number", min: smallest, max: LARGEST, value: first, "aria-label": `${label}, ${axis}` });
      input.addEventListener("input", () => {
        const value = Number.parseInt(input.value, 10);
        if (!(value >= smallest && value <= LARGEST)) return; // half typed
        values[name][i] = value;
        show();
      });
      return input;
    });
    const slider = element("input", { type: "range", min: smallest, max: largest, value: first, "aria-label": `${label}, all axes` });
    slider.addEventListener("input", () => {
      values[name] = AXES.map(() => Number(slider.value));
      numbers.forEach((input) => { input.value = slider.value; });
      show();
    });
    const cells = [element("th", { scope: "row" }, label), element("td", {}, slider), ...numbers.map((input) => element("td", {}, input))];
    return element("tr", { "data-modes": modes }, ...cells);
  }

  function read() {
    const contract = document.getElementById("try-contract").value;
    const mode = document.getElementById("try-mode").value;
    const { size, kernel, stride, dilation } = values;
    if (contract === "pytorch") {
      return { contract, size, kernel, stride, dilation, padding: values.padding, outputPadding: values.outputPadding };
    }
    const padded = mode === "pad";
    const padding = padded ? AXES.flatMap((_, i) => [values.front[i], values.back[i]]) : [0, 0, 0, 0, 0, 0];
    return { contract, padMode: mode, size, kernel, stride, dilation, padding, outputPadding: padded ? values.extra : [0, 0, 0] };
  }

  const spell = (name, pairs) => `nn.${name}(c_in, c_out, ${pairs.map(([key, value]) => `${key}=${text(value)}`).join(", ")})`;

  // The call as it was put together above.
  function own(call, axes) {
    const more = [["padding", call.padding, 0], ["output_padding", call.outputPadding, 0]];
    if (call.contract === "pytorch") return [...common(axes), ...written(...more)];
    return [...common(axes), ["pad_mode", call.padMode], ...written(...more)];
  }

  function calls(call, axes) {
    const torch = call.contract === "pytorch";
    const mine = own(call, axes);
    const other = torch ? toMindspore(axes) : toPytorch(axes);
    const [ours, theirs] = torch ? ["PyTorch", "MindSpore"] : ["MindSpore", "PyTorch"];
    const line = (framework, pairs, slice) => {
      const inPytorch = framework === "PyTorch";
      const spelled = spell(inPytorch ? "ConvTranspose3d" : "Conv3dTranspose", [...pairs, [inPytorch ? "bias" : "has_bias", "False"]]).replace("'False'", "False");
      return [element("dt", {}, framework), element("dd", {}, element("code", {}, `y = ${spelled}(x)${slice}`))];
    };
    const list = element("dl", { id: "try-calls" }, ...line(ours, mine, ""));
    const notes = [];
    if (!torch && axes.some((a) => a.out === 0)) {
      notes.push("No equal call exists in PyTorch: it refuses an output size of zero.");
    } else {
      list.append(...line(theirs, other.arguments, other.slice));
    }
    if (other.slice && list.children.length === 4) {
      notes.push("PyTorch's padding is symmetric and its output_padding limited, so no layer call alone is equal: the slice drops what is too much.");
    }
    const modes = torch ? padModes(axes) : [];
    if (modes.length) notes.push(`${modes.map((mode) => `pad_mode='${mode}'`).join(" and ")} without padding says the same.`);
    const sameSize = axes.every((a) => a.out === a.size * a.stride);
    if (torch && sameSize && !modes.includes("same")) {
      notes.push("pad_mode='same' has this output shape, but other values: it cuts another number of samples in front.");
    }
    limits(axes, torch ? axes.map(missing) : call.outputPadding).forEach((what) => notes.push(`MindSpore itself refuses ${what}: no equal call there; tconv3d.Conv3dTranspose computes it.`));
    return [list, element("ul", { id: "try-notes" }, ...notes.map((note) => element("li", {}, note)))];
  }

  function draw(axis) {
    const cells = Math.max(axis.full, axis.front + axis.out);
    const middle = (axis.effective - 1) / 2;
    const x = (position) => position * CELL + CELL / 2;
    const parts = [];
    const box = (position, y, word, fill, ink, dash) => parts.push(
      `<rect x="${x(position) - CELL / 2 + 2}" y="${y}" width="${CELL - 4}" height="22" rx="4" fill="${fill}" stroke="#6b7683"${dash ? ' stroke-dasharray="3 3"' : ""}/>`,
      `<text x="${x(position)}" y="${y + 15}" text-anchor="middle" fill="${ink}">${word}</text>`,
    );
    for (let position = 0; position < cells; position += 1) {
      const output = position - axis.front;
      const kept = output >= 0 && output < axis.out;
      const found = sources(axis, output);
      const color = PHASES[position % axis.stride % PHASES.length];
      const look = kept ? `stroke="${color}" stroke-width="1.6"` : 'stroke="#8a94a1" stroke-dasharray="3 3"';
      found.forEach(([sample]) => parts.unshift(`<line x1="${x(sample * axis.stride + middle)}" y1="24" x2="${x(position)}" y2="92" ${look}/>`));
      if (kept && found.length) box(position, 92, output, color, "#fff");
      else if (kept) box(position, 92, output, "none", "currentColor", true);
      else box(position, 92, "x", "#8a94a155", "currentColor");
      if (kept) parts.push(`<text class="overlap" x="${x(position)}" y="132" text-anchor="middle" fill="currentColor">${found.length}</text>`);
    }
    for (let sample = 0; sample < axis.size; sample += 1) box(sample * axis.stride + middle, 2, sample, "none", "currentColor");
    return `<svg viewBox="0 0 ${cells * CELL} 138" width="${cells * CELL}" height="138" role="img" aria-label="inputs above, outputs below">${parts.join("")}</svg>`;
  }

  function picture(axis, name) {
    const cut = Math.max(0, Math.min(axis.full, axis.full - axis.front - axis.out));
    const zeros = Math.max(0, axis.front + axis.out - axis.full);
    const words = [`${axis.full} samples`, `${axis.front} cut in front`, `${cut} cut at the back`];
    if (zeros) words.push(`${zeros} zero${zeros === 1 ? "" : "s"} appended`);
    const drawing = element("div", { class: "try-drawing", tabindex: "0" });
    drawing.innerHTML = draw(axis);
    return element(
      "section", {},
      element("h3", {}, `${name}: ${axis.size} → ${axis.out}`),
      drawing,
      element("p", {}, `${words.join(", ")}. Overlap ${cause(axis)}.`),
    );
  }

  // One picture for axes that are alike.
  function pictures(axes) {
    const groups = new Map();
    axes.forEach((axis, i) => {
      const key = JSON.stringify(axis);
      groups.set(key, [...(groups.get(key) ?? []), i]);
    });
    return [...groups.values()].map((members) => picture(axes[members[0]], members.map((i) => AXES[i]).join(", ")));
  }

  function show() {
    const call = read();
    const mode = call.contract === "pytorch" ? "pytorch" : call.padMode;
    document.getElementById("try-mode").parentElement.hidden = call.contract === "pytorch";
    root.querySelectorAll("tr[data-modes]").forEach((row) => { row.hidden = !row.dataset.modes.split(" ").includes(mode); });
    const { axes, error } = resolve(call);
    const result = document.getElementById("try-result");
    if (error) {
      result.replaceChildren(element("p", { id: "try-error" }, `${error.type}: ${error.message}`));
    } else {
      result.replaceChildren(...calls(call, axes), ...pictures(axes));
    }
  }

  const head = ["", "all axes", ...AXES].map((word) => element("th", { scope: "col" }, word));
  root.replaceChildren(
    options("try-contract", "Contract", ["pytorch", "PyTorch"], ["mindspore", "MindSpore"]),
    options("try-mode", "pad_mode", ["same", "same"], ["valid", "valid"], ["pad", "pad"]),
    element("div", { class: "try-fields" }, element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...FIELDS.map(field)))),
    element("div", { id: "try-result", "aria-live": "polite" }),
  );
  show();
})();
