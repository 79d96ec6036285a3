"use strict";
(() => {
const id = (name) => document.getElementById(name);
const SIZES = {
  BOOL: 1, INT8: 1, UINT8: 1, INT16: 2, UINT16: 2, FP16: 2, BF16: 2, INT32: 4, UINT32: 4, FP32: 4, INT64: 8, UINT64: 8, FP64: 8,
};
const MOST_FIELDS = 24, MOST_TYPED = 2048, MOST_ROWS = 30, MOST_COLUMNS = 20, MOST_RAW = 20000, TOP = 5, PREVIEW = 640;
const IN_WORDS = {
  401: "This server asks for an API key", 403: "This is not allowed here", 404: "The server does not know this",
  409: "This goes against a request before it", 408: "The request did not arrive in time", 413: "The request is too large", 415: "The server does not read this kind of file",
  429: "Too many requests", 503: "The server has too much to do, or is not ready", 504: "The answer took too long",
};
let model = null, key = "", way = null, busy = false;

// Everything that comes from the model or the server goes into the page as text, never as markup.
const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
const clean = (text) => String(text).replace(INVISIBLE, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const make = (tag, fields, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(fields || {})) {
    if (name in node && name !== "list") node[name] = value; else node.setAttribute(name, value);
  }
  node.append(...children.map((child) => (typeof child === "object" ? child : clean(child))));
  return node;
};
const name = (text) => make("bdi", null, text);
const count = (shape) => shape.reduce((product, size) => product * size, 1);
const short = (value) => (typeof value === "number" ? String(Number(value.toPrecision(6))) : value === null ? "not finite" : String(value));
const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const dims = (spec) => "[" + spec.shape.map((d) => (typeof d === "number" ? d : d.name ?? "?")).join(", ") + "]";
const least = (dim) => (typeof dim === "number" ? dim : Math.max(dim.min, 1));
const most = (dim) => (typeof dim === "number" ? dim : dim.max ?? Infinity);

class Refused extends Error {
  constructor(status, text) { super(text); this.status = status; }
}

const ask = async (path, options = {}) => {
  const headers = { ...options.headers, ...(key ? { Authorization: "Bearer " + key } : {}) };
  let response, body;
  try {
    response = await fetch(path, { cache: "no-store", credentials: "omit", ...options, headers });
    body = await response.arrayBuffer();
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (!response.ok) {
    const text = new TextDecoder().decode(body);
    let said = text.slice(0, 300);
    try { said = JSON.parse(text).error ?? said; } catch { /* not of this server */ }
    const again = response.headers.get("Retry-After");
    const wait = again ? ` Try again in ${again} s.` : "";
    throw new Refused(response.status, clean(`${IN_WORDS[response.status] ?? "The server refused this"}: ${said}.${wait}`));
  }
  return { response, body };
};

const say = (trouble, said = "") => { id("trouble").textContent = trouble; id("said").textContent = said; };

const fail = (error) => {
  say(error.message);
  if (error.status === 401 || (error.status === 403 && key)) {
    id("lock").hidden = false;
    id("key").focus();
  }
};

/* Numbers of the binary tensor extension; all little-endian. */
const halves = (exponentBits, fractionBits) => {
  const bias = 2 ** (exponentBits - 1) - 1, top = 2 ** exponentBits - 1, unit = 2 ** fractionBits;
  const even = (value) => { const low = Math.floor(value), rest = value - low; return rest > .5 || (rest === .5 && low % 2) ? low + 1 : low; };
  return {
    encode: (value) => {
      const sign = value < 0 || Object.is(value, -0) ? 2 ** 15 : 0, size = Math.abs(value);
      if (Number.isNaN(size)) return sign + top * unit + unit / 2;
      const exponent = Math.max(size ? Math.floor(Math.log2(size)) : -bias, 1 - bias);
      const bits = (exponent + bias - 1) * unit + even(size / 2 ** exponent * unit);
      return sign + Math.min(Number.isFinite(size) ? bits : Infinity, top * unit);
    },
    decode: (bits) => {
      const sign = bits >= 2 ** 15 ? -1 : 1, exponent = (bits >> fractionBits) & top, fraction = bits % unit;
      if (exponent === top) return fraction ? NaN : sign * Infinity;
      return sign * (exponent ? (1 + fraction / unit) * 2 ** (exponent - bias) : fraction / unit * 2 ** (1 - bias));
    },
  };
};
const HALVES = { FP16: halves(5, 10), BF16: halves(8, 7) };
const METHOD = { FP32: "Float32", FP64: "Float64", INT64: "BigInt64", UINT64: "BigUint64", INT8: "Int8", INT16: "Int16", INT32: "Int32", UINT16: "Uint16", UINT32: "Uint32" };

const toBytes = (datatype, data) => {
  if (data instanceof Uint8Array && datatype === "UINT8") return data;
  const size = SIZES[datatype], bytes = new Uint8Array(size * data.length), view = new DataView(bytes.buffer), half = HALVES[datatype];
  for (let at = 0; at < data.length; at++) {
    if (half) view.setUint16(2 * at, half.encode(data[at]), true);
    else if (size === 8 && datatype !== "FP64") view["set" + METHOD[datatype]](8 * at, BigInt(data[at]), true);
    else if (METHOD[datatype]) view["set" + METHOD[datatype]](size * at, data[at], true);
    else bytes[at] = data[at];
  }
  return bytes;
};
const fromBytes = (datatype, bytes) => {
  const size = SIZES[datatype], view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), half = HALVES[datatype];
  return Array.from({ length: bytes.length / size }, (_, at) => {
    if (half) return half.decode(view.getUint16(2 * at, true));
    if (METHOD[datatype]) return Number(view["get" + METHOD[datatype]](size * at, true));
    return datatype === "BOOL" ? bytes[at] !== 0 : bytes[at];
  });
};

/* Requests. */
const largeAnswer = () => model.outputs.some((spec) => spec.dtype !== "string" && count(spec.shape.map((d) => (typeof d === "number" ? d : d.opt ?? least(d)))) > MOST_TYPED);

const infer = async (tensors) => {
  const total = tensors.reduce((sum, tensor) => sum + tensor.data.length, 0);
  // photos always in binary; a few numbers as JSON, which `curl` can repeat
  const binary = (total > MOST_TYPED || tensors.some((tensor) => tensor.data instanceof Uint8Array)) && tensors.every((tensor) => tensor.datatype !== "BYTES");
  const path = model.base + "/infer";
  const request = { inputs: tensors.map(({ name, shape, datatype }) => ({ name, shape, datatype })) };
  if (largeAnswer()) request.parameters = { binary_data_output: true };
  const parts = binary ? tensors.map((tensor) => toBytes(tensor.datatype, tensor.data)) : [];
  request.inputs.forEach((entry, at) => {
    if (binary) entry.parameters = { binary_data_size: parts[at].length };
    else entry.data = Array.from(tensors[at].data);
  });
  const text = JSON.stringify(request), head = new TextEncoder().encode(text);
  const headers = binary
    ? { "Content-Type": "application/octet-stream", "Inference-Header-Content-Length": String(head.length) }
    : { "Content-Type": "application/json" };
  const { response, body } = await ask(path, { method: "POST", headers, body: binary ? new Blob([head, ...parts]) : text });
  showCurl(path, binary ? null : { type: "application/json", text });
  return readInfer(response, body);
};

const readInfer = (response, body) => {
  const length = Number(response.headers.get("Inference-Header-Content-Length") ?? body.byteLength);
  const text = new TextDecoder().decode(body.slice(0, length)), answer = JSON.parse(text);
  let at = length;
  const outputs = answer.outputs.map((output) => {
    const size = output.parameters?.binary_data_size;
    if (size === undefined) return output;
    at += size;
    const bytes = new Uint8Array(body, at - size, size);
    return { ...output, data: output.datatype === "BYTES" ? strings(bytes) : fromBytes(output.datatype, bytes) };
  });
  const rest = body.byteLength - length;
  return { outputs, text: rest ? `${text}\n\n… and ${plural(rest, "byte")} of tensors` : text };
};
const strings = (bytes) => {
  const found = [], view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < bytes.length;) {
    const size = view.getUint32(at, true);
    found.push(new TextDecoder().decode(bytes.subarray(at + 4, at + 4 + size)));
    at += 4 + size;
  }
  return found;
};

const predict = async (body, type, example) => {
  const { body: answer } = await ask("/predict", { method: "POST", headers: { "Content-Type": type }, body });
  showCurl("/predict", { type, ...example });
  const text = new TextDecoder().decode(answer), { result } = JSON.parse(text);
  const byName = result !== null && typeof result === "object" && !Array.isArray(result);
  const outputs = model.outputs.filter((spec) => !byName || spec.name in result).map((spec) => {
    const data = byName ? result[spec.name] : result, shape = [];
    for (let inner = data; Array.isArray(inner); inner = inner[0]) shape.push(inner.length);
    return { name: spec.name, datatype: spec.datatype, shape, data: [data].flat(Infinity) };
  });
  return { outputs, text };
};

/* Inputs: each kind gives a node, `tensor()`, and `random()` where that makes sense. */
const sizes = new Map();
const sizeKey = (spec, axis) => spec.shape[axis].name ?? `${spec.name}, axis ${axis}`;
const shapeOf = (spec) => spec.shape.map((dim, axis) => (typeof dim === "number" ? dim : sizes.get(sizeKey(spec, axis))));

const sizeFields = (specs, changed) => {
  const grid = make("div", { className: "grid" });
  for (const spec of specs) spec.shape.forEach((dim, axis) => {
    if (typeof dim === "number") return;
    const label = sizeKey(spec, axis);
    if (sizes.has(label)) return;
    sizes.set(label, axis ? Math.max(dim.opt ?? 0, least(dim)) : least(dim));
    const field = make("input", { type: "number", min: dim.min, value: sizes.get(label), required: true, step: 1 });
    if (dim.max !== null) field.max = dim.max;
    field.addEventListener("change", () => {
      if (!field.reportValidity()) return;
      sizes.set(label, Number(field.value));
      changed();
    });
    grid.append(make("label", null, name(label), field));
  });
  return grid.children.length ? [make("fieldset", null, make("legend", null, "Sizes"), grid)] : [];
};

const isFloat = (spec) => spec.dtype.includes("float");
const anyValue = (spec) => {
  if (spec.dtype === "string") return "text";
  if (spec.dtype === "bool") return Math.random() < .5;
  return isFloat(spec) ? Number(Math.random().toFixed(3)) : Math.floor(Math.random() * 10);
};
const checked = (spec, value) => {
  const wanted = spec.dtype === "string" ? "string" : spec.dtype === "bool" ? "boolean" : "number";
  if (typeof value !== wanted) throw new Error(`The input ${spec.name} takes values of the kind ${wanted}, and ${JSON.stringify(value)} is none.`);
  if (wanted === "number" && !isFloat(spec) && !Number.isSafeInteger(value)) throw new Error(`The input ${spec.name} takes whole numbers; this page knows them up to 2^53.`);
  return value;
};
const labelOf = (spec, at, shape) => {
  const columns = model.columns[spec.name]?.names;
  if (columns && shape.length === 2 && columns.length === shape[1]) return shape[0] > 1 ? `${columns[at % shape[1]]}, row ${Math.floor(at / shape[1])}` : columns[at];
  const place = [];
  for (let axis = shape.length - 1, rest = at; axis >= 0; axis--) { place.unshift(rest % shape[axis]); rest = Math.floor(rest / shape[axis]); }
  return spec.name + (place.length ? `[${place}]` : "");
};
const legend = (spec) => make("legend", null, name(spec.name), " ", make("span", { className: "muted" }, `${spec.datatype} ${dims(spec)}`));
const tensorOf = (spec, shape, data) => ({ name: spec.name, datatype: spec.datatype, shape, data });

const values = (spec) => {
  const box = make("fieldset", null, legend(spec)), body = make("div");
  box.append(body);
  let fields = [], area = null, drawn = null;
  const numberField = () => {
    if (spec.dtype === "bool") return make("select", null, make("option", { value: "false" }, "false"), make("option", { value: "true" }, "true"));
    if (spec.dtype === "string") return make("input", { type: "text" });
    const field = make("input", { type: "number", step: isFloat(spec) ? "any" : 1, required: true, value: 0 });
    if (spec.dtype.startsWith("u")) field.min = 0;
    return field;
  };
  const rebuild = () => {
    const shape = shapeOf(spec), total = count(shape);
    [fields, area, drawn] = [[], null, null];
    if (total <= MOST_FIELDS) {
      fields = Array.from({ length: total }, numberField);
      const labels = fields.map((field, at) => make("label", null, name(labelOf(spec, at, shape)), field));
      body.replaceChildren(make("div", { className: "grid" }, ...labels));
      return;
    }
    area = make("textarea", { rows: 4, spellcheck: false, placeholder: "[[0.5, …], …]" });
    area.addEventListener("input", () => { drawn = null; });
    body.replaceChildren(make("label", null, `${total} values as JSON: one list, or lists nested like the shape [${shape.join(", ")}]`, area));
  };
  const random = () => {
    const total = count(shapeOf(spec));
    if (!area) fields.forEach((field) => { field.value = String(anyValue(spec)); });
    else {
      const made = Array.from({ length: total }, () => anyValue(spec));
      area.value = total <= MOST_TYPED ? JSON.stringify(made) : "";
      area.placeholder = `${total} random values; what you write here replaces them`;
      drawn = total <= MOST_TYPED ? null : made;
    }
  };
  const typed = () => {
    if (!area.value.trim()) throw new Error(`The input ${spec.name} is empty: write values, or fill it with random ones.`);
    let value;
    try { value = JSON.parse(area.value); } catch { throw new Error(`The values of ${spec.name} are not JSON.`); }
    const data = [value].flat(Infinity).map((item) => checked(spec, item)), shape = shapeOf(spec);
    if (data.length !== count(shape)) throw new Error(`The input ${spec.name} takes ${count(shape)} values at these sizes, and here are ${data.length}.`);
    return tensorOf(spec, shape, data);
  };
  const read = (field) => (spec.dtype === "string" ? field.value : spec.dtype === "bool" ? field.value === "true" : Number(field.value));
  const tensor = () => {
    if (drawn) return tensorOf(spec, shapeOf(spec), drawn);
    return area ? typed() : tensorOf(spec, shapeOf(spec), fields.map((field) => checked(spec, read(field))));
  };
  rebuild();
  return { node: box, tensor, random, rebuild };
};

const chooser = (spec, words, accept, chosen) => {
  const input = make("input", { type: "file", accept });
  const box = make("fieldset", null, spec ? legend(spec) : make("legend", null, "Rows"), make("label", null, words, input));
  const over = (event) => { event.preventDefault(); box.classList.toggle("over", event.type === "dragover"); };
  for (const kind of ["dragover", "dragleave", "drop"]) box.addEventListener(kind, over);
  const take = (files) => { if (files.length) chosen(files[0]).catch(fail); };
  box.addEventListener("drop", (event) => { input.value = ""; take(event.dataTransfer.files); });
  input.addEventListener("change", () => take(input.files));
  return box;
};

const photo = (spec) => {
  let bitmap = null, file = null;
  const canvas = make("canvas", { hidden: true });
  canvas.setAttribute("role", "img");
  const show = (boxes = []) => {
    const ratio = Math.min(PREVIEW / bitmap.width, Math.max(1, Math.floor(PREVIEW / 4 / bitmap.width))), pen = canvas.getContext("2d");
    [canvas.width, canvas.height, canvas.hidden] = [Math.max(1, bitmap.width * ratio), Math.max(1, bitmap.height * ratio), false];
    canvas.setAttribute("aria-label", `${clean(file?.name ?? "random pixels")}, ${bitmap.width} × ${bitmap.height}` + (boxes.length ? `, with ${plural(boxes.length, "box").replace("boxs", "boxes")}` : ""));
    pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    pen.font = "14px sans-serif";
    for (const { label, box } of boxes) {
      const [left, top, right, bottom] = onPhoto(spec, box, bitmap).map((side) => side * ratio);
      // a bright line within a dark one is seen on any photo
      for (const [style, width] of [["#000", 5], ["#ffd400", 2]]) {
        [pen.strokeStyle, pen.lineWidth] = [style, width];
        pen.strokeRect(left, top, right - left, bottom - top);
      }
      const words = clean(label), base = Math.max(top, 18);
      pen.fillStyle = "#000";
      pen.fillRect(left, base - 18, pen.measureText(words).width + 8, 18);
      pen.fillStyle = "#ffd400";
      pen.fillText(words, left + 4, base - 5);
    }
  };
  const open = async (chosen) => {
    try {
      bitmap = await createImageBitmap(chosen, { colorSpaceConversion: "none" });
    } catch {
      [bitmap, file, canvas.hidden] = [null, null, true];
      throw new Error(`${clean(chosen.name)} is not a photo that this browser can read.`);
    }
    file = chosen;
    say("");
    show();
  };
  const node = chooser(spec, "A photo: choose a file, or drop one here", "image/*", open);
  node.append(canvas);
  const pixels = () => {
    if (!bitmap) throw new Error("Choose a photo first.");
    const [, rows, columns] = spec.shape, fixed = typeof rows === "number" && typeof columns === "number";
    // shrunk only where the model or the server takes no more
    const ratio = Math.min(1, most(rows) / bitmap.height, most(columns) / bitmap.width, Math.sqrt(model.limits.binary_bytes / (3 * bitmap.width * bitmap.height)));
    const height = fixed ? rows : Math.max(least(rows), Math.floor(bitmap.height * ratio));
    const width = fixed ? columns : Math.max(least(columns), Math.floor(bitmap.width * ratio));
    const pen = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
    pen.imageSmoothingQuality = "high";
    pen.drawImage(bitmap, 0, 0, width, height);
    const { data } = pen.getImageData(0, 0, width, height), batch = least(spec.shape[0]), one = 3 * width * height;
    const made = new Uint8Array(batch * one);
    for (let at = 0, to = 0; to < one; at += 4) { made[to++] = data[at]; made[to++] = data[at + 1]; made[to++] = data[at + 2]; }
    for (let copy = 1; copy < batch; copy++) made.copyWithin(copy * one, 0, one);
    return tensorOf(spec, [batch, height, width, 3], made);
  };
  const random = async () => {
    const [height, width] = [1, 2].map((axis) => Math.min(Math.max(least(spec.shape[axis]), typeof spec.shape[axis] === "number" ? 1 : 64), most(spec.shape[axis])));
    const noise = new ImageData(width, height);
    noise.data.forEach((_, at) => { noise.data[at] = at % 4 === 3 ? 255 : Math.random() * 256; });
    bitmap = await createImageBitmap(noise);
    file = null;
    show();
  };
  const send = async () => {
    if (model.bodies.includes(file?.type)) {
      const example = { file: file.name };
      try { return await predict(file, file.type, example); } catch (error) { if (error.status !== 415) throw error; }
    }
    return infer([pixels()]);
  };
  return { node, tensor: pixels, random, send, show };
};

// Boxes are in pixels of what the model gets: back through letterbox or crop to the photo's own.
const onPhoto = (spec, box, { width, height }) => {
  const { size: [rows, columns], letterbox, resize } = model.images[spec.name] ?? { size: [height, width] };
  let [across, down, left, top] = [columns / width, rows / height, 0, 0];
  if (letterbox || resize) {
    across = down = letterbox ? Math.min(columns / width, rows / height) : resize / Math.min(width, height);
    [left, top] = [Math.floor((columns - Math.round(width * across)) / 2), Math.floor((rows - Math.round(height * down)) / 2)];
  }
  return [(box[0] - left) / across, (box[1] - top) / down, (box[2] - left) / across, (box[3] - top) / down];
};

const sound = (spec) => {
  const { sample_rate: rate, window: length } = model.audio[spec.name], time = spec.shape.findLastIndex((dim) => dim !== 1);
  let file = null, samples = null;
  const note = make("p", { className: "muted" });
  const open = async (chosen) => {
    try {
      const decoded = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await chosen.arrayBuffer());
      samples = new Float32Array(decoded.length);
      for (let channel = 0; channel < decoded.numberOfChannels; channel++) decoded.getChannelData(channel).forEach((value, at) => { samples[at] += value / decoded.numberOfChannels; });
    } catch {
      [file, samples, note.textContent] = [null, null, ""];
      throw new Error(`${clean(chosen.name)} is not a sound that this browser can read.`);
    }
    file = chosen;
    say("");
    note.textContent = clean(`${chosen.name}: ${(samples.length / rate).toFixed(2)} s at ${rate} Hz`);
  };
  const node = chooser(spec, `A sound, read at ${rate} Hz: choose a file, or drop one here`, "audio/*,.wav", open);
  node.append(note);
  const tensor = () => {
    if (!samples) throw new Error("Choose a sound first.");
    const wanted = length ?? Math.min(Math.max(samples.length, least(spec.shape[time])), most(spec.shape[time]));
    const shape = spec.shape.map((dim, axis) => (axis === time ? wanted : least(dim))), made = new Float32Array(count(shape));
    for (let at = 0; at < made.length; at += wanted) made.set(samples.subarray(0, wanted), at);
    return tensorOf(spec, shape, made);
  };
  const random = () => {
    [file, samples] = [null, Float32Array.from({ length: length ?? Math.max(rate, least(spec.shape[time])) }, () => Math.random() * .2 - .1)];
    note.textContent = "Random noise";
  };
  const send = async () => {
    if (model.bodies.includes("audio/wav") && /\.wave?$/i.test(file?.name ?? "")) {
      try { return await predict(file, "audio/wav", { file: file.name }); } catch (error) { if (error.status !== 415) throw error; }
    }
    return infer([tensor()]);
  };
  return { node, tensor, random, send };
};

