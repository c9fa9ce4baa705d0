// The page: fetches the module and the model, and writes at the reader's pace of a frame.
import { Trion } from "./trion.js";

const [form, prompt, go, text, facts] = ["form", "prompt", "go", "text", "facts"].map((id) => document.getElementById(id));

async function bytesOf(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Lets the page show what was written. */
const frame = () => new Promise((resume) => setTimeout(resume));

async function write(trion, since) {
  go.disabled = true;
  text.replaceChildren(Object.assign(document.createElement("b"), { textContent: prompt.value }));
  const seed = Number(new URLSearchParams(location.search).get("seed") ?? Math.floor(Math.random() * 2 ** 32));
  let [first, tokens, shown] = [0, 0, performance.now()];
  for (const piece of trion.write(prompt.value, { seed })) {
    tokens += 1;
    first ||= performance.now();
    text.append(piece);
    if (performance.now() - shown > 30) {
      await frame();
      shown = performance.now();
    }
  }
  const speed = (tokens - 1) / ((performance.now() - first) / 1000);
  facts.textContent = `kernel ${trion.kernel} · seed ${seed} · first token after ${Math.round(first - since)} ms · ` +
    `${speed.toFixed(0)} tokens/s`;
  go.disabled = false;
  document.documentElement.dataset.written = tokens;
}

try {
  const [wasm, model] = await Promise.all([bytesOf("trion.wasm"), bytesOf("model.safetensors")]);
  const arrival = performance.now();
  const trion = await Trion.load(wasm, model);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    write(trion, performance.now());
  });
  await write(trion, arrival);
} catch (error) {
  facts.textContent = error.message;
  document.documentElement.dataset.failed = error.message;
}
