// A writer in WebAssembly: `const trion = await Trion.load(wasm, model)`, then `for (const piece of trion.write(prompt))`.
// It needs nothing of a browser, so that a server, or a test, can use it too.

/** WASI's "function not supported": files, clocks, threads and the like are in the library, and nothing here uses them. */
const notSupported = () => 52;

/** What the module does ask of the system around it: random numbers for hash tables, and no environment. */
const system = (memory) => ({
  random_get(at, bytes) {
    crypto.getRandomValues(new Uint8Array(memory().buffer, at, bytes));
    return 0;
  },
  environ_sizes_get(count, bytes) {
    const view = new DataView(memory().buffer);
    view.setUint32(count, 0, true);
    view.setUint32(bytes, 0, true);
    return 0;
  },
  environ_get: () => 0,
  proc_exit(code) {
    throw new Error(`the module ended with ${code}`);
  },
});

export class Trion {
  #exports;

  /**
   * Loads a model.
   * @param {BufferSource} wasm trion.wasm
   * @param {Uint8Array} model a file that Trion packed
   * @returns {Promise<Trion>}
   * @throws {Error} if the file is no model; the message names what was found and what was expected
   */
  static async load(wasm, model) {
    const trion = new Trion();
    const module = await WebAssembly.compile(wasm);
    const offered = system(() => trion.#exports.memory);
    const imports = {};
    for (const { module: from, name } of WebAssembly.Module.imports(module)) {
      (imports[from] ??= {})[name] = offered[name] ?? notSupported;
    }
    const instance = await WebAssembly.instantiate(module, imports);
    trion.#exports = instance.exports;
    trion.#exports._initialize?.();
    trion.#put(model);
    trion.#check(trion.#exports.open());
    /** Which kernel computes. */
    trion.kernel = trion.#take();
    return trion;
  }

  /**
   * Continues a prompt, piece by piece: whole characters as they come.
   * @param {string} prompt
   * @param {{tokens?: number, temperature?: number, seed?: number}} options at most `tokens`; temperature 0 takes the most
   *   probable token each time, and the same seed gives the same text on every machine
   * @yields {string}
   * @throws {Error} if the prompt does not fit the model
   */
  *write(prompt, { tokens = 128, temperature = 0.7, seed = 1 } = {}) {
    this.#put(new TextEncoder().encode(prompt));
    this.#check(this.#exports.begin(tokens, temperature, seed));
    for (let more = 1; more === 1; ) {
      more = this.#check(this.#exports.step());
      yield this.#take();
    }
  }

  #put(bytes) {
    const at = this.#exports.inbox(bytes.length);
    new Uint8Array(this.#exports.memory.buffer, at, bytes.length).set(bytes);
  }

  #take() {
    const { memory, outbox, outbox_bytes } = this.#exports;
    return new TextDecoder().decode(new Uint8Array(memory.buffer, outbox(), outbox_bytes()));
  }

  #check(result) {
    if (result < 0) throw new Error(this.#take());
    return result;
  }
}