/* Ways to ask: a text, a table, or every input by itself. */
const textWay = () => {
  const area = make("textarea", { rows: 3, required: true });
  return {
    title: "A text", node: make("div", null, make("label", null, "Text", area)),
    send: () => { const text = JSON.stringify({ data: area.value }); return predict(text, "application/json", { text }); },
  };
};
const columnsOf = (spec) => {
  const width = count(spec.shape.slice(1));
  return model.columns[spec.name]?.names ?? (width === 1 ? [spec.name] : Array.from({ length: width }, (_, at) => `${spec.name}.${at}`));
};
const tableWay = () => {
  const head = model.inputs.flatMap(columnsOf).join(",") + "\n", area = make("textarea", { rows: 4, spellcheck: false, required: true });
  area.value = head;
  const fill = async (file) => { area.value = await file.text(); say(""); };
  const node = chooser(null, "A CSV file: choose one, or drop it here", ".csv,text/csv", fill);
  node.append(make("label", null, "or write rows under the names of the columns", area));
  return {
    title: "A table (CSV)", node,
    random: () => { area.value = head + model.inputs.flatMap((spec) => columnsOf(spec).map(() => anyValue(spec))).join(",") + "\n"; },
    send: () => predict(area.value, "text/csv", { text: area.value }),
  };
};
const inputsWay = () => {
  const widgets = model.inputs.map((spec) => (spec.kind === "photo" ? photo : spec.kind === "sound" ? sound : values)(spec));
  return {
    title: "Values", widgets, node: make("div", null, ...widgets.map((widget) => widget.node)),
    random: async () => { for (const widget of widgets) await widget.random(); },
    send: () => (widgets.length === 1 && widgets[0].send ? widgets[0].send() : infer(widgets.map((widget) => widget.tensor()))),
  };
};

