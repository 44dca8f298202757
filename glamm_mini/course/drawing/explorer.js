// Controls of a PictureExplorer. What the reader chooses goes to Python as `wanted`; the picture and its words come back.

const INK = "#1a1d21", PAPER = "#ffffff", BLUE = "#0072b2", LINE = "#c4c8ce";

function element(tag, styles = {}, attributes = {}) {
  const made = document.createElement(tag);
  Object.assign(made.style, styles);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function choose(model, values) {
  model.set("wanted", { ...model.get("wanted"), ...values });
  model.save_changes();
}

function slider(model, axis) {
  const row = element("label", { display: "flex", gap: "10px", alignItems: "center", margin: "6px 0" });
  const options = axis.options;
  const name = element("span", { minWidth: "9em" });
  const input = element("input", { flex: "1", accentColor: BLUE }, {
    type: "range", min: 0, max: options.length - 1, step: 1, "data-axis": axis.name, "aria-label": axis.name,
  });
  const show = () => {
    const at = options.indexOf(model.get("wanted")[axis.name]);
    if (at >= 0) input.value = at;
    name.textContent = `${axis.name}: ${options[Number(input.value)]}`;
  };
  let waiting = 0;
  // The number follows at once, the picture after a rest: each costs Python some time.
  input.addEventListener("input", () => {
    name.textContent = `${axis.name}: ${options[Number(input.value)]}`;
    clearTimeout(waiting);
    waiting = setTimeout(() => choose(model, { [axis.name]: options[Number(input.value)] }), 80);
  });
  row.append(name, input);
  return [row, show];
}

function buttons(model, axis) {
  const group = element("div", { display: "flex", flexWrap: "wrap", gap: "6px", alignItems: "center", margin: "6px 0" }, {
    role: "group", "aria-label": axis.name, "data-axis": axis.name,
  });
  const name = element("span", { minWidth: "5em" });
  name.textContent = `${axis.name}:`;
  const made = axis.options.map((option) => {
    const button = element("button", {
      font: "inherit", padding: "3px 10px", borderRadius: "14px", border: `1px solid ${BLUE}`, cursor: "pointer",
    }, { type: "button" });
    button.textContent = option;
    button.addEventListener("click", () => choose(model, { [axis.name]: option }));
    return button;
  });
  group.append(name, ...made);
  const show = () => made.forEach((button, k) => {
    const on = model.get("wanted")[axis.name] === axis.options[k];
    button.setAttribute("aria-pressed", on);
    button.style.background = on ? BLUE : PAPER;
    button.style.color = on ? PAPER : INK;
  });
  return [group, show];
}

function textField(model) {
  const input = element("input", {
    font: "inherit", width: "100%", boxSizing: "border-box", padding: "6px 10px", margin: "6px 0", color: INK,
    background: PAPER, border: `1px solid ${LINE}`, borderRadius: "6px",
  }, { type: "text", "data-text": "", "aria-label": "text", maxlength: 400 });
  let waiting = 0;
  // Wait for a pause: a picture for each letter would lag behind a fast writer.
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => choose(model, { text: input.value }), 250);
  });
  const show = () => {
    if (document.activeElement !== input && input.getRootNode().activeElement !== input) {
      input.value = model.get("wanted").text ?? "";
    }
  };
  return [input, show];
}

function pointing(model, frame, image) {
  const kind = model.get("pointer");
  if (!kind) return () => {};
  const mark = element("div", {
    position: "absolute", pointerEvents: "none", border: `2px solid ${PAPER}`, outline: `2px solid ${INK}`,
    boxSizing: "border-box", display: "none",
  }, { "data-mark": "" });
  frame.append(mark);
  Object.assign(image.style, { cursor: "crosshair", touchAction: "none" });
  const place = (event) => {
    const area = image.getBoundingClientRect();
    const fraction = (value, low, size) => Math.min(1, Math.max(0, (value - low) / size));
    return [fraction(event.clientX, area.left, area.width), fraction(event.clientY, area.top, area.height)];
  };
  const span = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  const draw = (x0, y0, x1, y1) => Object.assign(mark.style, {
    display: "block", left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%`,
  });
  let start = null;
  image.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    if (kind === "click") return choose(model, { point: place(event) });
    start = place(event);
    image.setPointerCapture(event.pointerId);
  });
  image.addEventListener("pointermove", (event) => {
    if (start) draw(...span(start, place(event)));
  });
  image.addEventListener("pointerup", (event) => {
    if (!start) return;
    const box = span(start, place(event));
    start = null;
    // A click without a drag is no box.
    if (box[2] - box[0] > 0.01 && box[3] - box[1] > 0.01) choose(model, { box });
    else show();
  });
  image.addEventListener("pointercancel", () => { start = null; show(); });
  const show = () => {
    const { point, box } = model.get("wanted");
    mark.style.borderRadius = kind === "click" ? "50%" : "0";
    if (kind === "box" && box) draw(...box);
    else if (kind === "click" && point) {
      const [w, h] = [7 / (image.clientWidth || 700), 7 / (image.clientHeight || 700)];
      draw(point[0] - w, point[1] - h, point[0] + w, point[1] + h);
    } else mark.style.display = "none";
  };
  image.addEventListener("load", show);
  return show;
}

function render({ model, el }) {
  // Letters on a ground of their own: readable in a light and in a dark theme.
  const card = element("div", {
    maxWidth: `${model.get("width")}px`, background: PAPER, color: INK, padding: "12px", borderRadius: "8px",
    border: `1px solid ${LINE}`, font: "15px/1.45 system-ui, sans-serif", boxSizing: "border-box",
  }, { "data-explorer": "", "data-lm-suppress-shortcuts": "true" });
  // Else JupyterLab takes arrow keys and letters for commands of its own.
  card.addEventListener("keydown", (event) => event.stopPropagation());
  if (model.get("title")) {
    const title = element("div", { fontWeight: "600", marginBottom: "6px" });
    title.textContent = model.get("title");
    card.append(title);
  }
  const shows = [];
  const add = ([part, show]) => { card.append(part); shows.push(show); };
  for (const axis of model.get("axes")) {
    add((axis.options.every((option) => typeof option === "number") ? slider : buttons)(model, axis));
  }
  if (model.get("has_text")) add(textField(model));
  const frame = element("div", { position: "relative", margin: "6px 0", lineHeight: "0" });
  const image = element("img", { width: "100%", height: "auto", display: "block", margin: "0" }, {
    "data-picture": "", draggable: "false",
  });
  frame.append(image);
  card.append(frame);
  shows.push(pointing(model, frame, image));
  const words = element("div", { whiteSpace: "pre-line", minHeight: "1.5em" }, { "aria-live": "polite" });
  card.append(words);
  const look = () => {
    image.src = model.get("picture");
    image.alt = words.textContent = model.get("words");
  };
  const controls = () => shows.forEach((show) => show());
  model.on("change:picture", look);
  model.on("change:words", look);
  model.on("change:wanted", controls);
  look();
  controls();
  el.append(card);
  return () => {
    model.off("change:picture", look);
    model.off("change:words", look);
    model.off("change:wanted", controls);
  };
}

export default { render };
