// `node test.mjs DIRECTORY [SCREENSHOT]`: writes a tale in Node and prints it; then opens the page of DIRECTORY, which
// holds trion.wasm and model.safetensors beside the files of this one, in a headless Chromium, waits until its tale is
// written, prints what the page says, and takes a picture of it.
import { spawn } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";
import { pathToFileURL } from "node:url";
import { webcrypto } from "node:crypto";

globalThis.crypto ??= webcrypto;
const [directory, screenshot] = process.argv.slice(2);
const read = async (name) => new Uint8Array(await readFile(join(directory, name)));

/** The one that is in the page. */
const PROMPT = "Once upon a time";

const { Trion } = await import(pathToFileURL(join(directory, "trion.js")));
const wasm = await read("trion.wasm");
const trion = await Trion.load(wasm, await read("model.safetensors"));
const pieces = [...trion.write(PROMPT, { seed: 1 })];
console.log(JSON.stringify({ kernel: trion.kernel, text: pieces.join("") }));

// What is no model is refused, and what does not fit: with words, and the module goes on.
const refused = async (work) => work().then(() => "nothing", (error) => error.message);
const message = await refused(() => Trion.load(wasm, new Uint8Array(1000).fill(255)));
if (!message.includes("memory: header")) throw new Error(`a file that is no model: ${message}`);
const long = await refused(async () => [...trion.write("tale ".repeat(5000))]);
if (!long.includes("tokens")) throw new Error(`a prompt that is too long: ${long}`);
if ([...trion.write(PROMPT, { seed: 1 })].join("") !== pieces.join("")) throw new Error("another text");

if (screenshot) await photograph();

async function photograph() {
  const types = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm" };
  const server = createServer(async (request, response) => {
    const path = normalize(new URL(request.url, "http://localhost").pathname);
    try {
      const body = await read(path === "/" ? "index.html" : path);
      response.writeHead(200, { "content-type": types[extname(path)] ?? (path === "/" ? types[".html"] : "application/octet-stream") });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "localhost", resolve));
  const browser = spawn("chromium", ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"], {
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
  });
  const ended = new Promise((_, reject) => browser.on("exit", (code) => reject(new Error(`chromium ended with ${code}`))));
  ended.catch(() => {});
  try {
    const ask = debuggerOf(browser.stdio[3], browser.stdio[4], ended);
    const { targetId } = await ask("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true });
    const page = (method, parameters) => ask(method, parameters, sessionId);
    await page("Emulation.setDeviceMetricsOverride", { width: 760, height: 560, deviceScaleFactor: 1, mobile: false });
    await page("Page.enable");
    await page("Page.navigate", { url: `http://localhost:${server.address().port}/?seed=1` });
    const expression = `new Promise((resolve) => {
      const done = () => {
        const { written, failed } = document.documentElement.dataset;
        const says = (id) => document.getElementById(id)?.textContent;
        if (written || failed) resolve({ failed, written: says("text"), facts: says("facts") });
        else setTimeout(done, 50);
      };
      done();
    })`;
    // The document may be replaced while it is asked.
    let found;
    for (let tries = 0; !found?.written && !found?.failed && tries < 200; tries++) {
      const question = page("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
      const { result } = await question.catch(() => new Promise((resolve) => setTimeout(resolve, 50, {})));
      found = result?.value;
    }
    if (!found?.written) throw new Error(`the page: ${found?.failed ?? "does not answer"}`);
    const { data } = await page("Page.captureScreenshot", { format: "png" });
    await writeFile(screenshot, Buffer.from(data, "base64"));
    console.log(JSON.stringify({ page: found.facts, text: found.written.slice(PROMPT.length) }));
  } finally {
    browser.removeAllListeners("exit");
    browser.kill();
    server.close();
  }
}

/** Speaks to a browser over its two pipes: messages of JSON, each ended by a zero byte. */
function debuggerOf(input, output, ended) {
  const waiting = new Map();
  let [number, rest] = [0, ""];
  output.setEncoding("utf8").on("data", (data) => {
    const messages = (rest + data).split("\0");
    rest = messages.pop();
    for (const { id, result, error } of messages.map((text) => JSON.parse(text))) {
      const { resolve, reject } = waiting.get(id) ?? {};
      if (error) reject?.(new Error(error.message));
      else resolve?.(result);
      waiting.delete(id);
    }
  });
  return (method, params = {}, sessionId = undefined) => {
    const answer = new Promise((resolve, reject) => waiting.set(++number, { resolve, reject }));
    input.write(`${JSON.stringify({ id: number, method, params, sessionId })}\0`);
    return Promise.race([answer, ended]);
  };
}