const kindOf = (spec) => {
  if (spec.name in model.audio && spec.dtype === "float32") return "sound";
  return spec.dtype === "uint8" && spec.shape.length === 4 && spec.shape[3] === 3 ? "photo" : "values";
};

const chooseWay = (chosen) => {
  way = chosen;
  id("fields").replaceChildren(chosen.node);
  id("random").hidden = !chosen.random;
};

const build = () => {
  sizes.clear();
  model.inputs.forEach((spec) => { spec.kind = kindOf(spec); });
  const byValue = model.inputs.filter((spec) => spec.kind === "values"), ways = [], fields = sizeFields(byValue, () => last.widgets.forEach((widget) => widget.rebuild?.()));
  if (model.text && model.routes.predict) ways.push(textWay());
  const tables = model.routes.predict && model.bodies.includes("text/csv") ? [tableWay()] : [], named = model.inputs.some((spec) => spec.name in model.columns);
  if (named) ways.push(...tables);
  const last = inputsWay();
  last.node.prepend(...fields);
  ways.push(last, ...(named ? [] : tables));
  id("ways").replaceChildren();
  if (ways.length > 1) {
    const radios = ways.map((choice, at) => {
      const radio = make("input", { type: "radio", name: "way", checked: at === 0 });
      radio.addEventListener("change", () => chooseWay(choice));
      return make("label", { className: "row" }, radio, " " + choice.title);
    });
    id("ways").append(make("fieldset", null, make("legend", null, "What to send"), ...radios));
  }
  chooseWay(ways[0]);
};

