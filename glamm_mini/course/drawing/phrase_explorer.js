// The page's side of PhraseExplorer. All texts are set as text, never as HTML: they were written by a model.

const SVG = "http://www.w3.org/2000/svg";
const ALL = "M0 0H1000V1000H0Z";

function make(tag, style, parent) {
  const node = document.createElement(tag);
  node.style.cssText = style;
  parent.append(node);
  return node;
}

function path(parent, d, attributes) {
  const node = document.createElementNS(SVG, "path");
  node.setAttribute("d", d);
  node.setAttribute("fill-rule", "evenodd");
  node.setAttribute("vector-effect", "non-scaling-stroke");
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
}

function choose(model, index) {
  model.set("selected", model.get("selected") === index ? -1 : index);
  model.save_changes();
}

function drawPicture(model, parent) {
  const frame = make("div", "position:relative;flex:0 1 460px;line-height:0;border-radius:10px;overflow:hidden", parent);
  const image = make("img", "width:100%;height:auto;display:block;margin:0", frame);
  image.src = model.get("picture");
  image.alt = model.get("alt");
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 1000 1000");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.style.cssText = "position:absolute;left:0;top:0;width:100%;height:100%";
  frame.append(svg);
  const shade = path(svg, ALL, { fill: "#000", "fill-opacity": "0.66", "pointer-events": "none" });
  const masks = model.get("phrases").map((phrase, index) => {
    const mask = path(svg, phrase.path, { stroke: phrase.color, "stroke-width": "3", fill: phrase.color });
    mask.dataset.mask = index;
    mask.style.cursor = "pointer";
    mask.addEventListener("click", () => choose(model, index));
    return mask;
  });
  return { shade, masks };
}

function drawWords(model, parent) {
  const words = make("div", "flex:1 1 280px;min-width:0;line-height:2.1;overflow-wrap:anywhere", parent);
  make("div", "opacity:.7;font-size:14px;line-height:1.5", words).textContent = model.get("question");
  const sentence = make("div", "", words);
  const buttons = [];
  for (const run of model.get("runs")) {
    if (run.phrase < 0) {
      sentence.append(run.text);
      continue;
    }
    const phrase = model.get("phrases")[run.phrase];
    const look = `font:inherit;line-height:1.3;border:2px solid ${phrase.color};border-radius:8px;padding:2px 7px;`;
    const button = make("button", `${look}background:${phrase.color};color:${phrase.ink};cursor:pointer`, sentence);
    button.type = "button";
    button.textContent = run.text;
    button.dataset.phrase = run.phrase;
    button.addEventListener("click", () => choose(model, run.phrase));
    buttons.push(button);
  }
  const about = make("div", "opacity:.8;font-size:14px;line-height:1.5;min-height:1.5em;margin-top:6px", words);
  about.setAttribute("aria-live", "polite");
  return { buttons, about };
}

function render({ model, el }) {
  const row = "display:flex;flex-wrap:wrap;align-items:center;gap:20px 28px;max-width:1040px;padding:10px 2px;";
  const root = make("div", `${row}font:17px system-ui,-apple-system,Segoe UI,DejaVu Sans,sans-serif`, el);
  const { shade, masks } = drawPicture(model, root);
  const { buttons, about } = drawWords(model, root);
  function update() {
    const chosen = model.get("selected");
    const phrases = model.get("phrases");
    shade.setAttribute("d", chosen < 0 ? "" : ALL + phrases[chosen].path);
    masks.forEach((mask, index) => {
      mask.setAttribute("fill-opacity", chosen < 0 ? "0.2" : "0");
      mask.setAttribute("stroke-opacity", chosen < 0 || chosen === index ? "1" : "0");
    });
    for (const button of buttons) {
      const pressed = Number(button.dataset.phrase) === chosen;
      button.setAttribute("aria-pressed", String(pressed));
      button.style.boxShadow = pressed ? "0 0 0 3px #8889" : "none";
    }
    about.textContent = chosen < 0 ? "Click a phrase, or a place in the picture." : phrases[chosen].about;
  }
  model.on("change:selected", update);
  update();
  return () => model.off("change:selected", update);
}

export default { render };