/* Answers. */
const table = (caption, heads, rows) => {
  const line = (row) => make("tr", null, ...row.map((cell, at) => (at ? make("td", { className: typeof cell === "object" ? "" : "figure" }, cell) : make("th", { scope: "row" }, cell))));
  const made = make("table", null, make("caption", null, make("span", null, caption)), make("thead", null, make("tr", null, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", null, ...rows.map(line)));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": clean(caption) }, made);
};
const bars = (rows) => rows.slice(0, MOST_ROWS).map((row) => {
  const scores = row.map((entry) => entry.score ?? 0), low = Math.min(0, ...scores), high = Math.max(...scores), whole = low >= 0 && high <= 1 ? 1 : high - low;
  return make("ol", { className: "bars" }, ...row.map(({ label, score }) => {
    const fill = make("span");
    fill.style.width = `${whole ? ((score ?? 0) - low) / whole * 100 : 0}%`;
    return make("li", null, make("span", { className: "figure" }, short(score)), name(label), make("span", { className: "bar", "aria-hidden": "true" }, fill));
  }));
});
const chunk = (data, width) => Array.from({ length: width ? data.length / width : 0 }, (_, at) => data.slice(at * width, (at + 1) * width));
const labelled = (labels, number) => labels?.[number] ?? `class ${number}`;
const best = (row) => `${clean(row[0].label)}, ${short(row[0].score)}`;

const numbers = (output) => {
  const { data, shape } = output, width = shape.length ? shape[shape.length - 1] : 1, title = `${output.name}, ${output.datatype} [${shape.join(", ")}]`;
  if (data.length <= 1) return make("p", null, name(output.name), ": ", make("strong", null, data.length ? short(data[0]) : "empty"));
  const columns = Math.min(width, MOST_COLUMNS), rows = shape.length > 1 ? chunk(data, width) : [data], less = width > columns || rows.length > MOST_ROWS;
  const body = rows.slice(0, MOST_ROWS).map((row, at) => [String(at), ...row.slice(0, columns).map(short)]);
  return table(title + (less ? `; the first ${Math.min(rows.length, MOST_ROWS)} of ${plural(rows.length, "row")}, ${columns} of ${plural(width, "column")}` : ""), ["Row", ...Array.from({ length: columns }, (_, at) => String(at))], body);
};

const views = (outputs) => {
  const left = new Map(outputs.map((output) => [output.name, output])), nodes = [], said = [];
  const take = (...names) => { const found = names.map((each) => left.get(each)); names.forEach((each) => left.delete(each)); return found; };
  let boxes = [];
  const title = (text) => nodes.push(make("h3", null, name(text)));
  const tops = (text, rows) => {
    title(text);
    nodes.push(...bars(rows));
    if (rows.length && rows[0].length) said.push(best(rows[0]));
  };
  for (const result of model.results) {
    if (!left.has(result.classes)) continue;
    if (result.kind === "text") {
      const [output] = take(result.classes), between = result.labels ? "" : " ";
      const texts = chunk(output.data, output.shape[output.shape.length - 1]).map((row) => row.filter((number) => number >= 0).map((number) => (result.labels ? labelled(result.labels, number) : number)).join(between));
      title(result.classes);
      nodes.push(...texts.map((text) => make("p", { className: "text" }, name(text || "(nothing)"))));
      said.push(texts[0] ?? "nothing");
    } else if (result.kind === "boxes") {
      const [corners, scores, classes, batch] = take(result.boxes, result.scores, result.classes, result.batch);
      boxes = classes.data.map((number, at) => ({ label: labelled(result.labels, number), score: scores.data[at], box: corners.data.slice(4 * at, 4 * at + 4), batch: batch?.data[at] ?? 0 })).filter((found) => found.batch === 0);
      title("Found");
      nodes.push(boxes.length ? table("Boxes, in pixels of what the model gets: left, top, right, bottom", ["Class", "Score", "Box"], boxes.map(({ label, score, box }) => [name(label), short(score), box.map((side) => short(Math.round(side))).join(", ")])) : make("p", null, "Nothing."));
      said.push(`${boxes.length} found` + (boxes.length ? `: ${clean(boxes[0].label)} first` : ""));
    } else {
      const [classes, scores] = take(result.classes, result.scores);
      const pairs = classes.data.map((number, at) => ({ label: labelled(result.labels, number), score: scores.data[at] }));
      tops(result.scores, chunk(pairs, classes.shape[classes.shape.length - 1]));
    }
  }
  for (const [output, labels] of Object.entries(model.labels)) {
    const found = left.get(output);
    if (!found || found.shape[found.shape.length - 1] !== labels.length) continue;
    left.delete(output);
    const rank = (row) => row.map((score, at) => ({ label: labels[at], score })).sort((a, b) => (b.score ?? -Infinity) - (a.score ?? -Infinity)).slice(0, TOP);
    tops(output, chunk(found.data, labels.length).slice(0, MOST_ROWS).map(rank));
  }
  for (const output of left.values()) {
    if (output.datatype === "BYTES") {
      title(output.name);
      nodes.push(...output.data.slice(0, MOST_ROWS).map((text) => make("p", { className: "text" }, name(text))));
    } else nodes.push(numbers(output));
    if (!said.length) said.push(output.data.length === 1 ? `${clean(output.name)}: ${clean(short(output.data[0]))}` : `${clean(output.name)}, ${plural(output.data.length, "value")}`);
  }
  return { nodes, said: said.join("; "), boxes };
};

const show = ({ outputs, text }, milliseconds) => {
  const { nodes, said, boxes } = views(outputs);
  way.widgets?.forEach((widget, at) => { if (model.inputs[at].kind === "photo") widget.show(boxes); });
  id("answer").replaceChildren(...nodes, make("p", { className: "muted" }, `Round trip from this page: ${milliseconds.toFixed(1)} ms.`));
  id("raw").textContent = clean(text.length > MOST_RAW ? `${text.slice(0, MOST_RAW)}\n… and ${text.length - MOST_RAW} characters more` : text);
  id("answered").hidden = false;
  say("", `${said}. Answered in ${milliseconds.toFixed(1)} ms.`);
};

const quote = (text) => "'" + String(text).replaceAll("'", "'\\''") + "'";
const showCurl = (path, sent) => {
  const lock = key ? " \\\n  -H \"Authorization: Bearer $EDGEPACK_KEY\"" : "", url = quote(location.origin + encodeURI(path));
  id("curl-note").textContent = sent ? "The same with curl:" : "This request went in binary, as the protocol's tensor extension says; its OpenAPI file tells the form. What the model is:";
  if (!sent) id("curl").textContent = clean(`curl${lock} ${quote(location.origin + encodeURI(model.base))}`);
  else {
    const data = sent.file ? `--data-binary ${quote("@" + sent.file)}` : sent.text.length <= 2000 ? `--data-binary ${quote(sent.text)}` : "--data-binary @request";
    id("curl").textContent = clean(`curl -H ${quote("Content-Type: " + sent.type)}${lock} \\\n  ${data} \\\n  ${url}`);
  }
};

/* The model. */
const facts = () => {
  const { engine, accelerator } = model;
  const rows = [["Version", model.version], ["Built for", model.target], ["Engine", `${engine.name} ${engine.version}, ${engine.provider}`], ["Precision", engine.precision]];
  if (accelerator) rows.push(["TensorRT", accelerator.state + (accelerator.reason ? `: ${accelerator.reason}` : "") + (accelerator.progress == null ? "" : `, ${Math.round(accelerator.progress * 100)} %`)]);
  id("facts").replaceChildren(...rows.flatMap(([term, text]) => [make("dt", null, term), make("dd", null, name(text))]));
  const state = model.ready ? "Ready to answer" : "Not ready yet";
  // set only on a change, because it is read aloud
  if (id("state").textContent !== state) id("state").textContent = state;
  id("state").className = model.ready ? "good" : "bad";
};

const describe = () => {
  document.title = clean(model.name);
  id("title").replaceChildren(name(model.name));
  const size = (dim) => (typeof dim === "number" ? String(dim) : `${dim.name ?? "?"}: ${dim.max === null ? `${dim.min} or more` : dim.min === dim.max ? dim.min : `${dim.min} to ${dim.max}`}`);
  const rows = (specs) => specs.map((spec) => [name(spec.name), make("span", null, spec.datatype), make("span", null, spec.shape.length ? spec.shape.map(size).join(" × ") : "one value")]);
  id("tensors").replaceChildren(...[["Inputs", model.inputs], ["Outputs", model.outputs]].map(([caption, specs]) => table(caption, ["Name", "Type", "Shape"], rows(specs))));
  const links = [["openapi", "/openapi.json", "OpenAPI description, with an example of each request"], ["metrics", "/metrics", "Metrics for Prometheus"]];
  id("links").replaceChildren(...links.filter(([route]) => model.routes[route] && !key).map(([, path, words]) => make("li", null, make("a", { href: path }, words))));
  showCurl(model.base, null);
  id("curl-note").textContent = "What the model is, with curl:";
  for (const part of ["trying", "model", "program"]) id(part).hidden = false;
};

const load = async () => {
  const first = model === null;
  const { body } = await ask("/page.json");
  const found = JSON.parse(new TextDecoder().decode(body));
  if (first) {
    model = found;
    build();
    describe();
  } else [model.engine, model.accelerator, model.ready] = [found.engine, found.accelerator, found.ready];
  facts();
  if (!model.ready || ["building", "checking"].includes(model.accelerator?.state)) setTimeout(() => load().catch(fail), 3000);
};

const run = async () => {
  if (busy) return;
  busy = true;
  id("send").setAttribute("aria-disabled", "true");
  say("");
  try {
    const started = performance.now();
    const answer = await way.send();
    show(answer, performance.now() - started);
  } catch (error) {
    fail(error);
  } finally {
    busy = false;
    id("send").removeAttribute("aria-disabled");
  }
};

id("try").addEventListener("submit", (event) => { event.preventDefault(); run(); });
id("random").addEventListener("click", async () => { try { await way.random(); say("", "Filled with random values."); } catch (error) { fail(error); } });
id("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = id("key").value.trim();
  say("");
  load().catch(fail);
});
// a file dropped beside its field must not replace the page
for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
load().catch(fail);
})();
